"""How long an event takes from the worker to fifty browsers: `python -m benchmarks.live_latency [--clients 50] [--rate 200]`.

A real server (`manage.py serve`) on a database of its own; this process is the worker: it writes events to the job's file and copies them
to rows in batches, as the runner does. Each client is a websocket that is logged in. The floor is the same path without sockets: from the
event's writing to the commit of its row. Counted too: events that were lost, doubled or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import datetime
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
BATCH_S = 0.05
"""As the runner copies events."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rate", type=float, nargs="*", default=[10, 200], help="events a second")
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as data_dir:
        os.environ |= {"DATA_DIR": data_dir, "PORT": str(_free_port()), "DJANGO_SETTINGS_MODULE": "audioldm_site.settings", "LOG_LEVEL": "WARNING",
                       "ADMIN_PASSWORD": "a long enough password", "DJANGO_ALLOW_ASYNC_UNSAFE": "1"}  # fmt: skip
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, check=True)
        server = subprocess.Popen([sys.executable, "manage.py", "serve"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_until_ready()
            results = [measure(clients=arguments.clients, rate=rate, seconds=arguments.seconds) for rate in arguments.rate]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    _report(results, clients=arguments.clients)


def measure(*, clients: int, rate: float, seconds: float) -> dict:
    """One run of events at a rate; latencies in milliseconds over all clients."""
    import django

    django.setup()
    from django.contrib.auth import get_user_model

    from audioldm_site.jobs import lifecycle
    from training_app.models import TrainingRun

    run = TrainingRun.objects.create(name="benchmark", dataset_name="none", config={"max_train_steps": 1})
    (run.folder).mkdir(parents=True)
    lifecycle.claim(run, worker_name="benchmark")
    cookie = _session(get_user_model().objects.get(username="admin"))
    total = int(rate * seconds)
    return asyncio.run(_measure(run, cookie, clients=clients, rate=rate, total=total)) | {"rate": rate, "events": total}


async def _measure(run, cookie: str, *, clients: int, rate: float, total: int) -> dict:
    import websockets

    port = os.environ["PORT"]
    headers = {"Cookie": f"sessionid={cookie}", "Origin": f"http://127.0.0.1:{port}"}
    received: list[list[tuple[int, float]]] = [[] for _ in range(clients)]

    async def listen(number: int) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{port}/ws/training/{run.pk}/?after=0", additional_headers=headers) as connection:
            while len(received[number]) < total:
                message = json.loads(await connection.recv())
                received[number].append((message["seq"], time.time() - datetime.fromisoformat(message["at"]).timestamp()))

    listeners = [asyncio.create_task(listen(number)) for number in range(clients)]
    await asyncio.sleep(3)
    floor = await asyncio.to_thread(_emit, run, rate, total)
    await asyncio.wait_for(asyncio.gather(*listeners), timeout=60)
    latencies = np.array([latency for events in received for _, latency in events]) * 1000
    expected = list(range(1, total + 1))
    wrong = sum([seq for seq, _ in events] != expected for events in received)
    return {"p50_ms": float(np.percentile(latencies, 50)), "p95_ms": float(np.percentile(latencies, 95)), "p99_ms": float(np.percentile(latencies, 99)),
            "floor_p50_ms": float(np.median(floor) * 1000), "clients_with_a_gap_or_double": wrong}  # fmt: skip


def _emit(run, rate: float, total: int) -> list[float]:
    """Write events at a rate and copy them in batches; return the seconds from writing to commit of each."""
    from django.db import connection

    from audioldm_site.jobs import lifecycle
    from gpu.events import PROGRESS, EventWriter

    delays, batch = [], []
    began = copied_at = time.monotonic()
    with EventWriter(run.folder, attempt=run.attempt) as events:
        for number in range(total):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            batch.append(events.write(PROGRESS, step=number + 1, max_steps=total, loss=0.1))
            if time.monotonic() - copied_at >= BATCH_S or number == total - 1:
                lifecycle.record_events(run, batch)
                delays += [time.time() - datetime.fromisoformat(event.at).timestamp() for event in batch]
                batch, copied_at = [], time.monotonic()
    connection.close()
    return delays


def _session(user) -> str:
    from importlib import import_module

    from django.conf import settings
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY

    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.create()
    return session.session_key


def _report(results: list[dict], *, clients: int) -> None:
    from benchmarks.report import RESULTS, machine

    print(f"{'events/s':>8}  {'p50 ms':>7}  {'p95 ms':>7}  {'p99 ms':>7}  {'floor':>6}  {'gaps':>4}    ({clients} clients)")
    for row in results:
        print(f"{row['rate']:8.0f}  {row['p50_ms']:7.1f}  {row['p95_ms']:7.1f}  {row['p99_ms']:7.1f}  {row['floor_p50_ms']:6.1f}  {row['clients_with_a_gap_or_double']:4}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "live_latency.json").write_text(json.dumps({"machine": machine(), "clients": clients, "results": results}, indent=1) + "\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready() -> None:
    for _ in range(300):
        try:
            if urllib.request.urlopen(f"http://127.0.0.1:{os.environ['PORT']}/health/ready", timeout=2).status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not get ready")


if __name__ == "__main__":
    main()
