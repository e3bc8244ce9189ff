"""Run one queue's worker: `Q_CLUSTER_NAME=training manage.py qcluster`. Takes the place of django-q2's command of the same name."""

from __future__ import annotations

import os

from django.core.management.base import BaseCommand, CommandError

from audioldm_site import hardware
from audioldm_site.jobs.cluster import Cluster
from audioldm_site.jobs.queue import QUEUES


class Command(BaseCommand):
    requires_system_checks: list[str] = []
    help = "Work on one queue until stopped: set Q_CLUSTER_NAME to training, generation or datasets. `serve` starts all three."

    def handle(self, **options) -> None:
        name = os.environ.get("Q_CLUSTER_NAME", "")
        if name not in QUEUES:
            raise CommandError(f"Q_CLUSTER_NAME ({name!r}) must be one of {', '.join(QUEUES)}")
        Cluster(name, device=hardware.device()).run()
