"""The state of the machine as pages show it: room on the disk, and who works on which queue."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from audioldm_site.jobs.models import Worker
from audioldm_site.jobs.queue import ALIVE_FOR_S, QUEUES

LOW_SPACE_BYTES = 5 * 10**9


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The disk under DATA_DIR. One that is a container's own is deleted with it."""

    folder: Path
    total_bytes: int
    free_bytes: int
    is_containers_own: bool

    @property
    def used_bytes(self) -> int:
        return self.total_bytes - self.free_bytes

    @property
    def is_low(self) -> bool:
        return self.free_bytes < LOW_SPACE_BYTES


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """Who works on a queue. `seen_at` and `device` are of the worker that was seen last, dead or alive."""

    queue: str
    alive: bool
    device: str
    seen_at: datetime | None


def disk() -> Disk:
    usage = shutil.disk_usage(settings.DATA_DIR)
    on_root = settings.DATA_DIR.stat().st_dev == Path("/").stat().st_dev
    return Disk(folder=settings.DATA_DIR, total_bytes=usage.total, free_bytes=usage.free, is_containers_own=on_root and in_container())


def in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "KUBERNETES_SERVICE_HOST" in os.environ or "RUNPOD_POD_ID" in os.environ


def queue_states() -> list[QueueState]:
    """Every queue in the order of the house; one query."""
    latest: dict[str, Worker] = {worker.queue: worker for worker in Worker.objects.order_by("seen_at")}
    now = timezone.now()
    return [
        QueueState(
            queue=queue,
            alive=queue in latest and (now - latest[queue].seen_at).total_seconds() < ALIVE_FOR_S,
            device=latest[queue].device if queue in latest else "",
            seen_at=latest[queue].seen_at if queue in latest else None,
        )
        for queue in QUEUES
    ]
