"""One job and the process or function that does it, in this process's own supervision."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection, connections
from django.utils import timezone

from audioldm_site.jobs import lifecycle, processes, runner
from audioldm_site.jobs.models import Status
from gpu.errors import Fault
from tests.faults.conftest import is_running, reached, status_is, steps_of, wait_for
from tests.faults.tasks import command
from training_app.models import TrainingEvent, TrainingRun

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def _not_shutting_down():
    yield
    runner.shutting_down.clear()


def supervise(run: TrainingRun, arguments: list[str] | None = None) -> TrainingRun:
    assert lifecycle.claim(run, worker_name="here")
    runner.supervise(run, arguments or command(run), worker_name="here")
    run.refresh_from_db()
    return run


@pytest.fixture
def in_background():
    """Call something in a thread; joined at the end of the test."""
    threads = []

    def call(function, *args) -> threading.Thread:
        def work() -> None:
            try:
                function(*args)
            finally:
                connections.close_all()

        thread = threading.Thread(target=work)
        thread.start()
        threads.append(thread)
        return thread

    yield call
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "child.py"
    path.write_text(text)
    return [sys.executable, str(path)]


# --- supervise


def test_everything_that_a_child_says_is_recorded(make_run):
    run = supervise(make_run(steps=200, step_s=0.0, in_line=False))

    assert run.status == Status.SUCCEEDED
    assert steps_of(run, 1) == list(range(1, 201))
    assert "trainer: started at 0" in (run.folder / "log.txt").read_text()


@pytest.mark.parametrize(("refused", "status"), [("progress", Status.SUCCEEDED), ("finished", Status.FAILED)])
def test_an_event_that_the_database_refuses_leaves_a_word_in_its_place(make_run, refused, status):
    run = make_run(steps=20, step_s=0.0, in_line=False)
    table = TrainingEvent._meta.db_table
    condition = "NEW.seq % 7 = 0 AND" if refused == "progress" else ""
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} WHEN {condition} NEW.type = '{refused}' BEGIN SELECT RAISE(ABORT, 'not these'); END"
        )
    try:
        supervise(run)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER refuse")

    assert run.status == status
    assert list(run.events.values_list("seq", flat=True)) == list(range(1, run.last_seq + 1))
    said = [event.data.get("message") or event.data.get("detail") for event in run.events.filter(type__in=("waiting", "failed"))]
    assert said and set(said) == {f"the database refused the event {refused}: IntegrityError"}


def test_a_child_that_says_why_it_failed_is_believed(make_run):
    run = supervise(make_run(fail_at=3, in_line=False))

    assert (run.status, run.error_code, run.error_detail) == (Status.FAILED, "training.diverged", "the loss is not a number")


@pytest.mark.parametrize(("signal_name", "words"), [("SIGKILL", "memory"), ("SIGSEGV", "SIGSEGV")])
def test_a_child_that_dies_leaves_its_last_words(make_run, signal_name, words):
    run = supervise(make_run(die_at=3, die_of=signal_name, in_line=False))

    assert (run.status, run.error_code) == (Status.FAILED, "process.died")
    assert words in run.error_detail
    assert "something went wrong here" in run.error_detail


def test_a_child_that_leaves_without_a_word_is_told_apart(make_run, tmp_path):
    run = supervise(make_run(in_line=False), script(tmp_path, "print('bye'); raise SystemExit(7)"))

    assert "exit code 7" in run.error_detail
    assert "bye" in run.error_detail


def test_a_child_starts_where_its_program_is_found(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    run = supervise(make_run(in_line=False), [sys.executable, "-c", "import gpu; print(gpu.__file__)"])

    assert "gpu/__init__.py" in run.error_detail


def test_a_program_that_is_not_there_fails_the_job(make_run):
    run = supervise(make_run(in_line=False), ["/no/such/program"])

    assert run.status == Status.FAILED
    assert "/no/such/program" in run.error_detail


def test_a_stop_saves_first(make_run, in_background):
    run = make_run(steps=5000, in_line=False)
    in_background(supervise, TrainingRun.objects.get(pk=run.pk))
    wait_for(reached(run, 3))

    lifecycle.request_stop(run, save=True)
    wait_for(status_is(run, Status.CANCELLED))

    assert list(run.events.values_list("type", flat=True))[-2:] == ["checkpoint", "stopped"]


def test_a_child_that_does_not_hear_is_killed_in_the_end(make_run, in_background, monkeypatch):
    monkeypatch.setattr(runner, "STOP_GRACE_S", 0.5)
    monkeypatch.setattr(runner, "TERM_GRACE_S", 0.5)
    run = make_run(steps=5000, deaf=True, in_line=False)
    in_background(supervise, TrainingRun.objects.get(pk=run.pk))
    wait_for(reached(run, 3))
    child = processes.processes_of(run)[0].pid

    lifecycle.request_stop(run, save=False)
    wait_for(status_is(run, Status.CANCELLED))

    assert not is_running(child)


def test_a_shutdown_puts_the_job_back_and_it_goes_on(make_run, in_background):
    run = make_run(steps=60, in_line=False)
    thread = in_background(supervise, TrainingRun.objects.get(pk=run.pk))
    wait_for(reached(run, 3))

    runner.shutting_down.set()
    thread.join()
    runner.shutting_down.clear()

    run.refresh_from_db()
    assert run.status == Status.QUEUED
    run = supervise(run)
    assert run.status == Status.SUCCEEDED
    assert steps_of(run, 1) + steps_of(run, 2) == list(range(1, 61))


def test_what_a_child_started_goes_with_it(make_run, tmp_path):
    pid_file = tmp_path / "pid"
    forgetful = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pid_file)!r}, "w").write(str(child.pid))
"""
    supervise(make_run(in_line=False), script(tmp_path, forgetful))

    assert not is_running(int(pid_file.read_text()))


def test_a_child_can_be_interrupted_though_its_worker_cannot(make_run, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = supervise(make_run(in_line=False), script(tmp_path, "import signal; print(signal.getsignal(signal.SIGINT))"))
    finally:
        signal.signal(signal.SIGINT, before)

    assert "default_int_handler" in run.error_detail


def test_the_former_child_is_gone_before_the_next_starts(make_run, monkeypatch):
    monkeypatch.setattr(lifecycle, "ORPHAN_GRACE_S", 0.5)
    run = make_run(in_line=False)
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=processes.child_environment(run))

    supervise(run)

    assert orphan.wait(timeout=5) == -signal.SIGTERM
    assert run.status == Status.SUCCEEDED


def test_a_stranger_with_the_same_number_is_left_alone(make_run):
    run = make_run(in_line=False)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    TrainingRun.objects.filter(pk=run.pk).update(child_pid=stranger.pid)
    try:
        supervise(run)
        assert is_running(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


def test_a_supervisor_whose_job_was_taken_ends_its_child(make_run, in_background, monkeypatch):
    monkeypatch.setattr(lifecycle, "HEARTBEAT_EVERY_S", 0.2)
    monkeypatch.setattr(lifecycle, "ORPHAN_GRACE_S", 20.0)
    run = make_run(steps=300, save_every=1, in_line=False)
    in_background(supervise_quietly, TrainingRun.objects.get(pk=run.pk))
    wait_for(reached(run, 3))

    TrainingRun.objects.filter(pk=run.pk).update(status=Status.QUEUED)
    run = supervise(TrainingRun.objects.get(pk=run.pk))

    assert (run.status, run.attempt) == (Status.SUCCEEDED, 2)
    assert steps_of(run, 2)[0] > 3


def supervise_quietly(run: TrainingRun) -> None:
    lifecycle.claim(run, worker_name="here")
    runner.supervise(run, command(run), worker_name="here")


def test_a_heartbeat_is_kept_while_nothing_is_said(make_run, in_background, monkeypatch):
    monkeypatch.setattr(lifecycle, "HEARTBEAT_EVERY_S", 0.1)
    run = make_run(steps=1, step_s=2.0, in_line=False)
    in_background(supervise, TrainingRun.objects.get(pk=run.pk))
    wait_for(status_is(run, Status.RUNNING))
    first = run.heartbeat_at

    wait_for(lambda: run.refresh_from_db() or (run.heartbeat_at > first and run.child_pid))

    assert run.child_pid == processes.processes_of(run)[0].pid


def test_a_talkative_child_does_not_fill_the_disk(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LOG_LIMIT_BYTES", 10_000)
    monkeypatch.setattr(lifecycle, "HEARTBEAT_EVERY_S", 0.1)
    talk = "import time\nfor i in range(15):\n print('x' * 5000, flush=True); time.sleep(0.1)\nprint('the end')"
    run = supervise(make_run(in_line=False), script(tmp_path, talk))

    assert (run.folder / "log.txt").stat().st_size < 30_000
    assert "the end" in run.error_detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_said_to_be_full(make_run):
    run = make_run(steps=100_000, step_s=0.0, in_line=False)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(run.folder)], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        (run.folder / "config.json").write_text('{"steps": 100000, "step_s": 0}')
        supervise(run)
        assert run.status == Status.FAILED
        assert "No space left" in run.error_detail or "no space left" in run.error_detail
        assert run.events.filter(type="failed").count() == 1
    finally:
        subprocess.run(["umount", str(run.folder)], check=True)
    run.refresh_from_db()


# --- execute


def execute(run: TrainingRun, work) -> TrainingRun:
    assert lifecycle.claim(run, worker_name="here")
    runner.execute(run, work, worker_name="here")
    run.refresh_from_db()
    return run


def test_work_in_this_process_is_recorded_as_it_happens(make_run):
    run = make_run(in_line=False)

    def work(events, should_stop) -> None:
        events.write("progress", step=1, max_steps=2)
        wait_for(reached(run, 1), seconds=5)
        events.write("finished", elapsed_s=0.1)

    assert execute(run, work).status == Status.SUCCEEDED


def test_work_learns_of_a_stop(make_run):
    run = make_run(in_line=False)

    def work(events, should_stop) -> None:
        lifecycle.request_stop(TrainingRun.objects.get(pk=run.pk))
        wait_for(should_stop, seconds=5)
        events.write("stopped", step=1)

    assert execute(run, work).status == Status.CANCELLED


def test_work_that_a_shutdown_stops_goes_back_in_line(make_run):
    def work(events, should_stop) -> None:
        runner.shutting_down.set()
        assert should_stop()
        events.write("stopped", step=1)

    assert execute(make_run(in_line=False), work).status == Status.QUEUED


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Fault("checkpoint.missing", "it is gone"), "checkpoint.missing"),
        (MemoryError(), "memory.exhausted"),
        (OutOfMemoryError("CUDA out of memory"), "memory.exhausted"),
        (OSError(28, "No space left on device"), "disk.full"),
        (KeyError("unet"), "internal"),
    ],
)
def test_what_work_raises_becomes_a_failure(make_run, error, code):
    def work(events, should_stop) -> None:
        raise error

    run = execute(make_run(in_line=False), work)

    assert (run.status, run.error_code) == (Status.FAILED, code)
    assert run.events.last().data["code"] == code


def test_work_that_returns_without_an_ending_is_our_mistake(make_run):
    run = execute(make_run(in_line=False), lambda events, should_stop: None)

    assert (run.status, run.error_code) == (Status.FAILED, "internal")


def test_asking_whether_to_stop_is_cheap(make_run, django_assert_max_num_queries):
    def work(events, should_stop) -> None:
        with django_assert_max_num_queries(3):
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                should_stop()
        events.write("finished")

    execute(make_run(in_line=False), work)


# --- what is left when things go wrong


def test_a_full_disk_is_named_where_the_child_could_not_say_so(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))

    run = supervise(make_run(in_line=False), script(tmp_path, "raise SystemExit(1)"))

    assert (run.status, run.error_code) == (Status.FAILED, "disk.full")


def test_a_job_whose_last_sign_lies_in_the_future_is_not_waited_for_until_then(make_run):
    run = make_run(in_line=False)
    assert lifecycle.claim(run, worker_name="here")
    now = timezone.now()
    TrainingRun.objects.filter(pk=run.pk).update(heartbeat_at=now + timedelta(hours=1))

    assert lifecycle.reap(now=now) == []

    assert lifecycle.reap(now=now + timedelta(seconds=lifecycle.LOST_AFTER_S + 1)) == [run]


@pytest.mark.parametrize(("word", "is_killed"), [("qcluster", True), ("something", False)])
def test_a_silent_worker_is_killed_before_its_job_goes_on_elsewhere(make_run, word, is_killed):
    run = make_run(in_line=False)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", word])
    try:
        assert lifecycle.claim(run, worker_name=f"training@{socket.gethostname()}:1")
        lifecycle.heartbeat(run, child_pid=child.pid)

        lifecycle.reap(now=timezone.now() + timedelta(seconds=lifecycle.LOST_AFTER_S + 1))

        run.refresh_from_db()
        assert run.status == Status.QUEUED
        if is_killed:
            assert child.wait(timeout=10) == -signal.SIGKILL
        else:
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_log_that_cannot_be_kept_does_not_end_the_run(make_run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(runner, "LOG_LIMIT_BYTES", 1_000)
    monkeypatch.setattr(lifecycle, "HEARTBEAT_EVERY_S", 0.1)
    monkeypatch.setattr(runner.shutil, "copyfile", full)
    talk = "import time\nfor i in range(5):\n print('x' * 5000, flush=True); time.sleep(0.1)\nraise SystemExit(7)"

    run = supervise(make_run(in_line=False), script(tmp_path, talk))

    assert "exit code 7" in run.error_detail


def test_a_disk_that_was_full_when_the_child_ended_is_named_although_there_is_room_again(make_run, tmp_path, monkeypatch):
    free = iter([0])  # rows that lie on the same disk are written only when somebody has made room
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, next(free, 10**9)))

    run = supervise(make_run(in_line=False), script(tmp_path, "raise SystemExit(1)"))

    assert (run.status, run.error_code) == (Status.FAILED, "disk.full")
