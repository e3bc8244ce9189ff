"""Everything that changes evaluations."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from audioldm_site.jobs import lifecycle, queue
from datasets_app import services as datasets
from datasets_app.models import Dataset
from generation_app.models import Evaluation
from gpu.config import EvaluateConfig, EvaluateJob, EvaluateSubject
from gpu.errors import Fault
from gpu.evaluation.report import AGAINST, CHECKPOINT
from gpu.events import FINISHED, Event
from gpu.manifest import TRAIN, ManifestClip, read_manifest, write_manifest
from training_app import storage
from training_app.models import Checkpoint, TrainingRun


def create_evaluation(
    *,
    owner,
    checkpoint: Checkpoint,
    dataset: Dataset,
    values: Mapping[str, Any],
    against: Checkpoint | None = None,
    ears: Checkpoint | Path | None = None,
    enqueue: bool = True,
) -> Evaluation:
    """Freeze what is compared with what, and put it in line.

    Args:
        values: parameters by name; what is absent comes from the checkpoint's own recommendation, then from the configuration.
        ears: whose CLAP judges: a checkpoint, or a folder that transformers saved one in; the checkpoint's own when None.
        enqueue: False leaves it waiting without a queue entry, for a caller that executes it itself.
    Raises:
        ConfigError: wrong values, by name.
        Fault: a checkpoint or the dataset cannot be used.
    """
    for used in filter(None, (checkpoint, against)):
        require_playable(used)
    if against is not None and against.pk == checkpoint.pk:
        raise Fault("evaluation.same_checkpoint", f"{checkpoint.name} would be compared with itself")
    config = EvaluateConfig.parse({**EvaluateConfig.known(storage.recommended(checkpoint)), **values})
    judge = checkpoint if ears is None else ears
    evaluation = Evaluation(
        owner=owner,
        checkpoint=checkpoint,
        against=against,
        dataset=dataset,
        dataset_name=dataset.name,
        ears_name=(judge.name if isinstance(judge, Checkpoint) else str(judge))[:160],
        config=config.to_dict(),
    )
    evaluation.folder.mkdir(parents=True)
    try:
        evaluation.manifest_digest = _freeze_clips(evaluation, checkpoint, against)
        job = EvaluateJob(
            config=config,
            subjects=[subject(CHECKPOINT, checkpoint), *([subject(AGAINST, against)] if against else [])],
            ears=str(storage.root_model(judge).folder if isinstance(judge, Checkpoint) else judge),
            ears_name=evaluation.ears_name,
            dataset=dataset.name,
            manifest_digest=evaluation.manifest_digest,
            cache_dir=str(settings.DATA_DIR / "cache"),
        )
        job.write(evaluation.folder)
        with transaction.atomic():
            evaluation.full_clean()
            evaluation.save()
            if enqueue:
                queue.enqueue(evaluation)
    except BaseException:
        shutil.rmtree(evaluation.folder, ignore_errors=True)
        raise
    return evaluation


def base_of(checkpoint: Checkpoint) -> Checkpoint | None:
    """What a run's checkpoint was trained from, and is compared with unless somebody says otherwise; None for a whole model."""
    return checkpoint.base if checkpoint.format == Checkpoint.Format.RUN else None


def request_stop(job) -> bool:
    """Ask a waiting or running evaluation or listening test to end; False when it had ended already."""
    return lifecycle.request_stop(job, save=False)


def retry(job) -> bool:
    """Put a stopped or failed one back in line; it goes on with what it has made. False when it is not one."""
    with transaction.atomic():
        if not lifecycle.requeue(job):
            return False
        (job.folder / "control" / "stop").unlink(missing_ok=True)
        queue.enqueue(job)
    return True


def delete(job) -> None:
    """Remove one that has ended, with its sounds.

    Raises:
        Fault: it is still waiting or running.
    """
    if job.is_active:
        raise Fault("run.active", "it has not ended; stop it first")
    folder = job.folder
    job.delete()
    shutil.rmtree(folder, ignore_errors=True)


def apply_event(evaluation: Evaluation, event: Event) -> None:
    """What an event means for the row. Runs inside the transaction that records the event."""
    if event.type == FINISHED:
        values = {"elapsed_s": event.data.get("elapsed_s"), "summary": event.data.get("summary") or {}}
        Evaluation.objects.filter(pk=evaluation.pk).update(**values)


def subject(key: str, checkpoint: Checkpoint) -> EvaluateSubject:
    return EvaluateSubject(key=key, name=checkpoint.name, model=storage.model_ref(checkpoint), provenance=storage.provenance(checkpoint))


def require_playable(checkpoint: Checkpoint) -> None:
    """Raises Fault when no sound can be made with it."""
    if checkpoint.retired:
        raise Fault("checkpoint.retired", f"checkpoint {checkpoint.name} is retired; choose another or bring it back in the admin")
    if not checkpoint.can_generate:
        raise Fault("checkpoint.not_playable", f"{checkpoint.name} cannot make sounds: {checkpoint.why_not or 'its kind is not known'}")


def _freeze_clips(evaluation: Evaluation, *checkpoints: Checkpoint | None) -> str:
    """Write the manifest. A clip that one of the checkpoints was trained on is no held-out one, whatever the split says today."""
    datasets.freeze_manifest(evaluation.dataset, evaluation.folder)
    trained_on = set().union(*(_trained_on(checkpoint) for checkpoint in checkpoints if checkpoint))
    clips = [
        ManifestClip(audio=clip.audio, caption=clip.caption, sha256=clip.sha256, duration_s=clip.duration_s,
                     split=TRAIN if clip.sha256 in trained_on else clip.split)
        for clip in read_manifest(evaluation.folder)
    ]  # fmt: skip
    return write_manifest(evaluation.folder, clips)


def _trained_on(checkpoint: Checkpoint) -> set[str]:
    """SHA-256 of the training clips of every run below a checkpoint, as those runs froze them; what is gone is not known."""
    found: set[str] = set()
    while checkpoint is not None:
        run: TrainingRun | None = checkpoint.run
        while run is not None:
            with contextlib.suppress(Fault):  # the run's folder is gone; its checkpoint may still be used
                found |= {clip.sha256 for clip in read_manifest(run.folder) if clip.split == TRAIN}
            run = run.parent
        checkpoint = checkpoint.base
    return found
