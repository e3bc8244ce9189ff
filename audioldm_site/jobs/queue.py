"""Putting work in line, and who works on it.

Three django-q2 queues in the database, one worker each. A queue entry only says "look at this row": it commits or rolls back together
with the row, and a lost, doubled or late one does no harm.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import psutil
from django.utils import timezone
from django_q.models import OrmQ
from django_q.tasks import async_task

from audioldm_site.jobs.broker import LeaseBroker
from audioldm_site.jobs.models import Job, Worker

QUEUES = ("training", "generation", "datasets")
TASKS = {
    "training": "training_app.tasks.run_training",
    "generation": "generation_app.tasks.run_generation",
    "conversion": "training_app.tasks.run_conversion",
    "evaluation": "generation_app.tasks.run_evaluation",
    "listening": "generation_app.tasks.run_listening",
}
"""What executes a job, by its kind."""
WORKER_NAME = "WORKER_NAME"
SEEN_EVERY_S = 3.0
ALIVE_FOR_S = 12.0
"""How long after its last sign a worker counts as alive."""


def enqueue(job: Job) -> bool:
    """Put a job in line at its own place, inside the caller's transaction. False when it stands there already."""
    if _is_in_line(job):
        return False
    broker = LeaseBroker(job.queue_name, waiting_since=job.queued_at)
    async_task(TASKS[job.kind], str(job.pk), task_name=_task_name(job), broker=broker)
    return True


def enqueue_call(queue: str, function: str, *args) -> None:
    """Have a function, named by its dotted path, called by a queue's worker."""
    if queue not in QUEUES:
        raise ValueError(f"unknown queue {queue!r}; known: {', '.join(QUEUES)}")
    async_task(function, *args, broker=LeaseBroker(queue))


def current_worker_name() -> str:
    """The name of the worker that this process belongs to; a process of its own elsewhere, e.g. a command in a terminal."""
    return os.environ.get(WORKER_NAME) or f"{socket.gethostname()}-{os.getpid()}"


def seen(*, name: str, queue: str, device: str = "") -> None:
    """Note that this process is alive and works on a queue."""
    now = timezone.now()
    facts = {"queue": queue, "pid": os.getpid(), "host": socket.gethostname(), "device": device, "seen_at": now}
    Worker.objects.update_or_create(name=name, defaults=facts, create_defaults={**facts, "started_at": now})


def gone(*, name: str) -> None:
    Worker.objects.filter(name=name).delete()


def living_workers():
    return Worker.objects.filter(seen_at__gte=timezone.now() - timedelta(seconds=ALIVE_FOR_S))


def workers_alive(queue: str) -> bool:
    return living_workers().filter(queue=queue).exists()


def is_dead(worker: Worker) -> bool:
    """Whether a worker of this machine is known to be gone; False where one cannot know."""
    if worker.host != socket.gethostname():
        return False
    try:
        process = psutil.Process(worker.pid)
        # Older than the row that it wrote; else the number was given to somebody else since.
        is_it = process.create_time() < worker.started_at.timestamp() + 1
        return not is_it or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _task_name(job: Job) -> str:
    return f"{job.kind} {job.pk}"


def _is_in_line(job: Job) -> bool:
    """Entries that a worker holds do not count: it may be putting the job back this very moment."""
    waiting = OrmQ.objects.filter(key=job.queue_name, lock__lte=timezone.now())
    return any(entry.name() == _task_name(job) for entry in waiting)
