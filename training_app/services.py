"""Everything that changes runs and what they leave behind."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import ProtectedError

from audioldm_site.jobs import lifecycle, queue
from audioldm_site.jobs.models import Status
from audioldm_site.names import free_name
from datasets_app import services as datasets
from datasets_app.models import Dataset, DatasetStatus, Split
from gpu.config import FinetuneConfig, FinetuneJob
from gpu.errors import Fault
from gpu.events import CHECKPOINT, PROGRESS, STARTED, VALIDATED, Event
from gpu.manifest import MANIFEST_FILE
from training_app import preflight, pretraining, storage
from training_app.models import Checkpoint, TrainingRun

log = logging.getLogger(__name__)

PINNED_FILE = "pinned"


def create_run(
    *,
    owner,
    dataset: Dataset,
    base_checkpoint: Checkpoint,
    values: Mapping[str, Any],
    name: str | None = None,
    notes: str = "",
    tags: str = "",
    enqueue: bool = True,
    force: bool = False,
) -> TrainingRun:
    """Freeze a run's inputs in its folder and put it in line.

    Args:
        values: parameters by name; what is absent comes from the checkpoint's own recommendation, then from the configuration.
        enqueue: False leaves the run waiting without a queue entry, for a caller that executes it itself.
        force: also where memory or disk seem too small.
    Raises:
        ConfigError: wrong values, by name.
        Fault: the dataset or the checkpoint cannot be trained on, or it would not fit (`preflight.refused`).
    """
    config = FinetuneConfig.parse({**FinetuneConfig.known(storage.recommended(base_checkpoint)), **values})
    _require_trainable(dataset, base_checkpoint)
    preflight.require(dataset=dataset, checkpoint=base_checkpoint, config=config, force=force)
    run = TrainingRun(
        owner=owner,
        name=(name or "").strip()[:120] or f"{dataset.name} on {base_checkpoint.name}"[:120],
        dataset=dataset,
        dataset_name=dataset.name,
        base_checkpoint=base_checkpoint,
        config=config.to_dict(),
        clip_count=dataset.clips.usable().count(),
        notes=notes,
        tags=tags,
    )
    run = _freeze(run, config, enqueue=enqueue, write_manifest=lambda: datasets.freeze_manifest(dataset, run.folder))
    if base_checkpoint.run_id:
        # Its own run may still be going on: retention must not take away what this one starts from.
        set_pinned(base_checkpoint, pinned=True)
    return run


def continue_run(run: TrainingRun, *, more_steps: int, owner) -> TrainingRun:
    """A child run that goes on where `run` ended, with the same frozen clips and its full training state.

    Raises:
        Fault: no checkpoint with the full state is left, or the run has not ended.
    """
    if run.is_active:
        raise Fault("run.active", f"{run.name} is still {run.get_status_display()}; stop it first, or let it end")
    start = run.checkpoints.usable().filter(has_resume_state=True).order_by("-global_step").first()
    if start is None:
        raise Fault("run.no_resume_state", f"no checkpoint of {run.name} holds the full training state")
    values = {**run.config, "max_train_steps": start.global_step + more_steps}
    config = FinetuneConfig.parse(values)
    child = TrainingRun(
        owner=owner,
        name=f"{run.name}, continued"[:120],
        dataset=run.dataset,
        dataset_name=run.dataset_name,
        base_checkpoint=run.base_checkpoint,
        parent=run,
        resume_from=start,
        config=config.to_dict(),
        clip_count=run.clip_count,
        global_step=start.global_step,
        tags=run.tags,
    )

    def copy_manifest() -> str:
        shutil.copyfile(run.folder / MANIFEST_FILE, child.folder / MANIFEST_FILE)
        return run.manifest_digest

    return _freeze(child, config, enqueue=True, write_manifest=copy_manifest)


def clone_values(run: TrainingRun) -> dict[str, Any]:
    """What a new run with the same options starts from in the form.

    Raises:
        Fault: a pretraining is no fine-tune.
    """
    if run.is_pretraining:
        raise Fault("run.pretraining", f"{run.name} is a pretraining, which starts from a recipe")
    return {"dataset": run.dataset_id, "base_checkpoint": run.base_checkpoint_id, "name": f"{run.name}, again"[:120], **run.config}


def request_stop(run: TrainingRun, *, save: bool = True) -> bool:
    """Ask a waiting or running run to end; False when it had ended already."""
    return lifecycle.request_stop(run, save=save)


def request_save(run: TrainingRun) -> bool:
    """Ask for a checkpoint at the next step; False when the run is not running."""
    return _request(run, "save")


def request_sample(run: TrainingRun) -> bool:
    """Ask for the validation sounds at the next step; False when the run is not running."""
    return _request(run, "sample")


def resume(run: TrainingRun) -> bool:
    """Put a stopped or failed run back in line; it goes on from its last whole checkpoint. False when it is not one."""
    with transaction.atomic():
        if not lifecycle.requeue(run):
            return False
        for request in ("stop", "save", "sample"):
            (run.folder / "control" / request).unlink(missing_ok=True)
        queue.enqueue(run)
    return True


def set_pinned(checkpoint: Checkpoint, *, pinned: bool) -> None:
    """Keep a checkpoint for good, or leave it to the run's retention again."""
    Checkpoint.objects.filter(pk=checkpoint.pk).update(pinned=pinned)
    checkpoint.pinned = pinned
    if checkpoint.run_id and checkpoint.run.folder.is_dir():
        steps = checkpoint.run.checkpoints.filter(pinned=True).values_list("global_step", flat=True)
        (checkpoint.run.folder / PINNED_FILE).write_text("".join(f"{step}\n" for step in sorted(steps)))


def update_checkpoint(
    checkpoint: Checkpoint, *, name: str | None = None, licence: str | None = None, notes: str | None = None, retired: bool | None = None
) -> Checkpoint:
    """Change what people wrote about a checkpoint, or take it out of use; its files stay as they are.

    Raises:
        ValidationError: the name is empty or taken, or a text is too long.
    """
    changes = {"name": name, "licence": licence, "notes": notes, "retired": retired}
    changes = {field: value for field, value in changes.items() if value is not None}
    for field, value in changes.items():
        setattr(checkpoint, field, value)
    others = [field.name for field in Checkpoint._meta.fields if field.name not in changes]
    checkpoint.full_clean(exclude=others)
    checkpoint.save(update_fields=list(changes))
    return checkpoint


def update_run(run: TrainingRun, *, name: str | None = None, notes: str | None = None, tags: str | None = None, archived: bool | None = None) -> TrainingRun:
    """Change what people wrote about a run; what it was made with never changes."""
    changes = {"name": name, "notes": notes, "tags": tags, "archived": archived}
    changes = {field: value for field, value in changes.items() if value is not None}
    for field, value in changes.items():
        setattr(run, field, value)
    run.full_clean(exclude=["base_checkpoint", "dataset"])
    run.save(update_fields=list(changes))
    return run


def apply_event(run: TrainingRun, event: Event) -> None:
    """What an event means for the run's row and its checkpoints. Runs inside the transaction that records the event."""
    data = event.data
    if event.type == STARTED:
        _update(run, versions=data.get("versions") or {}, global_step=data.get("step", 0))
        # Retention deletes first and tells after: an attempt that was killed between the two never told.
        for checkpoint in run.checkpoints.filter(missing=False, format=Checkpoint.Format.RUN):
            if not checkpoint.folder.is_dir():
                _forget_checkpoint(run, checkpoint.folder.relative_to(run.folder).as_posix())
    elif event.type == PROGRESS:
        _update(run, global_step=data["step"], epoch=data.get("epoch", run.epoch), latest_loss=data.get("loss"))
    elif event.type == VALIDATED and data.get("loss") is not None:
        if run.best_validation_loss is None or data["loss"] < run.best_validation_loss:
            _update(run, best_validation_loss=data["loss"])
    elif event.type == CHECKPOINT and run.is_pretraining:
        pretraining.register_model(run, data)
    elif event.type == CHECKPOINT:
        _record_checkpoint(run, data)


def _record_checkpoint(run: TrainingRun, data: Mapping[str, Any]) -> None:
    path = (run.folder / data["path"]).relative_to(settings.DATA_DIR).as_posix()
    values = {
        "size_bytes": data["size_bytes"],
        "sha256": data["sha256"],
        "metrics": data.get("metrics") or {},
        "has_resume_state": data.get("has_resume_state", False),
        "missing": False,
    }
    base = run.base_checkpoint
    row = Checkpoint.objects.filter(path=path).first()
    if row:
        Checkpoint.objects.filter(pk=row.pk).update(**values)
    else:
        row = Checkpoint.objects.create(
            owner=run.owner,
            name=free_name(Checkpoint.objects.all(), f"{run.name}, step {data['step']}"),
            family=base.family,
            format=Checkpoint.Format.RUN,
            origin=Checkpoint.Origin.RUN,
            run=run,
            base=base,
            method=data.get("method", ""),
            global_step=data["step"],
            facts=base.facts,
            can_generate=base.can_generate,
            can_finetune=base.can_finetune,
            licence=base.licence,
            path=path,
            **values,
        )
    if data.get("best"):
        run.checkpoints.exclude(pk=row.pk).update(is_best=False)
        run.checkpoints.filter(pk=row.pk).update(is_best=True)
    for removed in data.get("removed") or []:
        _forget_checkpoint(run, removed)


def _forget_checkpoint(run: TrainingRun, relative: str) -> None:
    """The trainer's retention deleted a checkpoint: its row goes too, unless sounds or runs were made from it."""
    path = (run.folder / relative).relative_to(settings.DATA_DIR).as_posix()
    for checkpoint in Checkpoint.objects.filter(path=path):
        try:
            with transaction.atomic():
                checkpoint.delete()
        except ProtectedError:
            Checkpoint.objects.filter(pk=checkpoint.pk).update(missing=True, has_resume_state=False)


def _freeze(run: TrainingRun, config: FinetuneConfig, *, enqueue: bool, write_manifest) -> TrainingRun:
    """Write the run's folder and its row: both or neither."""
    run.folder.mkdir(parents=True)
    try:
        run.manifest_digest = write_manifest()
        job = FinetuneJob(
            config=config,
            model=storage.model_ref(run.base_checkpoint),
            manifest_digest=run.manifest_digest,
            resume_from=str(run.resume_from.folder) if run.resume_from else None,
            cache_dir=str(settings.DATA_DIR / "cache"),
        )
        job.write(run.folder)
        with transaction.atomic():
            run.full_clean()
            run.save()
            if enqueue:
                queue.enqueue(run)
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)
        raise
    log.info("run %s (%s) is in line", run.id, run.name)
    return run


def _require_trainable(dataset: Dataset, checkpoint: Checkpoint) -> None:
    if dataset.status != DatasetStatus.READY:
        raise Fault("dataset.not_ready", f"dataset {dataset.name} is {dataset.get_status_display()}; only a ready one can be trained on")
    if not dataset.clips.usable().filter(split=Split.TRAIN).exists():
        raise Fault("dataset.no_usable_clips", f"dataset {dataset.name} has no usable clip in its training split")
    if checkpoint.retired:
        raise Fault("checkpoint.retired", f"checkpoint {checkpoint.name} is retired; choose another or bring it back in the admin")
    if not checkpoint.can_finetune:
        raise Fault("checkpoint.not_trainable", f"{checkpoint.name} cannot be fine-tuned: {checkpoint.why_not or 'its kind is not known'}")


def _request(run: TrainingRun, name: str) -> bool:
    run.refresh_from_db(fields=["status"])
    if run.status != Status.RUNNING:
        return False
    control: Path = run.folder / "control"
    control.mkdir(exist_ok=True)
    (control / name).touch()
    return True


def _update(run: TrainingRun, **values: Any) -> None:
    TrainingRun.objects.filter(pk=run.pk).update(**values)
    for field, value in values.items():
        setattr(run, field, value)
