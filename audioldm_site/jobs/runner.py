"""Carries out a claimed job: a child process that is watched (`supervise`), or a function in this process (`execute`).

Both copy the job's events into rows as they come, keep its heartbeat, pass on a stop, and leave it with an ending or back in line.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
from django.conf import settings
from django.db import DataError, IntegrityError, NotSupportedError, connection
from django.db import Error as DatabaseError

from audioldm_site import logs
from audioldm_site.jobs import lifecycle
from audioldm_site.jobs.models import Job
from audioldm_site.jobs.processes import child_environment, signal_group
from gpu.errors import Fault
from gpu.events import ENDINGS, FAILED, WAITING, Event, EventTail, EventWriter

log = logging.getLogger(__name__)

REFUSED = (DataError, IntegrityError, NotSupportedError)
"""The database is there and will not have these values."""

LOG_FILE = "log.txt"
LOG_LIMIT_BYTES = 10_000_000
LOG_TAIL_BYTES, LOG_TAIL_LINES = 8_000, 20
EVENTS_EVERY_S = 0.05
"""One transaction per event falls behind a fast trainer (about 50 a second), one per batch does not."""
BATCH = 500
STATUS_EVERY_S = 0.5
STOP_LOOKS_EVERY_S = 0.2
SAVE_GRACE_S = 300.0
"""How long a stop that saves may take: a full model with its optimizer is several gigabytes."""
STOP_GRACE_S = 20.0
EXIT_GRACE_S = 15.0
"""How long a child may take to leave after its ending."""
TERM_GRACE_S = 5.0
SHUTDOWN_GRACE_S = 60.0
FULL_DISK_BYTES = 2**20
"""With less than this free, a process may not even be able to say why it ends."""

shutting_down = threading.Event()
"""Set when this worker was told to end: what runs is saved and put back in line."""


@logs.about_its_job
def supervise(job: Job, command: list[str], *, worker_name: str, shutdown_grace_s: float = SHUTDOWN_GRACE_S) -> None:
    """Start `command` for a claimed job in a session of its own and look after it until it has ended.

    Args:
        shutdown_grace_s: how long it may take to save and end when this worker is told to.

    Returns when no process of the child is left and the job has an ending, is back in line, or belongs to another attempt.
    """
    try:
        if not lifecycle.prepare_attempt(job):
            return
        with _Child(job, command) as child:
            log.info("%s %s is process %d of %s", job.kind, job.pk, child.pid, worker_name)
            _watch(job, child, shutdown_grace_s=shutdown_grace_s)
        _judge(job, child)
    except DatabaseError:
        # The row cannot be written either; whoever finds its heartbeat old goes on from here.
        raise
    except Exception as error:
        log.exception("%s %s cannot be supervised", job.kind, job.pk)
        lifecycle.fail(job, _as_fault(error))


@logs.about_its_job
def execute(job: Job, work: Callable[[EventWriter, Callable[[], bool]], None], *, worker_name: str) -> None:
    """Call `work(events, should_stop)` for a claimed job in this process.

    `work` writes its own `finished`, or `stopped` once `should_stop()` was true; what it raises becomes `failed`.
    """
    fault = None
    try:
        if not lifecycle.prepare_attempt(job):
            return
        with EventWriter(job.folder, attempt=job.attempt) as events, _Recorder(job) as recorder:
            work(events, recorder.should_stop)
    except Exception as error:
        log.exception("%s %s failed on %s", job.kind, job.pk, worker_name)
        fault = _as_fault(error)
    # What the recorder's last look did not see.
    if not (lifecycle.still_runs(job) and lifecycle.resync(job)):
        return
    if fault is None and (shutting_down.is_set() or job.stop_requested_at):
        lifecycle.put_back(job, blameless=True)
    else:
        lifecycle.fail(job, fault or Fault("internal", f"the {job.kind} returned without saying how it ended"))


class _Child:
    """A job's process, leader of its own session and group. Leaving the `with` block ends whatever is left of it."""

    def __init__(self, job: Job, command: list[str]) -> None:
        self.job, self.command = job, command
        self.log_path = job.folder / LOG_FILE
        self.returncode: int | None = None
        self.free_bytes: int | None = None
        """On its disk when it was found to have ended. Later there may be room again: rows on a full disk wait for that too."""

    def __enter__(self) -> _Child:
        with open(self.log_path, "ab", buffering=0) as log_file:
            self._process = subprocess.Popen(
                self.command,
                # `python -m gpu` is found from here, wherever the command was typed.
                cwd=settings.BASE_DIR,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env=child_environment(self.job),
                start_new_session=True,
                # Workers ignore SIGINT, and a child inherits what its parent ignores.
                preexec_fn=_default_signals,
            )
        self.pid = self._process.pid
        self._state = psutil.Process(self.pid)
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Not waited for yet, so its number still stands for it and its group.
        signal_group(self.pid, signal.SIGKILL)
        self.returncode = self._process.wait()

    def is_over(self) -> bool:
        """Whether it has ended; it stays a zombie, and its process id its own, until the `with` block is left."""
        try:
            is_over = self._state.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            is_over = True
        if is_over and self.free_bytes is None:
            self.free_bytes = shutil.disk_usage(self.job.folder).free
        return is_over

    def end(self) -> None:
        """SIGTERM, then SIGKILL, to the whole group."""
        signal_group(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + TERM_GRACE_S
        while not self.is_over() and time.monotonic() < deadline:
            time.sleep(0.05)
        signal_group(self.pid, signal.SIGKILL)
        while not self.is_over():
            time.sleep(0.05)

    def cap_log(self) -> None:
        """Copy and truncate: the child holds the file open for appending."""
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_LIMIT_BYTES:
            older = self.log_path.with_suffix(".1.txt")
            try:
                shutil.copyfile(self.log_path, older)
            except OSError:
                # A full disk: the older half goes, and the run goes on.
                log.exception("%s could not be kept", older)
                older.unlink(missing_ok=True)
            os.truncate(self.log_path, 0)


class _EventCopier:
    """Copies a growing events file into rows. A batch that the database did not take stays `pending` for the next call."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tail = EventTail(job.folder, after=job.last_seq)
        self.pending: list[Event] = []

    def copy(self) -> list[Event]:
        """What was recorded by this call, at most `BATCH` events."""
        if not self.pending:
            self.pending = self._tail.read(limit=BATCH)
        if not self.pending or _patiently(self._record, self.pending) is None:
            return []
        recorded, self.pending = self.pending, []
        return recorded

    def _record(self, events: list[Event]) -> int:
        try:
            return lifecycle.record_events(self._job, events)
        except REFUSED as error:
            # Asking again would be refused again, for ever; each by itself, only the culprit loses what it said.
            if len(events) > 1:
                return sum(self._record([event]) for event in events)
            log.error("%s %s: event %d (%s) was refused by the database", self._job.kind, self._job.pk, events[0].seq, events[0].type, exc_info=True)
            return lifecycle.record_events(self._job, [_instead_of(events[0], error)])


def _instead_of(event: Event, error: Exception) -> Event:
    """What stands at the number of an event that cannot be kept: an ending still ends its job."""
    words = f"the database refused the event {event.type}: {type(error).__name__}"
    if event.type in ENDINGS:
        return replace(event, type=FAILED, data=Fault("internal", words).as_data())
    return replace(event, type=WAITING, data={"message": words})


class _Stop:
    """Passes the wish to stop on to the child, and says when its time is up."""

    def __init__(self, job: Job) -> None:
        self._file = job.folder / "control" / "stop"
        self._asked: str | None = None
        self._deadline = float("inf")

    def ask(self, *, save: bool, grace_s: float) -> None:
        """Once, and again when `now` follows `save` or the time grows shorter."""
        wanted = "save" if save else "now"
        if wanted != self._asked:
            self._asked = wanted
            _write_whole(self._file, wanted)
        self._deadline = min(self._deadline, time.monotonic() + grace_s)

    @property
    def is_overdue(self) -> bool:
        return time.monotonic() > self._deadline


def _watch(job: Job, child: _Child, *, shutdown_grace_s: float) -> None:
    """Follow the child until it is gone and everything that it wrote is recorded."""
    events_file = _EventCopier(job)
    stop = _Stop(job)
    ended_at: float | None = None
    next_look, next_beat = 0.0, 0.0
    while True:
        over = child.is_over()  # before reading, so that its last words are read after it
        events = events_file.copy()
        if over and not events and not events_file.pending:
            return
        now = time.monotonic()
        if ended_at is None and any(event.type in ENDINGS for event in events):
            ended_at = now
        if now >= next_beat:
            next_beat = now + lifecycle.HEARTBEAT_EVERY_S
            child.cap_log()
            if _patiently(lifecycle.heartbeat, job, child_pid=child.pid) is False and ended_at is None:
                log.warning("%s %s: attempt %d is over, its process is ended", job.kind, job.pk, job.attempt)
                child.end()
        if now >= next_look and ended_at is None:
            next_look = now + STATUS_EVERY_S
            _pass_on_stop(job, stop, shutdown_grace_s=shutdown_grace_s)
        if not over and (stop.is_overdue or (ended_at is not None and now > ended_at + EXIT_GRACE_S)):
            child.end()
        if events_file.pending or (len(events) < BATCH and not over):
            time.sleep(EVENTS_EVERY_S)


def _pass_on_stop(job: Job, stop: _Stop, *, shutdown_grace_s: float) -> None:
    if shutting_down.is_set():
        stop.ask(save=True, grace_s=shutdown_grace_s)
    row = _patiently(type(job).objects.filter(pk=job.pk).values("stop_requested_at", "stop_without_saving").first)
    if row and row["stop_requested_at"]:
        save = not row["stop_without_saving"]
        stop.ask(save=save, grace_s=SAVE_GRACE_S if save else STOP_GRACE_S)


def _judge(job: Job, child: _Child) -> None:
    """Give the job an ending where its child died without one."""
    if not lifecycle.still_runs(job):
        return
    if shutting_down.is_set() or job.stop_requested_at:
        lifecycle.put_back(job, blameless=True)
    else:
        lifecycle.fail(job, _death(child))


def _death(child: _Child) -> Fault:
    code = child.returncode
    if code is not None and code > 0 and child.free_bytes is not None and child.free_bytes < FULL_DISK_BYTES:
        words = f"the process ended with exit code {code} and could not say why: {child.free_bytes} bytes were free under {child.job.folder}"
        return Fault("disk.full", f"{words}\n{log_tail(child.log_path)}".strip(), operator=True)
    if code == -signal.SIGKILL:
        how = "was killed (SIGKILL): by somebody, or by the system because the memory ran out"
    elif code is not None and code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    else:
        how = f"ended with exit code {code} without saying why"
    return Fault("process.died", f"the process {how}.\n{log_tail(child.log_path)}".strip(), operator=code == -signal.SIGKILL)


def log_tail(path: Path) -> str:
    """The last lines of a log, for whoever has to find out what happened."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


class _Recorder:
    """A thread that copies the events of in-process work into rows while the work holds the main thread."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._done = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"recorder of {job.pk}", daemon=True)
        self._stop_known, self._looked_at = False, 0.0

    def __enter__(self) -> _Recorder:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    def should_stop(self) -> bool:
        """Whether the work ought to end; asks the database at most five times a second."""
        now = time.monotonic()
        if not self._stop_known and now - self._looked_at >= STOP_LOOKS_EVERY_S:
            self._looked_at = now
            row = _patiently(type(self._job).objects.filter(pk=self._job.pk).values("stop_requested_at").first)
            self._stop_known = bool(row and row["stop_requested_at"])
        return self._stop_known or self._lost.is_set() or shutting_down.is_set()

    def _run(self) -> None:
        # A copy: the work's own object must not change under its feet.
        job = type(self._job).objects.get(pk=self._job.pk)
        events = _EventCopier(job)
        next_beat = 0.0
        try:
            while not self._done.wait(EVENTS_EVERY_S):
                events.copy()
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + lifecycle.HEARTBEAT_EVERY_S
                    if _patiently(lifecycle.heartbeat, job, child_pid=os.getpid()) is False:
                        self._lost.set()
        except Exception:
            log.exception("%s %s: its events cannot be recorded", job.kind, job.pk)
            self._lost.set()
        finally:
            connection.close()


def _patiently(call: Callable, /, *args, **kwargs):
    """Call the database; while it is away (restarted, locked) go on with what needs none and return None.

    Nothing is lost by that: events wait in their file and heartbeats are repeated.
    """
    try:
        return call(*args, **kwargs)
    except DatabaseError:
        log.warning("the database does not answer", exc_info=True)
        connection.close_if_unusable_or_obsolete()
        return None


def _as_fault(error: Exception) -> Fault:
    """The code and the sentence for whatever ended a job."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Fault("memory.exhausted", f"the memory ran out: {error}".strip(), operator=True)
    if isinstance(error, OSError) and error.errno == 28:
        return Fault("disk.full", f"the disk is full: {error}", operator=True)
    return Fault("internal", traceback.format_exception_only(error)[-1].strip())


def _write_whole(path: Path, text: str) -> None:
    """The reader sees the whole text or no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text)
    draft.replace(path)


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
