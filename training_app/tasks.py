"""What the training worker executes, and what the datasets worker does with checkpoints.

Delivering a task twice, or after its job has ended, does nothing.
"""

from __future__ import annotations

import sys

from audioldm_site.jobs import lifecycle, runner
from audioldm_site.jobs.models import Status
from audioldm_site.jobs.queue import current_worker_name
from training_app import conversions, folders, pretraining, storage
from training_app.models import Checkpoint, Conversion, TrainingRun

CONVERSION_GRACE_S = 3.0
"""A conversion has nothing to save: a worker that must end does not wait for it, and the next one begins it anew."""


def run_training(run_id: str) -> None:
    run = TrainingRun.objects.filter(pk=run_id).first()
    if run is None or not lifecycle.claim(run, worker_name=current_worker_name()):
        return
    execute_run(run, worker_name=current_worker_name())


def execute_run(run: TrainingRun, *, worker_name: str) -> None:
    """Supervise a claimed run until its process has ended."""
    command = pretraining.command(run) if run.is_pretraining else [sys.executable, "-m", "gpu", "finetune", str(run.folder)]
    runner.supervise(run, command, worker_name=worker_name)


def run_conversion(conversion_id: str) -> None:
    conversion = Conversion.objects.filter(pk=conversion_id).select_related("base").first()
    if conversion is None or not lifecycle.claim(conversion, worker_name=current_worker_name()):
        return
    execute_conversion(conversion, worker_name=current_worker_name())


def execute_conversion(conversion: Conversion, *, worker_name: str) -> None:
    """Carry out a claimed conversion: by the converter in a process of its own, or here where no torch is needed."""
    if conversion.is_export or conversion.config["kind"] in conversions.CHILD_KINDS:
        conversions.prepare(conversion)
        runner.supervise(conversion, converter(conversion), worker_name=worker_name, shutdown_grace_s=CONVERSION_GRACE_S)
    else:
        runner.execute(conversion, lambda events, should_stop: folders.bring_in(conversion, events, should_stop), worker_name=worker_name)
    conversion.refresh_from_db()
    if not conversion.is_active and conversion.status != Status.SUCCEEDED:
        # Once more, now that no process of it is left.
        conversions.clear_unfinished(conversion)
    conversions.sweep()


def converter(conversion: Conversion) -> list[str]:
    """The command of its process."""
    return [sys.executable, "-m", "gpu", "convert", "--job", str(conversion.folder)]


def verify_checkpoint(checkpoint_id: str) -> None:
    """Hash a checkpoint's files; the answer stands in its row."""
    checkpoint = Checkpoint.objects.filter(pk=checkpoint_id).first()
    if checkpoint:
        storage.verify(checkpoint)
