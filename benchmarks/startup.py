"""How soon the studio is there and what it costs while nobody wants anything: `python -m benchmarks.startup [--idle 60]`.

`manage.py serve` on an empty DATA_DIR whose database is migrated already: seconds until the web process answers that it is ready, until a
worker of each queue has said that it waits, and then the processor time and memory of all its processes while a page is open or none is.
Beside it, as the floor, the seconds in which Python imports Django alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from time import perf_counter

import psutil

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=float, default=60, help="seconds of watching it do nothing")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as data_dir:
        port = _free_port()
        os.environ |= {"DATA_DIR": data_dir, "PORT": str(port), "LOG_LEVEL": "WARNING", "ADMIN_PASSWORD": "a long enough password"}
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, check=True)
        began = perf_counter()
        subprocess.run([sys.executable, "-c", "import django; import django.db.models; import daphne.server"], check=True)
        rows = {"floor: importing Django and Daphne": {"s": perf_counter() - began}}
        for number in range(arguments.rounds):
            last = number == arguments.rounds - 1
            for name, figures in serve(port, idle_s=arguments.idle if last else 0).items():
                rows.setdefault(name, {})
                for key, value in figures.items():
                    rows[name].setdefault(key, []).append(value)
    tell({name: {key: _middle(value) for key, value in figures.items()} for name, figures in rows.items()})


def serve(port: int, *, idle_s: float) -> dict[str, dict[str, float]]:
    began = perf_counter()
    server = subprocess.Popen([sys.executable, "manage.py", "serve"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        rows = {"web process answers": {"s": _until(began, lambda: _answers(port))}}
        rows["all workers waiting"] = {"s": _until(began, lambda: _workers_wait(port, since=began))}
        if idle_s:
            time.sleep(5)
            family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            before, at = _cpu(family), perf_counter()
            time.sleep(idle_s)
            share = (_cpu(family) - before) / (perf_counter() - at)
            rows["idle, all processes"] = {"processes": len(family), "cpu_share_of_a_core": share, "memory_mb": sum(_memory(one) for one in family) / 1e6}
    finally:
        stopped = perf_counter()
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    return rows | {"stopped": {"s": perf_counter() - stopped}}


def _answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=2).status == 200
    except OSError:
        return False


def _workers_wait(port: int, *, since: float) -> bool:
    """Each queue's worker has been seen since then, not only in the round before."""
    try:
        answer = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2))
    except (OSError, ValueError):
        return False
    return all(age is not None and age < perf_counter() - since for age in answer["workers"].values())


def _until(began: float, holds) -> float:
    for _ in range(1200):
        if holds():
            return perf_counter() - began
        time.sleep(0.05)
    raise SystemExit("the studio did not get ready within a minute")


def _cpu(family: list[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in family if one.is_running())


def _memory(one: psutil.Process) -> int:
    """What is its own; shared pages count once, with nobody."""
    return one.memory_full_info().uss if one.is_running() else 0


def _middle(values: float | list[float]) -> float:
    return sorted(values)[len(values) // 2] if isinstance(values, list) else values


def tell(rows: dict[str, dict[str, float]]) -> None:
    from benchmarks.report import RESULTS, machine

    for name, figures in rows.items():
        print(f"{name:36}", "  ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    (RESULTS / "startup.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
