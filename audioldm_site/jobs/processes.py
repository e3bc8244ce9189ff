"""Finding and ending the processes of a job, also those that a dead supervisor left behind.

Every child of a job carries `JOB_ID` in its environment and passes it on, so a process is recognised by what it is, not by a number
that the system may have given to somebody else since.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterable

import psutil

from audioldm_site.jobs.models import Job

JOB_ID, JOB_ATTEMPT = "JOB_ID", "JOB_ATTEMPT"


def child_environment(job: Job) -> dict[str, str]:
    return {**os.environ, JOB_ID: str(job.pk), JOB_ATTEMPT: str(job.attempt)}


def processes_of(job: Job) -> list[psutil.Process]:
    """The living processes of a job on this machine, the caller and its parents left out."""
    own = {os.getpid()} | {parent.pid for parent in psutil.Process().parents()}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and process.environ().get(JOB_ID) == str(job.pk) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def end_processes(job: Job, *, grace_s: float) -> None:
    """Return when no process of the job is left: wait `grace_s` for them to end by themselves, then SIGTERM, then SIGKILL."""
    for wait_s, signal_number in ((grace_s, None), (5, signal.SIGTERM), (10, signal.SIGKILL)):
        left = processes_of(job)
        if signal_number is not None:
            _send(left, signal_number)
        deadline = time.monotonic() + wait_s
        while left and time.monotonic() < deadline:
            # Not waited for: a child belongs to whoever started it.
            time.sleep(0.1)
            left = processes_of(job)
        if not left:
            return


def end_worker(job: Job) -> bool:
    """Kill the worker that executes a job in itself, once the job is taken from it; its cluster starts another. Whether there was one.

    It may only have been frozen, and would go on with the job beside whoever has it next.
    """
    if job.child_pid in (None, os.getpid()) or f"@{socket.gethostname()}:" not in job.worker_name:
        return False
    try:
        process = psutil.Process(job.child_pid)
        # It was there when it claimed the job; a later process has got its number since, and a child of its own is no worker.
        if process.create_time() > job.started_at.timestamp() + 1 or not set(process.cmdline()) & {"qcluster"}:
            return False
        process.kill()
    except psutil.Error:
        return False
    return True


def signal_group(pid: int, signal_number: int) -> None:
    """Signal the process group that `pid` leads; nothing happens when it is gone. Only for a child that was not yet waited for."""
    try:
        os.killpg(pid, signal_number)
    except ProcessLookupError:
        pass
    except PermissionError:
        # macOS answers EPERM for a group of zombies.
        pass


def _send(processes: Iterable[psutil.Process], signal_number: int) -> None:
    for process in processes:
        try:
            process.send_signal(signal_number)
        except psutil.Error:
            continue
