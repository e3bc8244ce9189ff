"""What the training worker executes. Delivering a task twice, or after its run has ended, does nothing."""

from __future__ import annotations

import sys

from audioldm_site.jobs import lifecycle, runner
from audioldm_site.jobs.queue import current_worker_name
from training_app.models import TrainingRun


def run_training(run_id: str) -> None:
    run = TrainingRun.objects.filter(pk=run_id).first()
    if run is None or not lifecycle.claim(run, worker_name=current_worker_name()):
        return
    execute_run(run, worker_name=current_worker_name())


def execute_run(run: TrainingRun, *, worker_name: str) -> None:
    """Supervise a claimed run until its process has ended."""
    runner.supervise(run, [sys.executable, "-m", "gpu", "finetune", str(run.folder)], worker_name=worker_name)
