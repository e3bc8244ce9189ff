"""Where checkpoints lie, what they say of themselves, and how a job refers to them."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from audioldm_site.names import free_name
from gpu.config import FinetuneConfig, GenerateConfig, ModelRef
from gpu.errors import Fault
from gpu.manifest import folder_digest, sha256_of
from gpu.models import CHECKPOINT_FILE, describe, read_checkpoint, verify_checkpoint
from training_app.models import Checkpoint

log = logging.getLogger(__name__)

FREE_SPACE_MARGIN_BYTES = 200 * 2**20
QUICK_BYTES = 64 * 2**20


def register_checkpoint(path: Path, *, origin: str, name: str | None = None, owner=None, sha256: str = "") -> Checkpoint:
    """Bring a model folder, or the folder of a run's checkpoint, into the registry and return its row.

    A folder under DATA_DIR/incoming is moved to DATA_DIR/checkpoints, one from elsewhere is copied there; what is there already stays. A
    folder with the same content as a registered one gives that one's row.

    Args:
        owner: None for everybody. The row of another owner's equal model is not given to somebody who may not see it.
        sha256: of the content, where the caller has just computed it; "" reads it all again.
    Raises:
        Fault: not a model that we know (`checkpoint.unrecognised`, `checkpoint.incomplete`), no room for it (`disk.full`), or the
            model that a run's checkpoint lies on is not registered (`checkpoint.base_missing`).
    """
    path = Path(os.path.realpath(path))  # Path.resolve() raises RuntimeError for a link to itself
    is_run = (path / CHECKPOINT_FILE).is_file()
    values = _run_values(path, owner=owner, verified=bool(sha256)) if is_run else _model_values(path, sha256=sha256)
    known = twin(sha256=values["sha256"], format=values["format"], owner=owner)
    if known and known.folder.is_dir():
        if known.missing:
            Checkpoint.objects.filter(pk=known.pk).update(missing=False)
            known.missing = False
        return known
    home = settings.DATA_DIR / "checkpoints"
    name = free_name(Checkpoint.objects.exclude(pk=known.pk) if known else Checkpoint.objects.all(), name or values.pop("name") or path.name)
    values.pop("name", None)
    folder = path if path.parent == home else _bring_in(path, home / f"{slug(name)}-{values['sha256'][:8]}")
    values |= {"path": folder.relative_to(settings.DATA_DIR).as_posix(), "missing": False, "verified_at": timezone.now()}
    if known:
        Checkpoint.objects.filter(pk=known.pk).update(**values)
        known.refresh_from_db()
        return known
    checkpoint = Checkpoint(name=name, origin=origin, owner=owner, **values)
    checkpoint.full_clean()
    checkpoint.save()
    log.info("registered checkpoint %s from %s", checkpoint.name, path)
    return checkpoint


def twin(*, sha256: str, format: str, owner) -> Checkpoint | None:
    """The row of equal content that `owner` may see; the terminal (None) sees all."""
    rows = Checkpoint.objects.filter(sha256=sha256, format=format)
    return (rows if owner is None else rows.visible_to(owner)).order_by("missing", "created_at").first()


def base_model(sha256: str, *, name: str, owner) -> Checkpoint:
    """The registered whole model of that content.

    Raises:
        Fault: `checkpoint.base_missing`.
    """
    base = twin(sha256=sha256, format=Checkpoint.Format.DIFFUSERS, owner=owner)
    if base is None:
        raise Fault("checkpoint.base_missing", f"it lies on the model {name or 'of an unknown name'} (SHA-256 {sha256[:12]}…), which is not registered here")
    return base


def mark_missing() -> int:
    """Compare every row with the disk; return how many changed between there and missing."""
    changed = 0
    for checkpoint in Checkpoint.objects.all():
        missing = not checkpoint.folder.is_dir()
        if missing != checkpoint.missing:
            changed += Checkpoint.objects.filter(pk=checkpoint.pk).update(missing=missing)
    return changed


def verify(checkpoint: Checkpoint) -> bool:
    """Hash the files again and compare with the row; the answer is recorded."""
    row = Checkpoint.objects.filter(pk=checkpoint.pk)
    try:
        whole = checkpoint.folder.is_dir() and checkpoint_digest(checkpoint) == checkpoint.sha256
    except Fault:
        whole = False
    if whole:
        row.update(missing=False, damaged=False, verified_at=timezone.now())
    else:
        there = checkpoint.folder.is_dir()
        row.update(missing=not there, damaged=there)
    return whole


def is_quick(size_bytes: int) -> bool:
    """Whether so much can be hashed while somebody waits for a page."""
    return size_bytes <= QUICK_BYTES


def provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """What every sound and every exported file carries about where it comes from: checkpoint, licence, and the run and dataset behind it."""
    found: dict[str, Any] = {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": checkpoint.sha256,
        "family": checkpoint.family,
        "licence": checkpoint.licence,
        "base_checkpoint": root_model(checkpoint).name,
    }
    if checkpoint.run:
        found |= {
            "run": checkpoint.run.name,
            "run_id": str(checkpoint.run_id),
            "global_step": checkpoint.global_step,
            "dataset": checkpoint.run.dataset_name,
            "manifest_digest": checkpoint.run.manifest_digest,
        }
    return found


def require_space(needed_bytes: int, *, folder: Path, what: str) -> None:
    """Raises Fault `disk.full` when so much does not fit below a folder; some space always stays free."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + FREE_SPACE_MARGIN_BYTES > free:
        raise Fault("disk.full", f"{what} needs {needed_bytes / 2**20:.0f} MB: {free / 2**20:.0f} MB are free under {folder}, of which {FREE_SPACE_MARGIN_BYTES / 2**20:.0f} MB stay free", operator=True)


def _model_values(path: Path, *, sha256: str) -> dict[str, Any]:
    facts = describe(path)
    return {
        "name": facts.name,
        "family": facts.family,
        "format": Checkpoint.Format.DIFFUSERS,
        "size_bytes": facts.size_bytes,
        "sha256": sha256 or folder_digest(path),
        "licence": facts.licence,
        "facts": facts.as_dict(),
        "defaults": facts.defaults,
        "can_generate": facts.can_generate,
        "can_finetune": facts.can_finetune,
    }


def _run_values(path: Path, *, owner, verified: bool) -> dict[str, Any]:
    """What the row of a run's checkpoint says that comes without its run."""
    facts = read_checkpoint(path) if verified else verify_checkpoint(path)
    base = base_model(facts.base_sha256, name=str(facts.model.get("name", "")), owner=owner)
    return {
        "name": f"{base.name}, step {facts.step}" if facts.step else f"LoRA on {base.name}",
        "family": base.family,
        "format": Checkpoint.Format.RUN,
        "base": base,
        "method": facts.method,
        "global_step": facts.step,
        "metrics": facts.metrics,
        "size_bytes": sum(item.stat().st_size for item in path.iterdir() if item.is_file()),
        "sha256": facts.files[facts.weights_file],
        "licence": facts.licence or base.licence,
        "facts": base.facts,
        "can_generate": base.can_generate,
        "can_finetune": base.can_finetune,
        "has_resume_state": False,  # its run, whose clips it would go on with, is not here
    }


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """What `sha256` means: of the whole folder for a model, of the weights file for a run's checkpoint."""
    if checkpoint.format == Checkpoint.Format.DIFFUSERS:
        return folder_digest(checkpoint.folder)
    return sha256_of(weights_file(checkpoint))


def weights_file(checkpoint: Checkpoint) -> Path:
    """The trained weights of a run's checkpoint: its UNet or its LoRA.

    Raises:
        Fault: the file is gone.
    """
    for name in ("lora.safetensors", "unet.safetensors"):
        if (checkpoint.folder / name).is_file():
            return checkpoint.folder / name
    raise Fault("checkpoint.missing", f"the files of {checkpoint.name} are no longer at {checkpoint.path}")


def model_ref(checkpoint: Checkpoint) -> ModelRef:
    """How a job's config.json names this checkpoint.

    Raises:
        Fault: its files, or those of the model below it, are gone.
    """
    base = root_model(checkpoint)
    for needed in (checkpoint, base):
        if not needed.folder.is_dir():
            raise Fault("checkpoint.missing", f"the files of {needed.name} are no longer at {needed.path}")
    return ModelRef(
        base=str(base.folder),
        base_sha256=base.sha256,
        weights=None if checkpoint is base else str(checkpoint.folder),
    )


def root_model(checkpoint: Checkpoint) -> Checkpoint:
    """The whole model at the bottom of a chain of fine-tunes."""
    while checkpoint.format != Checkpoint.Format.DIFFUSERS:
        if checkpoint.base is None:
            raise Fault("checkpoint.missing", f"the model that {checkpoint.name} was trained from is no longer registered")
        checkpoint = checkpoint.base
    return checkpoint


def recommended(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The parameters that suit a checkpoint, for both kinds of job; what it does not say is left to the configuration's defaults."""
    if checkpoint is None:
        return {}
    defaults = root_model(checkpoint).defaults
    return FinetuneConfig.known(defaults) | GenerateConfig.known(defaults)


@transaction.atomic
def ensure_starter(source: Path) -> Checkpoint | None:
    """Register the checkpoint that ships with the project, once per content; a newer one never replaces what runs were made from."""
    if not (source / "model_index.json").is_file():
        return None
    earlier = Checkpoint.objects.filter(name="starter", origin=Checkpoint.Origin.BUILTIN).exclude(sha256=folder_digest(source)).first()
    if earlier:
        earlier.name = free_name(Checkpoint.objects.all(), f"starter of {earlier.created_at:%Y-%m-%d}")
        earlier.save(update_fields=["name"])
    return register_checkpoint(source, origin=Checkpoint.Origin.BUILTIN, name="starter")


def _bring_in(path: Path, folder: Path) -> Path:
    """Move (from incoming) or copy (from elsewhere) a model folder, whole or not at all."""
    incoming = settings.DATA_DIR / "incoming"
    if path.is_relative_to(incoming):
        path.replace(folder)
        return folder
    size = sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    require_space(size, folder=folder.parent, what=path.name)
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(path, temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:80] or "model"
