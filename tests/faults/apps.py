from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from django.apps import AppConfig

CLOCK = "HARNESS_CLOCK"


class FaultsConfig(AppConfig):
    """Has the training queue run the trainer that trains nothing."""

    name = "tests.faults"
    default = True

    def ready(self) -> None:
        from audioldm_site.jobs import queue
        from training_app.models import TrainingRun

        TrainingRun.apply_event = lambda self, event: None  # its checkpoints are no files
        queue.TASKS["training"] = "tests.faults.tasks.run_training"


class HarnessConfig(AppConfig):
    """Has the queues do the harness's jobs, and every process of the site tell the time by a clock that can be moved."""

    name = "tests.faults"

    def ready(self) -> None:
        from audioldm_site.jobs import queue
        from audioldm_site.uploads import services as uploads
        from training_app.models import Conversion

        uploads.ROOM_BYTES = 2**20  # the harness's whole disk is smaller than what is left free elsewhere
        for kind in ("training", "generation", "conversion"):
            queue.TASKS[kind] = f"tests.faults.tasks.harness_{kind}"
        Conversion.apply_event = lambda self, event: None  # what it writes is no checkpoint
        if CLOCK in os.environ:
            _follow(Path(os.environ[CLOCK]))


def _follow(clock: Path) -> None:
    """Add the seconds that stand in a file to what the site takes for the time."""
    from django.utils import timezone

    now, wall = timezone.now, time.time

    def offset_s() -> float:
        return float(clock.read_text() or 0)

    timezone.now = lambda: now() + timedelta(seconds=offset_s())
    time.time = lambda: wall() + offset_s()
