from __future__ import annotations

import sys
import time
from pathlib import Path

from audioldm_site.jobs import lifecycle, runner
from audioldm_site.jobs.queue import current_worker_name
from training_app.models import TrainingRun

TRAINER = Path(__file__).with_name("trainer.py")


def command(run: TrainingRun) -> list[str]:
    return [sys.executable, str(TRAINER), str(run.folder)]


def run_training(run_id: str) -> None:
    run = TrainingRun.objects.get(pk=run_id)
    if lifecycle.claim(run, worker_name=current_worker_name()):
        runner.supervise(run, command(run), worker_name=current_worker_name())


def write_file(path: str, seconds: float = 0.0) -> None:
    """What the datasets queue is asked to do."""
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write("done\n")
