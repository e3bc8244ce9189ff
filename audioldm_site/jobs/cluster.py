"""A django-q2 cluster of one worker that survives what happens to it.

django-q2's own pusher, worker and monitor do the work, each in a process forked from this one; what differs from its `Sentinel`:

- The broker hands out one task at a time, for a lease that this process renews (`broker.py`).
- Any child that dies unasked ends the other two, and three new ones start with new pipes: a process that was killed while it held
  a pipe's lock would block its successors for ever (django-q2 issue 23).
- SIGTERM and SIGINT let the running task save and go back in line, and nothing else is begun. A second signal does not wait.
- Children whose parent was killed end too.
- The same loop says that the worker is alive and looks after jobs whose own worker is not.

This process must never import torch: CUDA does not work in a child forked from a process that loaded it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue as queues
import signal
import socket
import threading
import time
from collections.abc import Callable

from django.db import Error as DatabaseError
from django.db import connections
from django_q.monitor import monitor
from django_q.pusher import pusher
from django_q.worker import worker

from audioldm_site.jobs import lifecycle, queue, runner
from audioldm_site.jobs.broker import LEASE_S, LeaseBroker

log = logging.getLogger(__name__)

GUARD_EVERY_S = 0.2
REAP_EVERY_S = 3.0
JOB_GRACE_S = runner.SHUTDOWN_GRACE_S + runner.TERM_GRACE_S + 10.0
"""How long a worker may take after SIGTERM while its job is saved."""
TASK_GRACE_S = 10.0
"""The same for the datasets queue, whose tasks know nothing of stopping and are delivered again."""
SERVE_PID = "SERVE_PID"
RESTART_PAUSES_S = (0.0, 1.0, 5.0, 15.0)

_fork = multiprocessing.get_context("fork")


class Cluster:
    """The processes behind one queue.

    Args:
        name: one of `queue.QUEUES`.
        device: what the worker computes on, for people.
    """

    def __init__(self, name: str, *, device: str = "") -> None:
        self.queue = name
        self.device = device
        self.worker_name = f"{name}@{socket.gethostname()}:{os.getpid()}"
        self.broker = LeaseBroker(name)
        self._signals = 0
        self._children: list = []
        # Without the `serve` that started it nobody would ever end this process.
        self._serve = int(os.environ.get(SERVE_PID, 0))
        self._grace_s = TASK_GRACE_S if name == "datasets" else JOB_GRACE_S
        self._next: dict[Callable, float] = {}
        self._last_wall = time.time()

    def run(self) -> None:
        """Work until SIGTERM, SIGINT, or the end of the process that started this one."""
        os.environ[queue.WORKER_NAME] = self.worker_name
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # Nobody else can have had this name: a process with this number is dead.
        _quietly(queue.gone, name=self.worker_name)
        _quietly(lifecycle.reap_worker, self.worker_name)
        deaths = 0
        while not self._stopping:
            started = time.monotonic()
            self._spawn()
            self._guard()
            if self._stopping:
                break
            deaths = 1 if time.monotonic() - started > 60 else deaths + 1
            self._end_children()
            _quietly(self.broker.release)
            _quietly(lifecycle.reap_worker, self.worker_name)
            self._pause(RESTART_PAUSES_S[min(deaths, len(RESTART_PAUSES_S)) - 1])
        self._drain()
        _quietly(queue.gone, name=self.worker_name)
        log.info("%s has ended", self.worker_name)

    @property
    def _stopping(self) -> bool:
        return self._signals > 0 or bool(self._serve and os.getppid() != self._serve)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1

    def _spawn(self) -> None:
        # A connection must not be shared across a fork.
        connections.close_all()
        self._tasks, self._results = _fork.Queue(), _fork.Queue()
        self._no_more = _fork.Event()
        self._worker = _start(_work, self._tasks, self._results)
        self._monitor = _start(monitor, self._results, self.broker)
        self._pusher = _start(pusher, self._tasks, self._no_more, self.broker)
        self._children = [self._pusher, self._worker, self._monitor]
        log.info("%s is ready (worker %d)", self.worker_name, self._worker.pid)

    def _guard(self) -> None:
        """Return when a child has died or this cluster is to end."""
        while not self._stopping:
            for child in self._children:
                if not child.is_alive():
                    log.error("%s: %s died (%s); starting afresh", self.worker_name, child.name, _exit_words(child.exitcode))
                    return
            self._look_after()
            time.sleep(GUARD_EVERY_S)

    def _look_after(self) -> None:
        """The lease, the sign of life, and jobs without a worker, each in its own time."""
        self._every(LEASE_S / 4, self.broker.renew)
        self._every(queue.SEEN_EVERY_S, self._seen)
        self._every(REAP_EVERY_S, self._reap)

    def _every(self, period_s: float, call: Callable[[], object]) -> None:
        now = time.monotonic()
        if now >= self._next.get(call, 0.0):
            self._next[call] = now + period_s
            _quietly(call)

    def _seen(self) -> None:
        queue.seen(name=self.worker_name, queue=self.queue, device=self.device)

    def _reap(self) -> None:
        # A computer that slept finds every heartbeat old; its supervisors need a moment to beat again.
        slept = time.time() - self._last_wall > 3 * REAP_EVERY_S
        self._last_wall = time.time()
        if not slept:
            lifecycle.reap()
            lifecycle.enqueue_forgotten()

    def _drain(self) -> None:
        """Let the running task save and go back in line, then end the children."""
        if not self._children:
            return
        self._no_more.set()
        _signal(self._worker, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        while self._worker.is_alive() and time.monotonic() < deadline and self._signals < 2:
            self._every(LEASE_S / 4, self.broker.renew)
            self._every(queue.SEEN_EVERY_S, self._seen)
            time.sleep(0.05)
        self._results.put("STOP")
        self._monitor.join(timeout=5)
        self._end_children()
        # What was handed out and not finished waits for the next start.
        _quietly(self.broker.release)
        if self._signals >= 2:
            _quietly(lifecycle.reap_worker, self.worker_name)

    def _end_children(self) -> None:
        """Without a worker's SIGTERM the trainer of a run would outlive it for some seconds: let it save first where it can."""
        if self._worker.is_alive() and not self._stopping:
            _signal(self._worker, signal.SIGTERM)
            self._worker.join(timeout=self._grace_s)
        for child in self._children:
            if child.is_alive():
                child.kill()
            child.join()
        for pipe in (self._tasks, self._results):
            pipe.cancel_join_thread()
            pipe.close()

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < end:
            self._every(queue.SEEN_EVERY_S, self._seen)
            time.sleep(GUARD_EVERY_S)


class _TaskSource:
    """What the worker takes its tasks from: the pipe, until this worker is told to end."""

    def __init__(self, pipe) -> None:
        self._pipe = pipe

    def get(self) -> dict | str:
        while not runner.shutting_down.is_set():
            try:
                task = self._pipe.get(timeout=0.2)
            except queues.Empty:
                continue
            return "STOP" if runner.shutting_down.is_set() else task
        return "STOP"


def _work(tasks, results) -> None:
    """The worker process. On SIGTERM, or when its parent is gone, it ends as soon as what runs has been saved."""
    worker(_TaskSource(tasks), results, _fork.Value("f", -1), None)


def _start(target: Callable, *args):
    # Not daemonic: those may not have children of their own.
    child = _fork.Process(target=_child, args=(target, os.getpid(), *args), name=target.__name__.strip("_"))
    child.start()
    return child


def _child(target: Callable, parent: int, *args) -> None:
    """What every forked process does first."""
    is_worker = target is _work
    signal.signal(signal.SIGINT, lambda number, frame: None)  # a terminal's Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, (lambda number, frame: runner.shutting_down.set()) if is_worker else signal.SIG_DFL)
    threading.Thread(target=_leave_without, args=(parent, is_worker), daemon=True).start()
    target(*args)


def _leave_without(parent: int, is_worker: bool) -> None:
    """End a process whose parent was killed. (PR_SET_PDEATHSIG would do for Linux alone.)"""
    while os.getppid() == parent:
        time.sleep(0.5)
    if not is_worker:
        os._exit(1)
    runner.shutting_down.set()
    time.sleep(JOB_GRACE_S)
    os._exit(1)


def _signal(process, number: int) -> None:
    if process.is_alive():
        os.kill(process.pid, number)


def _quietly(call: Callable, /, *args, **kwargs) -> None:
    """One failed look at the database must not end the loop that guards a running job."""
    try:
        call(*args, **kwargs)
    except DatabaseError:
        log.exception("the database does not answer")
        connections.close_all()
    except Exception:
        log.exception("%s failed", getattr(call, "__qualname__", call))


def _exit_words(code: int | None) -> str:
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
