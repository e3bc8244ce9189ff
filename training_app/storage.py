"""Where checkpoints lie, what they say of themselves, and how a job refers to them."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from audioldm_site.names import free_name
from gpu.config import FinetuneConfig, GenerateConfig, ModelRef
from gpu.errors import Fault
from gpu.manifest import folder_digest, sha256_of
from gpu.models import CHECKPOINT_FILE, CheckpointFacts, ModelFacts, describe, read_checkpoint, verify_checkpoint
from gpu.originals.contents import SIDE_FILE, Digests, digests, kept_files
from gpu.originals.finite import require_finite
from training_app.models import Checkpoint

log = logging.getLogger(__name__)

FREE_SPACE_MARGIN_BYTES = 200 * 2**20
QUICK_BYTES = 64 * 2**20
CONTENT, WEIGHTS = "content_sha256", "weights_sha256"
"""Of a whole model, among its facts: what it is, and its weights, whatever it is called."""


def register_checkpoint(path: Path, *, origin: str, name: str | None = None, owner=None, sha256: str = "", known_digests: Digests | None = None) -> Checkpoint:
    """Bring a model folder, or the folder of a run's checkpoint, into the registry and return its row.

    A folder under DATA_DIR/incoming is moved to DATA_DIR/checkpoints, one from elsewhere is copied there, both without the files that do not
    belong to a model; what is there already stays as it is. A folder with the same content as a registered one gives that one's row, whatever
    it is called.

    Args:
        owner: None for everybody. The row of another owner's equal model is not given to somebody who may not see it.
        sha256: of a run's weights, where the caller has just checked them; "" reads them again.
        known_digests: of a model, where the caller has just computed them; None reads it all again, and looks for values that are no numbers.
    Raises:
        Fault: not a model that we know (`checkpoint.unrecognised`, `checkpoint.incomplete`), weights that are no numbers
            (`checkpoint.not_finite`), no room for it (`disk.full`), or the model that a run's checkpoint lies on is not registered
            (`checkpoint.base_missing`).
    """
    path = Path(os.path.realpath(path))  # Path.resolve() raises RuntimeError for a link to itself
    home = settings.DATA_DIR / "checkpoints"
    is_run = (path / CHECKPOINT_FILE).is_file()
    if is_run:
        values = _run_values(path, owner=owner, verified=bool(sha256))
        known = twin(sha256=values["sha256"], format=values["format"], owner=owner, base=values["base"])
    else:
        found = known_digests or digests(path, files=None if path.parent == home else kept_files(path))
        values = _model_values(path, found)
        known = same_model(path, found, owner=owner)
    if known and known.folder.is_dir():
        if known.missing:
            Checkpoint.objects.filter(pk=known.pk).update(missing=False)
            known.missing = False
        return known
    if not sha256 and not known_digests:
        require_finite(path / name for name in kept_files(path) if name.suffix == ".safetensors" and name.name != SIDE_FILE)
    name = free_name(Checkpoint.objects.exclude(pk=known.pk) if known else Checkpoint.objects.all(), name or values.pop("name") or path.name)
    values.pop("name", None)
    folder = path if path.parent == home else _bring_in(path, home / f"{slug(name)}-{values['sha256'][:8]}", owner=owner)
    if not is_run:
        values["size_bytes"] = sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())
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


def twin(*, sha256: str, format: str, owner, base: Checkpoint | None = None) -> Checkpoint | None:
    """The row of equal content that `owner` may see; the terminal (None) sees all.

    Args:
        base: of a run's checkpoint: the same weights on another model are another one.
    """
    rows = Checkpoint.objects.filter(sha256=sha256, format=format, **({"base": base} if base else {}))
    return (rows if owner is None else rows.visible_to(owner)).order_by("missing", "created_at").first()


def same_model(folder: Path, found: Digests, *, owner) -> Checkpoint | None:
    """The registered whole model of equal content that `owner` may see: also one of another name, licence or card."""
    row = twin(sha256=found.whole, format=Checkpoint.Format.DIFFUSERS, owner=owner)
    if row and (row.folder.is_dir() or row.missing):
        return row
    rows = _alike(describe(folder).parameters, owner=owner)
    return next((other for other in rows if _content(other, CONTENT) == found.content), row)


def may_be_known(facts: ModelFacts) -> bool:
    """Whether any registered model has parts of these sizes, so that a comparison is worth reading it all."""
    return bool(_alike(facts.parameters, owner=None))


def base_model(facts: CheckpointFacts, *, owner) -> Checkpoint:
    """The registered whole model that a run's checkpoint lies on: the very folder, or one with the same weights.

    A model that was converted anew, or renamed, has another digest and the same weights. Checkpoints from before their base's weights were
    noted down are matched by the original file that both models were made of.

    Raises:
        Fault: `checkpoint.base_missing`.
    """
    base = twin(sha256=facts.base_sha256, format=Checkpoint.Format.DIFFUSERS, owner=owner)
    if base is None:
        weights = facts.model.get(WEIGHTS) or ""
        alike = _alike(facts.model.get("parameters") or {}, owner=owner)
        base = next((row for row in alike if (_content(row, WEIGHTS) == weights if weights else _same_original(row.facts, facts.model))), None)
    if base is None:
        name = str(facts.model.get("name") or "") or "of an unknown name"
        raise Fault("checkpoint.base_missing", f"it lies on the model {name} (SHA-256 {facts.base_sha256[:12]}…), which is not registered here")
    return base


def settle_on_base(folder: Path, *, owner) -> None:
    """Make the copy of a run's checkpoint say what is true here: the digest of its base as it is registered, and the files that came along.

    Its identity is its weights file, which stays as it is. Does nothing for a whole model.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return
    facts = read_checkpoint(folder)
    base = base_model(facts, owner=owner)
    there = {name: sha256 for name, sha256 in facts.files.items() if (folder / name).is_file()}
    if (base.sha256, there) != (facts.base_sha256, facts.files):
        told = replace(facts, base=str(base.folder), base_sha256=base.sha256, files=there)
        path.unlink()  # it may be a hard link to the source's
        path.write_text(json.dumps(told.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _alike(parameters: Mapping[str, int], *, owner) -> list[Checkpoint]:
    """Registered whole models with parts of the same sizes, the oldest first; nothing is read for it."""
    rows = Checkpoint.objects.filter(format=Checkpoint.Format.DIFFUSERS, missing=False)
    rows = rows if owner is None else rows.visible_to(owner)
    return [row for row in rows.order_by("created_at") if row.facts.get("parameters") == parameters and row.folder.is_dir()]


def _content(row: Checkpoint, what: str) -> str:
    """A digest of a registered model. Rows from before it was kept are read once."""
    if what not in row.facts:
        try:
            found = digests(row.folder)
        except (Fault, OSError):
            return ""
        row.facts |= {CONTENT: found.content, WEIGHTS: found.weights}
        Checkpoint.objects.filter(pk=row.pk).update(facts=row.facts)
    return row.facts[what]


def _same_original(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two models' facts name the same original file and the same copy of its weights."""
    mine, its = one.get("original") or {}, other.get("original") or {}
    return bool(mine.get("source_sha256")) and all(mine.get(key) == its.get(key) for key in ("source_sha256", "weights", "layout"))


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


def _model_values(path: Path, found: Digests) -> dict[str, Any]:
    facts = describe(path)
    return {
        "name": facts.name,
        "family": facts.family,
        "format": Checkpoint.Format.DIFFUSERS,
        "size_bytes": facts.size_bytes,
        "sha256": found.whole,
        "licence": facts.licence,
        "facts": {**facts.as_dict(), CONTENT: found.content, WEIGHTS: found.weights},
        "defaults": facts.defaults,
        "can_generate": facts.can_generate,
        "can_finetune": facts.can_finetune,
    }


def _run_values(path: Path, *, owner, verified: bool) -> dict[str, Any]:
    """What the row of a run's checkpoint says that comes without its run."""
    facts = read_checkpoint(path) if verified else verify_checkpoint(path)
    base = base_model(facts, owner=owner)
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
    known = same_model(source, digests(source, files=kept_files(source)), owner=None)
    earlier = Checkpoint.objects.filter(name="starter", origin=Checkpoint.Origin.BUILTIN).first()
    if earlier and earlier != known:
        earlier.name = free_name(Checkpoint.objects.all(), f"starter of {earlier.created_at:%Y-%m-%d}")
        earlier.save(update_fields=["name"])
    return register_checkpoint(source, origin=Checkpoint.Origin.BUILTIN, name="starter")


def link_model(source: Path, folder: Path) -> None:
    """Put the files of a model, and none that does not belong to it, into a new folder; without more room where the file system can."""
    for name in kept_files(source):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (folder / name).hardlink_to(source / name)
        except OSError:
            shutil.copyfile(source / name, folder / name)


def take_away(source: Path, folder: Path, *, aside: Path) -> None:
    """Remove from a source what has come in from it; what did not belong to the model is set aside.

    Args:
        folder: where the model is now.
        aside: where the rest goes, with a number when something is there already.
    """
    for name in [path.relative_to(source) for path in source.rglob("*") if path.is_file()]:
        if (folder / name).is_file() and (folder / name).samefile(source / name):
            (source / name).unlink()
    for path in sorted((path for path in source.rglob("*") if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    if any(source.iterdir()):
        set_aside(source, aside)
    else:
        source.rmdir()


def set_aside(path: Path, aside: Path) -> None:
    aside.mkdir(exist_ok=True)
    target, number = aside / path.name, 1
    while target.exists():
        number += 1
        target = aside / f"{path.stem} {number}{path.suffix}"
    path.rename(target)


def _bring_in(path: Path, folder: Path, *, owner) -> Path:
    """Move (from incoming) or copy (from elsewhere) a model folder, whole or not at all."""
    incoming = settings.DATA_DIR / "incoming"
    moves = path.is_relative_to(incoming)
    if not moves:
        size = sum((path / name).stat().st_size for name in kept_files(path))
        require_space(size, folder=folder.parent, what=path.name)
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if moves:
            link_model(path, temporary)
        else:
            for name in kept_files(path):
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, temporary / name)
        settle_on_base(temporary, owner=owner)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if moves:
        take_away(path, folder, aside=path.parent / "imported")
    return folder


def slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:80] or "model"
