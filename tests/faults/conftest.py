"""Real processes on a real database file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from django.conf import settings as django_settings
from django.db import connection

from audioldm_site.jobs import processes, queue
from audioldm_site.jobs.models import Status
from gpu.events import read_events
from training_app.models import TrainingRun

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _trainer(request, monkeypatch, transactional_db) -> None:
    """The trainer that trains nothing, except in modules that say REAL_TRAINER."""
    if getattr(request.module, "REAL_TRAINER", False):
        return
    monkeypatch.setitem(queue.TASKS, "training", "tests.faults.tasks.run_training")
    monkeypatch.setattr(TrainingRun, "apply_event", lambda self, event: None)


@pytest.fixture
def make_run(alice) -> Callable[..., TrainingRun]:
    def make(*, steps: int = 20, in_line: bool = True, **config) -> TrainingRun:
        run = TrainingRun(owner=alice, name="a run", dataset_name="sounds", config={"max_train_steps": steps})
        run.folder.mkdir(parents=True)
        (run.folder / "config.json").write_text(json.dumps({"steps": steps, **config}))
        run.save()
        if in_line:
            queue.enqueue(run)
        return run

    return make


@pytest.fixture
def environment(request) -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.faults.settings",
        "DATA_DIR": str(django_settings.DATA_DIR),
        "TEST_DATABASE": str(connection.settings_dict["NAME"]),
        "SECRET_KEY": django_settings.SECRET_KEY,
        "PYTHONPATH": str(ROOT),
        "FAKE_TRAINER": "0" if getattr(request.module, "REAL_TRAINER", False) else "1",
    }


@pytest.fixture
def start(environment, tmp_path):
    """Start `manage.py …`; whatever is left of it at the end of the test is killed."""
    started: list[subprocess.Popen] = []

    def start_command(*arguments: str, **extra: str) -> subprocess.Popen:
        output = open(tmp_path / f"output-{len(started)}.txt", "wb")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={**environment, **extra},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        process.output = tmp_path / f"output-{len(started)}.txt"
        started.append(process)
        return process

    yield start_command
    for process in started:
        for victim in family(process.pid):
            kill(victim)
        kill(process.pid)
        process.wait()
        print(process.output.read_text(errors="replace"))
    for process in psutil.process_iter():
        try:
            if process.environ().get("DATA_DIR") == str(django_settings.DATA_DIR) and process.pid != os.getpid():
                kill(process.pid)
        except psutil.Error:
            continue


@pytest.fixture
def start_cluster(start):
    return lambda name="training", **extra: start("qcluster", Q_CLUSTER_NAME=name, **extra)


def wait_for(condition: Callable[[], object], *, seconds: float = 30.0):
    """The condition's first true value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s in vain")


def status_is(run: TrainingRun, *statuses: Status) -> Callable[[], bool]:
    def check() -> bool:
        run.refresh_from_db()
        return run.status in statuses

    return check


def reached(run: TrainingRun, step: int) -> Callable[[], bool]:
    return lambda: run.events.filter(type="progress", data__step__gte=step).exists()


def family(pid: int) -> list[int]:
    """A process's living descendants."""
    try:
        return [process.pid for process in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def the_trainer(run: TrainingRun) -> int:
    return wait_for(lambda: processes.processes_of(run))[0].pid


def the_worker(run: TrainingRun) -> int:
    return psutil.Process(the_trainer(run)).ppid()


def assert_whole(run: TrainingRun) -> None:
    """No event is missing or doubled, and the file says what the rows say."""
    seqs = list(run.events.values_list("seq", flat=True))
    assert seqs == list(range(1, len(seqs) + 1))
    assert [event.seq for event in read_events(run.folder)] == seqs
    assert run.last_seq == len(seqs)


def steps_of(run: TrainingRun, attempt: int) -> list[int]:
    return [event.data["step"] for event in run.events.filter(type="progress", attempt=attempt)]
