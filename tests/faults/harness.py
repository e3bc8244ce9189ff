"""Random faults against the whole studio, and what became of every job.

    python -m tests.faults.harness --faults 100 --seed 0 [--postgres 25] [--real 10] [--minutes 30] [--output faults.json]
    python -m tests.faults.harness --each --seed 0                 one fault of every family that is quickly over

Starts `manage.py serve` (web process, three clusters) on a database and a folder of its own. Each round puts jobs in line, waits until the
first is at work, does it one harm drawn by the seed, and waits until all has come to rest; a job that honestly failed is resumed, as
its owner would. Then it compares rows, files, hashes and processes with what was promised, and counts.

Most jobs are done by `small_trainer.py`; `--real` rounds train the tiny model. Beside the jobs a client often sends a file piece by piece.
`--postgres` rounds are played by a second studio on a PostgreSQL of their own, at the same time. Full disks need root (a small tmpfs
is mounted), PostgreSQL needs its programs: without them these faults are left out, and the report says so.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import http.client
import io
import itertools
import json
import os
import random
import secrets
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests import postgres

ROOT = Path(__file__).resolve().parents[2]
DISK_BYTES = 400 * 2**20
SETTLE_S = 240.0
KEPT_FREE_BYTES = (0, 8_192, 60_000, 200_000)
"""What a full disk leaves: nothing, a few events, part of a checkpoint of 50 kB, a checkpoint but no second one."""
PIECE_BYTES = 32 * 2**10
SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
COUNTS = ("lost", "doubled", "out_of_order", "damaged_accepted", "wrong_ends", "unequal", "orphans", "unsaved_stops")
REAL_OPTIONS = {
    "max_train_steps": 24,
    "checkpointing_steps": 6,
    "checkpoints_total_limit": 2,
    "train_batch_size": 1,
    "audio_length_in_s": 0.64,
    "num_inference_steps": 1,
    "num_waveforms_per_prompt": 1,
    "validation_epochs": 1_000,
    "validation_prompts": ["a steady tone"],
}


@dataclass
class Report:
    """Everything that is counted. A violation is one sentence; the counts say how many of each kind."""

    tried: dict[str, list[float]] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    violations: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    stops_s: list[float] = field(default_factory=list)
    attempts: int = 0
    compared: int = 0
    events: int = 0
    uploads: int = 0
    upload_refusals: dict[str, int] = field(default_factory=dict)
    full_disks: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, name: str) -> None:
        counts = getattr(self, what)
        counts[name] = counts.get(name, 0) + 1

    def violation(self, kind: str, words: str) -> None:
        self.counts[kind] += 1
        self.violations.append(f"{kind}: {words}")
        print("   !!", kind, words, flush=True)

    def as_dict(self, *, seed: int, began: float, ended_by: str) -> dict:
        return {
            "seed": seed,
            "faults": sum(map(len, self.tried.values())),
            "minutes": round((time.monotonic() - began) / 60, 1),
            "ended_by": ended_by,
            **self.counts,
            "jobs": self.jobs,
            "attempts": self.attempts,
            "events": self.events,
            "resumed_and_compared": self.compared,
            "uploads": self.uploads,
            "upload_refusals": dict(sorted(self.upload_refusals.items())),
            "full_disk_met": dict(sorted(self.full_disks.items())),
            "first_ends": dict(sorted(self.ends.items())),
            "graceful_stops": len(self.stops_s),
            "graceful_stop_s": {"median": round(statistics.median(self.stops_s), 1), "longest": round(max(self.stops_s), 1)} if self.stops_s else {},
            "by_kind": {kind: {"tried": len(times), "settled_s_median": round(statistics.median(times), 1)} for kind, times in sorted(self.tried.items())},
            "skipped": self.skipped,
            "violations": self.violations,
        }


class Studio:
    """`manage.py serve` in a folder of its own, started again after whatever ended it."""

    def __init__(self, folder: Path, server: postgres.Server | None = None) -> None:
        self.folder, self.server = folder, server
        self.data = folder / "data"
        self.ledger = folder / "ledger"
        self.clock = folder / "clock"
        self.port = _free_port()
        self.serve: subprocess.Popen | None = None

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.faults.settings",
            "DATA_DIR": str(self.data),
            "TEST_DATABASE": str(self.data / "db.sqlite3"),
            "DATABASE_URL": self.server.url if self.server else "",
            "SECRET_KEY": secrets.token_hex(32),
            "PYTHONPATH": str(ROOT),
            "FAKE_TRAINER": "harness",
            "HARNESS_LEDGER": str(self.ledger),
            "HARNESS_CLOCK": str(self.clock),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "API_RATE_PER_MINUTE": "1000000",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def start(self) -> None:
        output = open(self.folder / "serve.txt", "ab")  # noqa: SIM115
        self.serve = subprocess.Popen(
            [sys.executable, "manage.py", "serve"], cwd=ROOT, env=os.environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def ensure_ready(self) -> None:
        if self.serve is None or self.serve.poll() is not None:
            self.start()
        wait_for(self.is_ready, seconds=180, what="the studio to be ready")

    def is_ready(self) -> bool:
        if self.serve.poll() is not None:
            self.start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def processes(self) -> list[psutil.Process]:
        """Every process that works on our folder, this one left out."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get("DATA_DIR") == str(self.data) and process.pid != os.getpid()
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def child(self, words: str, queue: str = "") -> psutil.Process | None:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.serve.pid).children():
                with contextlib.suppress(psutil.Error):
                    if words in " ".join(process.cmdline()) and (not queue or process.environ().get("Q_CLUSTER_NAME") == queue):
                        return process
        return None

    def limb(self, queue: str, role: str) -> psutil.Process | None:
        """A cluster (`role` cluster) or what it forked, in the order in which it does."""
        cluster = self.child("qcluster", queue)
        if role == "cluster" or cluster is None:
            return cluster
        with contextlib.suppress(psutil.Error):
            children = sorted(cluster.children(), key=lambda process: (process.create_time(), process.pid))
            place = ("worker", "monitor", "pusher").index(role)
            return children[place] if len(children) > place else None
        return None


@dataclass(kw_only=True)
class Fault:
    """One harm and what may come of it.

    Args:
        harm: does it to the studio and the job that is at work; what it returns is done when all is at rest.
        codes: error codes with which a job may honestly fail; none means that it must end well by itself.
        weight: how often it is drawn.
        kinds: of jobs it can be done to.
        family: what the short form tries one of; its first word where nothing is said.
        database: on which alone it can be done.
        config: what the job must be like for it.
        uploading: it needs a file on its way.
        is_slow: left out of the short form.
    """

    name: str
    harm: Callable
    codes: tuple[str, ...] = ()
    weight: float = 1.0
    kinds: tuple[str, ...] = ("training", "generation", "conversion")
    family: str = ""
    database: str = ""
    config: dict = field(default_factory=dict)
    uploading: bool = False
    is_slow: bool = False

    def __post_init__(self) -> None:
        self.family = self.family or self.name.split()[0]

    @property
    def needs_disk(self) -> bool:
        return "disk.full" in self.codes


# --- what can go wrong


def _send(process: psutil.Process | None, *numbers: int, pause_s: float = 0.0) -> None:
    """Signals to one process, with a pause between them. One that is gone has had its harm."""
    for place, number in enumerate(numbers):
        if place:
            time.sleep(pause_s)
        with contextlib.suppress(psutil.Error, AttributeError):
            process.send_signal(number)


def _trainer(*numbers: int) -> Callable:
    def harm(world: World, job, rng: random.Random) -> None:
        from audioldm_site.jobs import processes

        found = processes.processes_of(job)
        _send(found[0] if found else None, *numbers, pause_s=rng.uniform(1, 4))

    return harm


def _limb(role: str, *numbers: int, pause_s: tuple[float, float] = (1, 6)) -> Callable:
    def harm(world: World, job, rng: random.Random) -> None:
        _send(world.studio.limb(job.queue_name, role), *numbers, pause_s=rng.uniform(*pause_s))

    return harm


def _web(*numbers: int) -> Callable:
    def harm(world: World, job, rng: random.Random) -> None:
        _send(world.studio.child("audioldm_site.web"), *numbers, pause_s=rng.uniform(1, 4))

    return harm


def _kill_serve(world: World, job, rng: random.Random) -> None:
    world.studio.serve.kill()
    world.studio.serve.wait()
    world.require_silence()


def _kill_all(world: World, job, rng: random.Random) -> None:
    for process in world.studio.processes():
        _send(process, signal.SIGKILL)
    world.studio.serve.wait()


def _stop_all(world: World, job, rng: random.Random) -> None:
    """What Ctrl-C does: everything ends in seconds, and what was reached is saved."""
    began = time.monotonic()
    world.studio.serve.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        world.studio.serve.wait(timeout=120)
    took_s = time.monotonic() - began
    world.report.stops_s.append(took_s)
    world.require_silence()
    job.refresh_from_db()
    if job.kind == "training" and job.status == "queued":
        last = job.events.order_by("-seq").first()
        if last is None or last.type != "stopped" or not last.data.get("saved"):
            world.report.violation("unsaved_stops", f"{job.kind} {job.pk}: its last word before a stop of the studio was {last and last.type}")


def _freeze_all(world: World, job, rng: random.Random) -> None:
    """A computer that goes to sleep."""
    found = world.studio.processes()
    for process in found:
        _send(process, signal.SIGSTOP)
    time.sleep(rng.uniform(2, 8))
    for process in found:
        _send(process, signal.SIGCONT)


def _power_cut(world: World, job, rng: random.Random) -> None:
    """Everything dies, and the last writes to the events file never reached the disk. An ending was synced before anybody heard of it."""
    _kill_all(world, job, rng)
    job.refresh_from_db()
    if job.status not in ("queued", "running"):
        return
    path = job.folder / "events.jsonl"
    os.truncate(path, max(0, path.stat().st_size - rng.randrange(1, 400)))


@contextlib.contextmanager
def _full(world: World, *, kept_bytes: int) -> Iterator[None]:
    """The studio's disk with no more free than this, whatever is deleted meanwhile."""
    ballast, enough = world.studio.data / "ballast", threading.Event()

    def fill() -> None:
        with open(ballast, "wb") as file:
            while not enough.wait(0.02):
                # In pieces: what a system cannot allocate whole it gives back whole, and the disk would look empty for a moment.
                piece = 2**23
                while piece >= 4096 and (more := shutil.disk_usage(world.studio.data).free - kept_bytes) > 0:
                    try:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, min(piece, more))
                    except OSError:
                        piece //= 4

    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    try:
        yield
    finally:
        enough.set()
        filler.join()
        ballast.unlink(missing_ok=True)


def _fill_disk(world: World, job, rng: random.Random) -> None:
    with _full(world, kept_bytes=rng.choice(KEPT_FREE_BYTES)):
        time.sleep(rng.uniform(2, 5))


def _fill_disk_until_it_fails(*kept_bytes: int) -> Callable:
    """No room for one thing: until the job has met it and said so."""

    def harm(world: World, job, rng: random.Random) -> None:
        with _full(world, kept_bytes=rng.choice(kept_bytes)), contextlib.suppress(TimeoutError):
            wait_for(lambda: job.refresh_from_db() or job.status != "running", seconds=20, what="the full disk to be met")

    return harm


def _fill_disk_under_an_upload(world: World, job, rng: random.Random) -> None:
    before = world.upload.refusals.get("507", 0)
    with _full(world, kept_bytes=0):
        try:
            wait_for(lambda: world.upload.refusals.get("507", 0) > before, seconds=30, what="the upload to meet the full disk")
        except TimeoutError as error:
            world.report.violation("wrong_ends", str(error))
        time.sleep(rng.uniform(0, 2))


def _lock_database(seconds: tuple[float, float]) -> Callable:
    def harm(world: World, job, rng: random.Random) -> None:
        if world.studio.server:
            return _lock_tables(world.studio.server.url, rng.uniform(*seconds))
        database = sqlite3.connect(world.studio.data / "db.sqlite3", timeout=60, isolation_level=None)
        with contextlib.closing(database):
            database.execute("BEGIN EXCLUSIVE")
            time.sleep(rng.uniform(*seconds))
            database.execute("ROLLBACK")

    return harm


def _lock_tables(url: str, seconds: float) -> None:
    """Every table of ours, as a migration or a vacuum would."""
    import psycopg
    from django.db import connection

    tables = sorted(connection.introspection.table_names())
    connection.close()
    with psycopg.connect(url) as database:
        # One at a time is no way to hold them all while others hold some: ask again until nobody is in the way.
        for _ in range(100):
            try:
                database.execute("SET lock_timeout = '500ms'")
                database.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
                break
            except psycopg.Error:
                database.rollback()
        time.sleep(seconds)
        database.rollback()


def _restart_database(world: World, job, rng: random.Random) -> None:
    """In order, as a crash, or killed; away for some seconds."""
    from django.db import connections

    connections.close_all()
    server = world.studio.server
    how = rng.choice(["fast", "immediate", "killed"])
    server.kill() if how == "killed" else server.stop(mode=how)
    time.sleep(rng.uniform(0, 6))
    server.start()


def _starve(world: World, job, rng: random.Random) -> None:
    """The whole studio gets a tenth of its time for a while, as beside a greedy neighbour."""
    until = time.monotonic() + rng.uniform(6, 12)
    while time.monotonic() < until:
        found = world.studio.processes()
        for process in found:
            _send(process, signal.SIGSTOP)
        time.sleep(0.9)
        for process in found:
            _send(process, signal.SIGCONT)
        time.sleep(0.1)


def _move_clock(*, and_kill: bool = False) -> Callable:
    def harm(world: World, job, rng: random.Random) -> Callable:
        world.studio.clock.write_text(str(rng.choice([-86_400, -3600, -600, -30, 30, 600, 3600, 86_400])))
        if and_kill:
            _send(world.studio.limb(job.queue_name, "worker"), signal.SIGKILL)
            _send(world.studio.limb(job.queue_name, "cluster"), signal.SIGKILL)
        return lambda: world.studio.clock.write_text("0")

    return harm


def _race(world: World, job, rng: random.Random) -> Callable:
    """Two more clusters on the same queue, and the job delivered three times more."""
    from audioldm_site.jobs import queue

    others = [world.start_cluster(job.queue_name) for _ in range(2)]
    for _ in range(3):
        queue.enqueue_call(job.queue_name, queue.TASKS[job.kind], str(job.pk))
    if rng.random() < 0.5:
        _send(world.studio.limb(job.queue_name, "worker"), signal.SIGKILL)
    return lambda: world.end_clusters(others)


def _race_with_the_frozen(world: World, job, rng: random.Random) -> Callable:
    """Whoever has the job falls silent until another has taken it, and then wakes up."""
    others = [world.start_cluster(job.queue_name)]
    _send(world.studio.limb(job.queue_name, "worker"), signal.SIGSTOP, signal.SIGCONT, pause_s=rng.uniform(24, 40))
    return lambda: world.end_clusters(others)


def _damage_checkpoint(world: World, job, rng: random.Random) -> None:
    """The newest checkpoint is not what was saved, and the run has to go on from it."""
    from audioldm_site.jobs import processes

    worker = world.studio.limb(job.queue_name, "worker")
    _send(worker, signal.SIGSTOP)
    time.sleep(0.3)  # what the worker began before it was stopped shows itself
    # Until none is left: one that began a moment ago would write the same checkpoint again while it is being damaged.
    while found := processes.processes_of(job):
        for process in found:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(found, timeout=5)
    saved = sorted((job.folder / "checkpoints").glob("global_step=*"))
    if saved:
        victim = rng.choice(sorted(saved[-1].iterdir()))
        how = rng.choice(["flip", "truncate", "remove"])
        size = victim.stat().st_size
        if how == "remove":
            victim.unlink()
        elif how == "truncate":
            os.truncate(victim, rng.randrange(size))
        else:
            with open(victim, "r+b") as file:
                file.seek(rng.randrange(size))
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ rng.randrange(1, 256)]))
        world.damaged = (str(job.pk), saved[-1].name, job.attempt)
    _send(worker, signal.SIGKILL)


TERM, KILL, STOP, CONT = signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
CHILDREN = ("training", "conversion")
FAULTS = [
    Fault(name="trainer SIGTERM", harm=_trainer(TERM), weight=2, kinds=CHILDREN),
    Fault(name="trainer SIGKILL", harm=_trainer(KILL), codes=("process.died",), weight=3, kinds=CHILDREN),
    Fault(name="trainer SIGSTOP", harm=_trainer(STOP, CONT), weight=2, kinds=CHILDREN),
    Fault(name="worker SIGTERM", harm=_limb("worker", TERM), weight=2),
    Fault(name="worker SIGKILL", harm=_limb("worker", KILL), weight=3),
    Fault(name="worker SIGSTOP", harm=_limb("worker", STOP, CONT), weight=2),
    Fault(name="monitor SIGKILL", harm=_limb("monitor", KILL), weight=1.5),
    Fault(name="pusher SIGKILL", harm=_limb("pusher", KILL), weight=1.5),
    Fault(name="pusher SIGSTOP", harm=_limb("pusher", STOP, CONT)),
    Fault(name="cluster SIGTERM", harm=_limb("cluster", TERM), weight=2),
    Fault(name="cluster SIGKILL", harm=_limb("cluster", KILL), weight=2),
    Fault(name="cluster SIGSTOP", harm=_limb("cluster", STOP, CONT)),
    Fault(name="web SIGTERM", harm=_web(TERM)),
    Fault(name="web SIGKILL", harm=_web(KILL)),
    Fault(name="web SIGSTOP", harm=_web(STOP, CONT)),
    Fault(name="serve SIGKILL", harm=_kill_serve, weight=2),
    Fault(name="all SIGTERM (Ctrl-C)", harm=_stop_all, weight=3, family="stop"),
    Fault(name="all SIGKILL", harm=_kill_all, weight=3),
    Fault(name="all SIGSTOP (sleep)", harm=_freeze_all, weight=1.5, family="sleep"),
    Fault(name="starved: a tenth of the processor", harm=_starve, weight=2),
    Fault(name="power cut, torn events file", harm=_power_cut, weight=2),
    Fault(name="disk full", harm=_fill_disk, codes=("disk.full",), weight=3),
    Fault(
        name="disk full during a checkpoint", harm=_fill_disk_until_it_fails(20_000, 40_000), codes=("disk.full",), weight=3, kinds=("training",),
        family="full checkpoint", config={"max_train_steps": 200},
    ),
    Fault(
        name="disk full during a log write", harm=_fill_disk_until_it_fails(0, 4_096, 20_000), codes=("disk.full",), weight=2, kinds=("training",),
        family="full log", config={"max_train_steps": 200, "chatter_bytes": 12_000, "checkpointing_steps": 150},
    ),
    Fault(name="disk full during an upload", harm=_fill_disk_under_an_upload, codes=("disk.full",), weight=2, family="full upload", uploading=True),
    Fault(name="database locked 3-8 s", harm=_lock_database((3, 8)), weight=2, family="database lock"),
    Fault(name="database locked beyond the timeout", harm=_lock_database((32, 36)), weight=0.5, is_slow=True),
    Fault(name="database restarted", harm=_restart_database, weight=12, family="database restart", database=POSTGRESQL),
    Fault(name="clock moved", harm=_move_clock(), weight=2.5),
    Fault(name="clock moved, cluster SIGKILL", harm=_move_clock(and_kill=True), weight=1.5),
    Fault(name="three clusters, four deliveries", harm=_race, weight=2),
    Fault(name="job taken from a frozen worker", harm=_race_with_the_frozen, weight=1, is_slow=True),
    Fault(name="newest checkpoint damaged", harm=_damage_checkpoint, weight=4, kinds=("training",)),
]


# --- somebody who sends a file meanwhile


class Upload(threading.Thread):
    """A tus client that sends a dataset piece by piece and does not give up; `location` when it has become one."""

    def __init__(self, port: int, token: str, content: bytes, *, name: str, pause_s: float) -> None:
        super().__init__(daemon=True)
        self.port, self.token, self.content, self.label, self.pause_s = port, token, content, name, pause_s
        self.refusals: dict[str, int] = {}
        self.location, self.said, self.give_up = "", "", False
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            self.digests = sorted(hashlib.sha256(archive.read(member)).hexdigest() for member in archive.namelist() if member.endswith(".wav"))

    def run(self) -> None:
        address = ""
        until = time.monotonic() + SETTLE_S
        while not (self.location or self.give_up) and time.monotonic() < until:
            try:
                address = address or self._begin()
                self._send_rest(address)
            except OSError as error:
                self._refused(type(error).__name__)
            except http.client.HTTPException as error:
                self._refused(type(error).__name__)
            time.sleep(0.3)

    def _begin(self) -> str:
        metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in {"kind": "dataset", "filename": "a.zip", "name": self.label}.items())
        status, headers, _ = self._ask("POST", "/uploads/", Upload_Length=len(self.content), Upload_Metadata=metadata)
        return headers["Location"] if status == 201 else self._refused(str(status))

    def _send_rest(self, address: str) -> None:
        if not address:
            return
        status, headers, _ = self._ask("HEAD", address)
        if status != 200:
            return self._refused(str(status))
        at = int(headers["Upload-Offset"])
        while at < len(self.content):
            piece = self.content[at : at + PIECE_BYTES]
            checksum = f"sha256 {base64.b64encode(hashlib.sha256(piece).digest()).decode()}"
            status, headers, self.said = self._ask("PATCH", address, piece, Upload_Offset=at, Content_Type="application/offset+octet-stream", Upload_Checksum=checksum)
            if status != 204:
                return self._refused(str(status))
            at = int(headers["Upload-Offset"])
            time.sleep(self.pause_s)
        status, _, self.said = self._ask("GET", address)
        if status != 200:
            return self._refused(str(status))
        self.location = json.loads(self.said)["location"] or ""

    def _ask(self, method: str, path: str, body: bytes = b"", **headers: object) -> tuple[int, http.client.HTTPMessage, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
            connection.request(method, path, body, {"Authorization": f"Bearer {self.token}", "Tus-Resumable": "1.0.0", **named})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def _refused(self, how: str) -> str:
        self.refusals[how] = self.refusals.get(how, 0) + 1
        return ""


# --- the world in which it goes wrong


class World:
    """The studio, its jobs and what is promised of them."""

    def __init__(self, studio: Studio, report: Report) -> None:
        self.studio, self.report = studio, report
        self.damaged: tuple[str, str, int] | None = None
        self.upload: Upload | None = None
        self._clusters: list[subprocess.Popen] = []
        self._doubled = 0

    def prepare(self, *, real: bool) -> None:
        from django.contrib.auth import get_user_model

        from audioldm_site.accounts.tokens import create_token
        from tests.factories import write_dataset_zip
        from training_app.models import Checkpoint

        self.owner = get_user_model().objects.create_user("alice")
        self.base = Checkpoint.objects.create(
            name="base", family="audioldm2", format=Checkpoint.Format.DIFFUSERS, origin=Checkpoint.Origin.IMPORTED, path="checkpoints/base", missing=True
        )
        self.zip = write_dataset_zip(self.studio.folder / "tones.zip", clips=6, duration_s=0.3)
        self.large_zip = write_dataset_zip(self.studio.folder / "large.zip", clips=6, duration_s=4.0)
        self.token = create_token(user=self.owner, name="harness", scope="write")[1]
        if real:
            self._prepare_real()

    def _prepare_real(self) -> None:
        """The tiny model, the tones, and the weights that an uninterrupted run ends with."""
        from datasets_app import services as datasets
        from tests.factories import write_dataset_zip
        from training_app import services, storage
        from training_app.models import Checkpoint

        model = self.studio.folder / "tiny"
        made = f"from pathlib import Path; from gpu.tiny import write_tiny_audioldm2; write_tiny_audioldm2(Path({str(model)!r}))"
        subprocess.run([sys.executable, "-c", made], cwd=ROOT, check=True)
        self.tiny = storage.register_checkpoint(model, origin=Checkpoint.Origin.IMPORTED, name="tiny")
        source = write_dataset_zip(self.studio.folder / "ten-tones.zip")
        self.tones = datasets.import_inline(source=source, name="ten tones", owner=self.owner, origin="imported")
        reference = services.create_run(owner=self.owner, dataset=self.tones, base_checkpoint=self.tiny, values=REAL_OPTIONS, name="reference", enqueue=False)
        type(reference).objects.filter(pk=reference.pk).update(status="succeeded")  # else a cluster would find it forgotten, and train it too
        subprocess.run([sys.executable, "-m", "gpu", "finetune", str(reference.folder)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        self.reference = self._final_hashes(reference)
        reference.delete()

    def _final_hashes(self, run) -> dict[str, str]:
        final = run.folder / "checkpoints" / f"global_step={REAL_OPTIONS['max_train_steps']:06d}" / "checkpoint.json"
        return {name: digest for name, digest in json.loads(final.read_text())["files"].items() if name.endswith(".safetensors")}

    # jobs

    def make_training(self, rng: random.Random, **more):
        from audioldm_site.jobs import queue
        from training_app.models import TrainingRun

        config = {"small": "training", "max_train_steps": rng.randrange(60, 100), "checkpointing_steps": rng.randrange(6, 20), "step_s": 0.04, "seed": rng.randrange(10**6), **more}
        run = TrainingRun(owner=self.owner, name=f"run {rng.randrange(10**9)}", dataset_name="none", base_checkpoint=self.base, config=config)
        return self._put(run, queue)

    def make_real(self, rng: random.Random):
        from training_app import services

        return services.create_run(owner=self.owner, dataset=self.tones, base_checkpoint=self.tiny, values=REAL_OPTIONS, name=f"real {rng.randrange(10**9)}")

    def make_generation(self, rng: random.Random, **more):
        from audioldm_site.jobs import queue
        from generation_app.models import Generation

        return self._put(Generation(owner=self.owner, prompt="a tone", config={"sounds": rng.randrange(10, 25), "step_s": 0.15}), queue)

    def make_conversion(self, rng: random.Random, **more):
        from audioldm_site.jobs import queue
        from training_app.models import Conversion

        config = {"small": "conversion", "pieces": rng.randrange(20, 50), "step_s": 0.06}
        return self._put(Conversion(owner=self.owner, direction="import", name="made up", source="made up", config=config), queue)

    def make_dataset(self, rng: random.Random):
        from datasets_app import services

        return services.create_dataset(source=self.zip, name=f"tones {rng.randrange(10**9)}", owner=self.owner, origin="imported")

    def make_upload(self, rng: random.Random, *, pause_s: float) -> Upload:
        upload = Upload(self.studio.port, self.token, self.large_zip.read_bytes(), name=f"sent {rng.randrange(10**9)}", pause_s=pause_s)
        upload.start()
        return upload

    def _put(self, job, queue):
        from django.db import transaction

        job.folder.mkdir(parents=True)
        (job.folder / "config.json").write_text(json.dumps(job.config))
        with transaction.atomic():
            job.save()
            queue.enqueue(job)
        return job

    # extra clusters

    def start_cluster(self, queue: str) -> subprocess.Popen:
        output = open(self.studio.folder / "clusters.txt", "ab")  # noqa: SIM115
        environment = {**os.environ, "Q_CLUSTER_NAME": queue}
        process = subprocess.Popen([sys.executable, "manage.py", "qcluster"], cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True)
        self._clusters.append(process)
        return process

    def end_clusters(self, clusters: list[subprocess.Popen]) -> None:
        for process in clusters:
            process.terminate()
        for process in clusters:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.report.violation("orphans", f"a cluster that was told to end is still there after 60 s (pid {process.pid})")
                process.kill()

    def require_silence(self) -> None:
        """Nothing outlives the studio for long."""
        try:
            wait_for(lambda: not self.studio.processes(), seconds=60, what="every process to end")
        except TimeoutError:
            left = [f"{process.pid} {' '.join(process.cmdline())[-80:]}" for process in self.studio.processes()]
            self.report.violation("orphans", f"still there 60 s after serve: {left}")
            for process in self.studio.processes():
                _send(process, signal.SIGKILL)

    # what is promised

    def at_work(self, job) -> bool:
        return job.events.filter(type__in=("progress", "waveform", "waiting")).exists() and job.events.count() >= 3

    def settle(self, jobs: list, fault: Fault) -> None:
        """Until every job has ended well, those that honestly failed after being resumed."""
        from audioldm_site.jobs.models import Status

        told: set = set()
        deadline = time.monotonic() + SETTLE_S
        while jobs and time.monotonic() < deadline:
            self.studio.ensure_ready()
            for job in list(jobs):
                job.refresh_from_db()
                if job.status == Status.SUCCEEDED:
                    jobs.remove(job)
                    if job.pk not in told:
                        self._first_end(job, "succeeded")
                elif job.status in (Status.FAILED, Status.CANCELLED):
                    if job.pk not in told:
                        self._first_end(job, job.error_code or job.status)
                        told.add(job.pk)
                        if job.error_code == "disk.full":
                            met = job.error_detail.split(":")[0]
                            self.report.count("full_disks", met if met in ("a checkpoint", "a log line", "an event", "its start") else f"a {job.kind}'s other writes")
                    if job.error_code not in fault.codes:
                        self.report.violation("wrong_ends", f"{job.kind} {job.pk} after {fault.name}: {job.status} {job.error_code} {job.error_detail[:300]}")
                    self._resume(job)
            time.sleep(0.1)
        for job in jobs:
            self.report.violation("lost", f"{job.kind} {job.pk} after {fault.name}: still {job.status} after {SETTLE_S:g} s, attempt {job.attempt}")

    def _first_end(self, job, words: str) -> None:
        self.report.count("ends", f"{job.kind}: {words}")

    def _resume(self, job) -> None:
        from django.db import transaction

        from audioldm_site.jobs import lifecycle, queue

        with transaction.atomic():
            if lifecycle.requeue(job):
                queue.enqueue(job)

    def settle_dataset(self, dataset, fault: Fault, *, resumed: bool = False) -> None:
        def is_over() -> bool:
            self.studio.ensure_ready()
            dataset.refresh_from_db()
            return dataset.status != "importing"

        try:
            wait_for(is_over, seconds=SETTLE_S, what="the import")
        except TimeoutError:
            self.report.violation("lost", f"the import after {fault.name} is still waiting")
            return
        self.report.count("ends", f"dataset: {dataset.status} {dataset.error_code}".strip())
        if dataset.status == "ready":
            if dataset.clips.count() != 6:
                self.report.violation("unequal", f"dataset {dataset.pk} after {fault.name} has {dataset.clips.count()} clips of 6")
        elif dataset.error_code not in fault.codes:
            self.report.violation("wrong_ends", f"dataset {dataset.pk} after {fault.name}: {dataset.status} {dataset.error_code} {dataset.error_detail[:300]}")

    def settle_upload(self, upload: Upload, fault: Fault) -> None:
        """What was sent has become one dataset, equal to what was sent."""
        from datasets_app.models import Dataset

        upload.join(timeout=SETTLE_S)
        for refusal, count in upload.refusals.items():
            self.report.upload_refusals[refusal] = self.report.upload_refusals.get(refusal, 0) + count
        about = f"the upload {upload.label} after {fault.name}"
        if not upload.location:
            upload.give_up = True
            self.report.violation("lost", f"{about}: {upload.said} {upload.refusals}")
            return
        self.report.uploads += 1
        made = list(Dataset.objects.filter(name=upload.label))
        if len(made) != 1:
            self.report.violation("doubled" if made else "lost", f"{about}: became {len(made)} datasets")
            return
        self.settle_dataset(made[0], fault, resumed=True)
        kept = sorted(hashlib.sha256((made[0].folder / clip.path).read_bytes()).hexdigest() for clip in made[0].clips.all())
        if made[0].status == "ready" and kept != upload.digests:
            self.report.violation("unequal", f"{about}: its clips are not what was sent")

    def verify(self, job, fault: Fault) -> None:
        """Rows against file, results against hashes, and nobody left at work."""
        from audioldm_site.jobs import processes
        from gpu.events import read_events

        about = f"{job.kind} {job.pk} after {fault.name}"
        job.refresh_from_db()
        rows = list(job.events.order_by("seq").values_list("seq", "attempt", "type", "data"))
        file = [(event.seq, event.attempt, event.type, event.data) for event in read_events(job.folder)]
        if [row[0] for row in rows] != list(range(1, len(rows) + 1)) or job.last_seq != len(rows):
            self.report.violation("out_of_order", f"{about}: rows are not 1..{job.last_seq}")
        if rows != file:
            odd = next((pair for pair in zip(rows, file, strict=False) if pair[0] != pair[1]), (len(rows), len(file)))
            self.report.violation("out_of_order", f"{about}: rows and file differ, first at {str(odd)[:300]}")
        if [row[1] for row in rows] != sorted(row[1] for row in rows):
            self.report.violation("out_of_order", f"{about}: attempts overlap in the events")
        if sum(row[2] == "finished" for row in rows) != 1 or rows[-1][2] != "finished":
            self.report.violation("wrong_ends", f"{about}: succeeded, but says {[row[2] for row in rows if row[2] in ('finished', 'failed', 'stopped')]}")
        try:
            wait_for(lambda: not processes.processes_of(job), seconds=20, what="its processes to end")
        except TimeoutError:
            self.report.violation("orphans", f"{about}: {processes.processes_of(job)}")
        self.report.events += len(rows)
        self.report.attempts += job.attempt
        kind = "training, tiny model" if job.kind == "training" and "small" not in job.config else job.kind
        self.report.count("jobs", kind)
        getattr(self, f"_verify_{job.kind}")(job, about)

    def _verify_training(self, run, about: str) -> None:
        import numpy as np

        from gpu.errors import Fault as GpuFault
        from gpu.models import verify_checkpoint
        from tests.faults.small_trainer import trained

        for checkpoint in run.checkpoints.filter(missing=False):
            try:
                facts = verify_checkpoint(checkpoint.folder)
                if facts.files[facts.weights_file] != checkpoint.sha256:
                    self.report.violation("damaged_accepted", f"{about}: the row of step {checkpoint.global_step} has another hash")
            except GpuFault as found:
                if not (self.damaged and self.damaged[:2] == (str(run.pk), checkpoint.folder.name)):
                    self.report.violation("damaged_accepted", f"{about}: {found.message}")
        if self.damaged and self.damaged[0] == str(run.pk):
            step = int(self.damaged[1].split("=")[1])
            resumed = run.events.filter(type="started", attempt=self.damaged[2] + 1).first()
            if resumed and resumed.data["step"] == step:
                self.report.violation("damaged_accepted", f"{about}: went on from {self.damaged[1]}")
        steps = run.config["max_train_steps"]
        final = run.folder / "checkpoints" / f"global_step={steps:06d}"
        if "small" in run.config:
            equal = np.array_equal(np.load(final / "resume.pt.npy"), trained(steps=steps, seed=run.config["seed"]))
        else:
            equal = self._final_hashes(run) == self.reference
        if run.attempt > 1:
            self.report.compared += 1
        if not equal:
            self.report.violation("unequal", f"{about}: its weights after {run.attempt} attempts are not those of an uninterrupted run")

    def _verify_generation(self, generation, about: str) -> None:
        from gpu.manifest import sha256_of

        waveforms = list(generation.waveforms.order_by("index"))
        if [waveform.index for waveform in waveforms] != list(range(generation.config["sounds"])):
            self.report.violation("unequal", f"{about}: has sounds {[waveform.index for waveform in waveforms]}")
        for waveform in waveforms:
            if sha256_of(generation.folder / waveform.audio) != waveform.sha256:
                self.report.violation("damaged_accepted", f"{about}: {waveform.audio} is not what its row says")

    def _verify_conversion(self, conversion, about: str) -> None:
        expected = b"".join(bytes([piece]) * 1000 for piece in range(conversion.config["pieces"]))
        if (conversion.folder / "result").read_bytes() != expected:
            self.report.violation("unequal", f"{about}: its result differs")

    def count_doubled(self, fault: Fault) -> None:
        ledger = self.studio.ledger / "doubled.txt"
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        for line in lines[self._doubled :]:
            self.report.violation("doubled", f"{line} after {fault.name}")
        self._doubled = len(lines)

    def require_empty_queue(self, fault: Fault) -> None:
        from django_q.models import OrmQ

        try:
            wait_for(lambda: not OrmQ.objects.exists(), seconds=45, what="the queue to empty")
        except TimeoutError:
            left = [(row.key, row.name(), str(row.lock)) for row in OrmQ.objects.all()]
            self.report.violation("lost", f"entries that nobody takes after {fault.name}: {left}")
            OrmQ.objects.all().delete()


def play(world: World, fault: Fault, rng: random.Random, *, real: bool) -> None:
    """One round: jobs, one harm, rest, and a look at everything."""
    world.studio.ensure_ready()
    world.damaged = None
    kind = "training" if real else rng.choice(fault.kinds)
    world.upload = world.make_upload(rng, pause_s=0.6 if fault.uploading else rng.uniform(0.1, 0.3)) if fault.uploading or rng.random() < 0.3 else None
    target = world.make_real(rng) if real else getattr(world, f"make_{kind}")(rng, **fault.config)
    bystander = rng.choice([world.make_training, world.make_generation, world.make_conversion])(rng) if not real else None
    dataset = world.make_dataset(rng) if rng.random() < 0.3 else None
    jobs = [job for job in (target, bystander) if job]
    wait_for(lambda: world.at_work(target), seconds=180, what=f"{target} to be at work")
    time.sleep(rng.uniform(0, 2.0))
    target.refresh_from_db()
    undo = fault.harm(world, target, rng)
    world.settle(list(jobs), fault)
    if dataset:
        world.settle_dataset(dataset, fault)
    if world.upload:
        world.settle_upload(world.upload, fault)
    if undo:
        undo()
    world.require_empty_queue(fault)
    for job in jobs:
        job.refresh_from_db()
        if job.status == "succeeded":
            world.verify(job, fault)
    world.count_doubled(fault)


def wait_for(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError(f"waited {seconds:g} s for {what}")


def plan(rng: random.Random, *, faults: int, real: int, usable: list[Fault]) -> Iterator[tuple[Fault, bool]]:
    """Which harm comes in which round; `real` of them, evenly spread, to the tiny model."""
    trainable = [fault for fault in usable if "training" in fault.kinds and not fault.config]
    for number in range(faults):
        is_real = bool(real) and number % max(1, faults // real) == 0
        pool = trainable if is_real else usable
        yield rng.choices(pool, weights=[fault.weight for fault in pool])[0], is_real


def one_of_each(rng: random.Random, usable: list[Fault], *, share: tuple[int, int]) -> Iterator[tuple[Fault, bool]]:
    """One fault of each family that is quickly over; of `share` (k, n) every n-th family, from the k-th on."""
    families: dict[str, list[Fault]] = {}
    for fault in usable:
        if not fault.is_slow:
            families.setdefault(fault.family, []).append(fault)
    for name in itertools.islice(families, share[0], None, share[1]):
        yield rng.choice(families[name]), False


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """A volume of its own for the studio's folder, where one may be mounted."""
    path.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgres", type=int, help="how many of them on PostgreSQL; a quarter where nothing is said")
    parser.add_argument("--real", type=int, default=0, help="how many of them hit the real trainer with the tiny model")
    parser.add_argument("--each", action="store_true", help="instead of --faults: one of every family that is quickly over")
    parser.add_argument("--share", default="0/1", help="with --each: every n-th family from the k-th on, as k/n")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no round after this")
    parser.add_argument("--only", default="", help="only faults with these words in their name")
    parser.add_argument("--output", type=Path, help="write the report there after every round")
    parser.add_argument("--add", action="store_true", help="to what the output holds already: a long form that was cut short goes on with another seed")
    parser.add_argument("--database", choices=[SQLITE, POSTGRESQL], help="play on this one alone, and report that")
    arguments = parser.parse_args()
    return play_part(arguments) if arguments.database else play_parts(arguments)


def play_parts(arguments: argparse.Namespace) -> int:
    """One studio on each database, side by side; one report of both."""
    skipped = {}
    on_postgres = arguments.faults // 4 if arguments.postgres is None else arguments.postgres
    if missing := postgres.why_not():
        skipped[POSTGRESQL] = missing
        on_postgres = 0
    shares = {SQLITE: arguments.faults - on_postgres, POSTGRESQL: on_postgres}
    folder = Path(tempfile.mkdtemp(prefix="studio-faults-report-"))
    began, parts = time.monotonic(), {}
    for number, (database, faults) in enumerate(shares.items()):
        if faults:
            real = ["--real", str(arguments.real)] if database == SQLITE else []
            command = [sys.executable, "-m", "tests.faults.harness", "--database", database, "--faults", str(faults), "--seed", str(arguments.seed + number), *real]
            command += ["--minutes", str(arguments.minutes), "--only", arguments.only, "--output", str(folder / database), "--share", arguments.share]
            parts[database] = subprocess.Popen([*command, "--each"] if arguments.each else command, cwd=ROOT)
    codes = [part.wait() for part in parts.values()]
    reports = {database: json.loads((folder / database).read_text()) for database in parts if (folder / database).exists()}
    shutil.rmtree(folder)
    commands, minutes = [f"python -m tests.faults.harness {' '.join(sys.argv[1:])}"], (time.monotonic() - began) / 60
    if arguments.add:
        earlier = json.loads(arguments.output.read_text())
        commands, minutes = [*earlier["commands"], *commands], earlier["minutes"] + minutes
        skipped = earlier["skipped"] | skipped
        reports = earlier["parts"] | {f"{database}, seed {report['seed']}": report for database, report in reports.items()}
    result = {
        "commands": commands,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "faults": sum(report["faults"] for report in reports.values()),
        "minutes": round(minutes, 1),
        **{count: sum(report[count] for report in reports.values()) for count in COUNTS},
        "skipped": skipped | {f"{name} on {database}": words for database, report in reports.items() for name, words in report["skipped"].items()},
        "parts": reports,
    }
    for name, words in result["skipped"].items():
        print(f"SKIPPED: {name}: {words}", file=sys.stderr)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "parts"}, indent=1))
    return max(codes, default=1)


def play_part(arguments: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix="studio-faults-"))
    folder.chmod(0o755)
    report, began, ended_by = Report(), time.monotonic(), "plan"
    with small_disk(folder / "data") as disk, database_server(arguments.database) as server:
        studio = Studio(folder, server)
        studio.ledger.mkdir()
        studio.clock.write_text("0")
        os.environ.update(studio.environment())
        import django

        usable = [fault for fault in FAULTS if arguments.only in fault.name and fault.database in ("", arguments.database)]
        if not disk:
            report.skipped["disk full"] = "a volume can be mounted by root alone"
            usable = [fault for fault in usable if not fault.needs_disk]
        rng = random.Random(arguments.seed)
        share = tuple(map(int, arguments.share.split("/")))
        rounds = list(one_of_each(rng, usable, share=share) if arguments.each else plan(rng, faults=arguments.faults, real=arguments.real, usable=usable))
        world = World(studio, report)

        def save() -> None:
            if arguments.output:
                arguments.output.write_text(json.dumps(report.as_dict(seed=arguments.seed, began=began, ended_by=ended_by), indent=1) + "\n")

        try:
            django.setup()
            studio.ensure_ready()
            world.prepare(real=any(real for _, real in rounds))
            for number, (fault, real) in enumerate(rounds, start=1):
                if time.monotonic() - began > 60 * arguments.minutes:
                    ended_by = "time"
                    break
                play_and_count(world, fault, random.Random(rng.random()), number=number, real=real)
                save()
            studio.serve.terminate()
            studio.serve.wait(timeout=120)
            world.require_silence()
        finally:
            for process in studio.processes():
                _send(process, signal.SIGKILL)
        save()
    if report.violations:
        print(f"the studio's output is kept in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def play_and_count(world: World, fault: Fault, rng: random.Random, *, number: int, real: bool) -> None:
    report, started = world.report, time.monotonic()
    try:
        play(world, fault, rng, real=real)
    except Exception as error:
        # What the harness itself cannot explain counts too, and the next round is played.
        report.violation("lost", f"{fault.name}: {type(error).__name__}: {error}")
        if world.upload:
            world.upload.give_up = True
    took_s = time.monotonic() - started
    report.tried.setdefault(fault.name, []).append(took_s)
    print(f"{number:4d} {POSTGRESQL if world.studio.server else SQLITE}: {fault.name}{' (tiny model)' if real else ''}: {took_s:.1f} s", flush=True)


@contextlib.contextmanager
def database_server(database: str) -> Iterator[postgres.Server | None]:
    server = postgres.Server() if database == POSTGRESQL else None
    try:
        yield server
    finally:
        if server:
            server.remove()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
