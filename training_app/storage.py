"""Where checkpoints lie, what they say of themselves, and how a job refers to them."""

from __future__ import annotations

import logging
import os
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
from gpu.models import describe
from training_app.models import Checkpoint

log = logging.getLogger(__name__)

FREE_SPACE_MARGIN_BYTES = 200 * 2**20


def register_checkpoint(path: Path, *, origin: str, name: str | None = None, owner=None) -> Checkpoint:
    """Bring a model folder into the registry and return its row.

    A folder under DATA_DIR/incoming is moved to DATA_DIR/checkpoints, one from elsewhere is copied there; what is there already stays. A
    folder with the same content as a registered one gives that one's row.

    Raises:
        Fault: not a model that we know (`checkpoint.unrecognised`, `checkpoint.incomplete`), or no room for it (`disk.full`).
    """
    path = Path(os.path.realpath(path))  # Path.resolve() raises RuntimeError for a link to itself
    facts = describe(path)
    sha256 = folder_digest(path)
    known = Checkpoint.objects.filter(sha256=sha256, format=Checkpoint.Format.DIFFUSERS).first()
    if known and known.folder.is_dir():
        if known.missing:
            Checkpoint.objects.filter(pk=known.pk).update(missing=False)
            known.missing = False
        return known
    home = settings.DATA_DIR / "checkpoints"
    name = free_name(Checkpoint.objects.exclude(pk=known.pk) if known else Checkpoint.objects.all(), name or facts.name or path.name)
    folder = path if path.parent == home else _bring_in(path, home / f"{_slug(name)}-{sha256[:8]}")
    values = {
        "family": facts.family,
        "format": Checkpoint.Format.DIFFUSERS,
        "path": folder.relative_to(settings.DATA_DIR).as_posix(),
        "size_bytes": facts.size_bytes,
        "sha256": sha256,
        "licence": facts.licence,
        "facts": facts.as_dict(),
        "defaults": facts.defaults,
        "missing": False,
        "verified_at": timezone.now(),
    }
    if known:
        Checkpoint.objects.filter(pk=known.pk).update(**values)
        known.refresh_from_db()
        return known
    checkpoint = Checkpoint(name=name, origin=origin, owner=owner, **values)
    checkpoint.full_clean()
    checkpoint.save()
    log.info("registered checkpoint %s from %s", checkpoint.name, path)
    return checkpoint


def scan_checkpoints() -> tuple[list[Checkpoint], list[dict[str, str]]]:
    """Register what lies in DATA_DIR/incoming/checkpoints, and look whether registered files are still there.

    Returns:
        The newly registered checkpoints, and what was left alone: [{path, code, message}].
    """
    incoming = settings.DATA_DIR / "incoming" / "checkpoints"
    incoming.mkdir(parents=True, exist_ok=True)
    registered, ignored = [], []
    for path in sorted(incoming.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            if path.is_symlink():
                raise Fault("checkpoint.link", f"{path.name} is a link; move or copy the model itself here")
            row = register_checkpoint(path, origin=Checkpoint.Origin.SCANNED)
            if path.exists():  # what is new was moved
                raise Fault("checkpoint.known", f"its content is already the checkpoint {row.name}")
            registered.append(row)
        except Fault as fault:
            ignored.append({"path": path.name, "code": fault.code, "message": fault.message})
    mark_missing()
    return registered, ignored


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
    if not checkpoint.folder.is_dir():
        Checkpoint.objects.filter(pk=checkpoint.pk).update(missing=True)
        return False
    whole = checkpoint_digest(checkpoint) == checkpoint.sha256
    if whole:
        Checkpoint.objects.filter(pk=checkpoint.pk).update(missing=False, verified_at=timezone.now())
    return whole


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
    free = shutil.disk_usage(folder.parent).free
    if size + FREE_SPACE_MARGIN_BYTES > free:
        raise Fault("disk.full", f"{path.name} needs {size / 2**20:.0f} MB: {free / 2**20:.0f} MB are free under {settings.DATA_DIR}, of which {FREE_SPACE_MARGIN_BYTES / 2**20:.0f} MB stay free", operator=True)
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(path, temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower()).strip("-") or "model"
