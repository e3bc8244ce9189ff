"""Bringing models in and writing checkpoints out: everything that changes conversions.

A conversion reads its source and writes `DATA_DIR/checkpoints/<name>-<id>` or `DATA_DIR/exports/<id>/<name>`, which appears whole or
not at all: what is half written has a name that begins with `.tmp-` and goes when the conversion ends. What came in by upload waits in
the conversion's own folder until it has succeeded, so a retry needs no second upload; what lies in the incoming folder is set aside then.
"""

from __future__ import annotations

import logging
import shutil
import time
from datetime import timedelta
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from audioldm_site.jobs import lifecycle, processes, queue
from audioldm_site.jobs.models import ENDED, Status
from datasets_app.archive import disk_faults
from gpu.config import ConvertJob, ExportJob
from gpu.errors import Fault
from gpu.events import FAILED, FINISHED, STOPPED, Event
from gpu.models import describe
from gpu.originals.cards import how_to_open
from gpu.originals.contents import Digests
from gpu.originals.sizes import DTYPES, export_sizes
from training_app import loras, services, sources, storage
from training_app.models import Checkpoint, Conversion
from training_app.sources import ADDITIONS, FOLDER, HUB, LORA, ORIGINAL, RUN, WHOLE, Found

log = logging.getLogger(__name__)

WEIGHTS = ("auto", "ema", "raw")
CHILD_KINDS = (ORIGINAL, WHOLE, HUB)
"""What the converter reads, in a process of its own; folders, zips and LoRAs need no torch."""
KEPT_DAYS = 14
"""How long an export, and the upload of an import that failed or was stopped, stay before the worker removes them."""
ABANDONED_S = 6 * 3600
KEEP, DELETE, ASIDE = "keep", "delete", "set aside"
EXPORTS = "exports"


class Scan(NamedTuple):
    """What a look through the incoming folder found.

    Args:
        registered: small model folders, in the registry now.
        started: conversions that bring large ones in.
        offered: files, which wait for a person's choice.
        ignored: what was left alone: [{path, code, message}].
    """

    registered: list[Checkpoint]
    started: list[Conversion]
    offered: list[Found]
    ignored: list[dict[str, str]]


def import_model(
    found: Found,
    *,
    owner,
    origin: str,
    name: str = "",
    weights: str = "auto",
    keep_original: bool = True,
    licence: str = "",
    base: Checkpoint | None = None,
    tokenizers: Path | None = None,
    enqueue: bool = True,
) -> Conversion:
    """Put the bringing in of a model in line.

    Args:
        found: what `sources.look_at` saw.
        weights: which copy of a file's UNet: `auto` is the one that its own sampler takes.
        keep_original: keep what no part of the model uses, so that the original layout can be written again.
        licence: "" takes what the source says.
        base: the whole model that a LoRA lies on.
        tokenizers: folder with vocabularies; None takes those of a registered checkpoint that fit, then DATA_DIR/tokenizers.
        enqueue: False leaves it waiting without a queue entry, for a caller that executes it itself.
    Raises:
        Fault: a value is wrong, the LoRA does not fit its base, a run's base is missing, or there is no room.
    """
    if weights not in WEIGHTS:
        raise Fault("config.invalid", f"weights ({weights!r}) must be one of {', '.join(WEIGHTS)}")
    if weights == "ema" and found.kind == ORIGINAL and not found.has_ema:
        raise Fault("checkpoint.no_ema", f"{found.label} holds no moving average (EMA) of its weights")
    if found.kind in ADDITIONS:
        if base is None:
            what = "a LoRA" if found.kind == LORA else "a UNet alone"
            raise Fault("checkpoint.base_missing", f"{found.label} is {what}: say which whole model it lies on")
        loras.require_fit(found, base)
    if found.kind == RUN:
        storage.base_model(found.facts, owner=owner)
    storage.require_space(found.needed_bytes, folder=settings.DATA_DIR, what=f"bringing in {found.label}")
    name = " ".join((name or (base and f"{Path(found.label).stem} on {base.name}") or _plain_name(found)).split())[:150]
    conversion = Conversion(owner=owner, direction=Conversion.Direction.IMPORT, name=name, source=found.label[:500], base=base)
    conversion.config = {
        "kind": found.kind,
        "source": found.label if found.kind == HUB else str(found.path),
        "destination": f"checkpoints/{storage.slug(name)}-{conversion.id.hex[:8]}",
        "name": name,
        "weights": weights,
        "keep_original": keep_original,
        "licence": licence.strip()[:200],
        "tokenizers": str(tokenizers or find_tokenizers(found, owner=owner) or "") or None,
        "origin": origin,
        "afterwards": _afterwards(found.path, origin),
    }
    return _freeze(conversion, enqueue=enqueue, write=lambda: _write_import(conversion))


def export_model(
    checkpoint: Checkpoint, *, owner, format: str, dtype: str = "fp32", destination: Path | None = None, enqueue: bool = True
) -> Conversion:
    """Put the writing of a checkpoint in line.

    Args:
        format: one of `Conversion.Format`.
        destination: a path that does not exist yet; None for a file below DATA_DIR/exports that pages offer (a model folder is zipped).
    Raises:
        Fault: this checkpoint cannot be written so (with the reason), the destination exists, or there is no room.
    """
    if format not in Conversion.Format.values:
        raise Fault("config.invalid", f"format ({format!r}) must be one of {', '.join(Conversion.Format.values)}")
    if dtype not in DTYPES:
        raise Fault("config.invalid", f"dtype ({dtype!r}) must be one of {', '.join(DTYPES)}")
    dtype = OFFERED.get(format, (dtype,))[0]
    choice = next(choice for choice in export_choices(checkpoint) if choice.format == format)
    if choice.why_not:
        raise Fault("checkpoint.not_exportable", f"{checkpoint.name} cannot be written as {choice.label}: {choice.why_not}")
    conversion = Conversion(
        owner=owner, direction=Conversion.Direction.EXPORT, name=checkpoint.name, source=checkpoint.name, checkpoint=checkpoint, format=format
    )
    if destination is None:
        ending = {"ckpt": ".ckpt", "diffusers": ".zip"}.get(format, ".safetensors")
        part = {"lora": "-lora"}.get(format, "")
        destination = settings.DATA_DIR / EXPORTS / str(conversion.id) / f"{storage.slug(checkpoint.name)}{part}{'-fp16' if dtype == 'fp16' else ''}{ending}"
    elif destination.exists() or destination.is_symlink():
        raise Fault("file.exists", f"{destination} exists already: an export never overwrites")
    elif not destination.parent.is_dir():
        raise Fault("file.unusable", f"the folder {destination.parent} does not exist")
    folder = settings.DATA_DIR if destination.is_relative_to(settings.DATA_DIR) else destination.parent
    storage.require_space(choice.size(dtype), folder=folder, what=f"the export of {checkpoint.name}")
    job = ExportJob(
        model=storage.model_ref(checkpoint), format=format, destination=str(destination), dtype=dtype, provenance=storage.provenance(checkpoint)
    )
    conversion.config = {"format": format, "dtype": dtype, "destination": str(destination)}

    def write() -> None:
        # The command's own folder is there already.
        destination.parent.mkdir(parents=True, exist_ok=True)
        job.write(conversion.folder)

    made = _freeze(conversion, enqueue=enqueue, write=write)
    if checkpoint.run_id:
        # Its own run may still be going on: retention must not take away what is being written out.
        services.set_pinned(checkpoint, pinned=True)
    return made


OFFERED = {"safetensors": ("fp16",), "lora": ("fp32",)}
"""The forms that come in one exactness alone."""


class Choice(NamedTuple):
    """One form that a checkpoint can be written in, or the reason why it cannot."""

    format: str
    label: str
    text: str
    sizes: dict[str, int]
    why_not: str

    def size(self, dtype: str) -> int:
        return self.sizes.get(dtype) or max(self.sizes.values(), default=0)


TEXTS = {
    "ckpt": "One file in the layout of the original AudioLDM code, which loads it as its own.",
    "diffusers": "A folder in the layout of diffusers, which a browser gets as an uncompressed zip.",
    "safetensors": "All weights in one file of half the size, for passing on.",
    "lora": "Only what was trained, to lay on the same base model.",
}


def export_choices(checkpoint: Checkpoint) -> list[Choice]:
    """Every form with its size, or why it is impossible; from headers alone."""
    try:
        ref = storage.model_ref(checkpoint)
        sizes = {dtype: export_sizes(ref, dtype=dtype) for dtype in DTYPES}
        opens = how_to_open(describe(storage.root_model(checkpoint).folder).pipeline_class)
    except Fault as fault:
        return [Choice(value, label, TEXTS[value], {}, fault.message) for value, label in Conversion.Format.choices]
    texts = TEXTS | {"diffusers": f"{TEXTS['diffusers']} {opens}"}
    found = []
    for value, label in Conversion.Format.choices:
        told = {dtype: sizes[dtype][value] for dtype in OFFERED.get(value, DTYPES)}
        reasons = [size for size in told.values() if isinstance(size, str)]
        found.append(Choice(value, label, texts[value], {} if reasons else told, reasons[0] if reasons else ""))
    return found


def request_stop(conversion: Conversion) -> bool:
    """Ask a waiting or running conversion to end; False when it had ended already."""
    return lifecycle.request_stop(conversion, save=False)


def retry(conversion: Conversion) -> bool:
    """Put a stopped or failed conversion back in line, from its beginning; False when it is not one."""
    with transaction.atomic():
        if not lifecycle.requeue(conversion):
            return False
        (conversion.folder / "control" / "stop").unlink(missing_ok=True)
        queue.enqueue(conversion)
    return True


def delete_conversion(conversion: Conversion) -> None:
    """Remove a conversion that has ended, its log, its upload, and what it wrote below DATA_DIR/exports. An imported checkpoint stays.

    Raises:
        Fault: it is still waiting or running.
    """
    if conversion.is_active:
        raise Fault("run.active", f"{conversion} has not ended; stop it first")
    folder, export = conversion.folder, _export_folder(conversion)
    conversion.delete()
    for path in (folder, export):
        shutil.rmtree(path, ignore_errors=True)


def apply_event(conversion: Conversion, event: Event) -> None:
    """What an event means for the conversion's rows. Runs inside the transaction that records the event."""
    if event.type == FINISHED:
        data = event.data
        values: dict[str, Any] = {"elapsed_s": data.get("elapsed_s"), "size_bytes": data.get("size_bytes") or 0, "sha256": data.get("sha256") or ""}
        if conversion.is_export:
            values["result"] = _relative(Path(data["path"]))
        else:
            values["checkpoint"], already_here = _register(conversion, data)
            values["config"] = {**conversion.config, "already_here": already_here}
            transaction.on_commit(partial(_tidy_source, conversion))
        Conversion.objects.filter(pk=conversion.pk).update(**values)
        for field, value in values.items():
            setattr(conversion, field, value)
    elif event.type in (FAILED, STOPPED):
        # Its process may still be leaving; what it leaves behind then goes with the next sweep.
        transaction.on_commit(partial(clear_unfinished, conversion))


def scan(*, owner=None, here: bool = False) -> Scan:
    """Look through DATA_DIR/incoming/checkpoints: model folders come in, files are recognised and offered.

    Args:
        owner: whose the conversions of large folders are; what lies in that folder becomes everybody's checkpoint.
        here: register large folders at once as well, in a terminal that can wait.
    """
    found = Scan([], [], [], [])
    for path in sources.incoming():
        try:
            seen = sources.look_at(path)
            if seen.kind not in (FOLDER, RUN):
                found.offered.append(seen)
            elif here or storage.is_quick(seen.size_bytes):
                row = storage.register_checkpoint(path, origin=Checkpoint.Origin.SCANNED)
                if path.exists():  # what is new was moved
                    raise Fault("checkpoint.known", f"its content is already the checkpoint {row.name}")
                found.registered.append(row)
            elif not _is_under_way(path):
                found.started.append(import_model(seen, owner=None, origin=Checkpoint.Origin.SCANNED))
        except Fault as fault:
            found.ignored.append({"path": path.name, "code": fault.code, "message": fault.message})
    storage.mark_missing()
    return found


def find_tokenizers(found: Found, *, owner) -> Path | None:
    """Vocabularies for an original file, which carries none: of a registered checkpoint whose text encoders are of the same sizes, else
    what lies in DATA_DIR/tokenizers."""
    if found.kind not in (ORIGINAL, HUB):
        return None
    rows = Checkpoint.objects.filter(format=Checkpoint.Format.DIFFUSERS, missing=False)
    # What a repository of the hub holds is not known yet.
    for row in (rows.visible_to(owner) if owner else rows).order_by("created_at") if found.kind == ORIGINAL else ():
        if sources.has_tokenizers(row.folder, found.facts.vocabularies):
            return row.folder
    folder = settings.DATA_DIR / "tokenizers"
    return folder if folder.is_dir() and any(folder.iterdir()) else None


def clear_unfinished(conversion: Conversion) -> None:
    """Remove what a conversion that has not succeeded has written so far, so that it can be begun anew."""
    destination = settings.DATA_DIR / conversion.config["destination"]
    for path in destination.parent.glob(f".tmp-*{escape(destination.name)}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    # Whole, but its process was killed before it could say so.
    if conversion.is_export and destination.parent == _export_folder(conversion):
        shutil.rmtree(destination.parent, ignore_errors=True)
    elif not conversion.is_export and conversion.config["kind"] in CHILD_KINDS and not Checkpoint.objects.filter(path=conversion.config["destination"]).exists():
        shutil.rmtree(destination, ignore_errors=True)


def prepare(conversion: Conversion) -> None:
    """Make room for the converter of a new attempt: nothing of an earlier one runs, and nothing of it lies in the way."""
    processes.end_processes(conversion, grace_s=0)
    clear_unfinished(conversion)
    destination = settings.DATA_DIR / conversion.config["destination"]
    if destination.is_relative_to(settings.DATA_DIR):
        destination.parent.mkdir(parents=True, exist_ok=True)


def sweep() -> None:
    """Remove exports and forgotten uploads that are older than KEPT_DAYS, and what killed conversions left half-written."""
    old = timezone.now() - timedelta(days=KEPT_DAYS)
    kept = Q(result__startswith=f"{EXPORTS}/") | Q(direction=Conversion.Direction.IMPORT, status__in=(Status.FAILED, Status.CANCELLED))
    for conversion in Conversion.objects.filter(kept, status__in=ENDED, finished_at__lt=old):
        shutil.rmtree(_export_folder(conversion), ignore_errors=True)
        shutil.rmtree(conversion.folder / "source", ignore_errors=True)
        if conversion.is_export and conversion.result.startswith(f"{EXPORTS}/"):
            Conversion.objects.filter(pk=conversion.pk).update(result="")
    if Conversion.objects.active().exists():
        return
    for path in [*(settings.DATA_DIR / "checkpoints").glob(".tmp-*"), *(settings.DATA_DIR / EXPORTS).glob("*/.tmp-*")]:
        if time.time() - path.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def may_delete(user, conversion: Conversion) -> bool:
    """Everyone who sees a conversion may stop it; only its owner, or staff, may take its files away."""
    return user.is_staff or conversion.owner_id == user.pk


def _freeze(conversion: Conversion, *, enqueue: bool, write) -> Conversion:
    """Write the conversion's folder and its row: both or neither. An upload that was moved in comes back out when that fails."""
    conversion.folder.mkdir(parents=True)
    try:
        with disk_faults():
            write()
        with transaction.atomic():
            conversion.full_clean()
            conversion.save()
            if enqueue:
                queue.enqueue(conversion)
    except BaseException:
        shutil.rmtree(conversion.folder, ignore_errors=True)
        raise
    log.info("%s (%s) is in line", conversion, conversion.id)
    return conversion


def _write_import(conversion: Conversion) -> None:
    config = conversion.config
    if config["afterwards"] == DELETE:
        source = Path(config["source"])
        own = conversion.folder / "source" / source.name
        own.parent.mkdir()
        source.rename(own)
        config["source"] = str(own)
    if config["kind"] in CHILD_KINDS:
        ConvertJob(
            source=config["source"],
            destination=str(settings.DATA_DIR / config["destination"]),
            name=config["name"],
            weights=config["weights"],
            keep_original=config["keep_original"],
            tokenizers=config["tokenizers"],
            licence=config["licence"],
        ).write(conversion.folder)


def _register(conversion: Conversion, data: dict[str, Any]) -> tuple[Checkpoint, bool]:
    """The row of what an import wrote, and whether an equal checkpoint was there already: that one stays, and the new copy goes."""
    config = conversion.config
    folder = Path(data["path"])
    row = _same_original(conversion, folder) or storage.register_checkpoint(
        folder, origin=config["origin"], name=config["name"], owner=conversion.owner, sha256=data.get("sha256") or "", known_digests=_digests_of(data)
    )
    own = settings.DATA_DIR / config["destination"]
    if row.folder != folder:
        transaction.on_commit(partial(shutil.rmtree, folder, ignore_errors=True))
    elif config["licence"] and folder == own:
        Checkpoint.objects.filter(pk=row.pk).update(licence=config["licence"])
    return row, row.folder != own


def _digests_of(data: dict[str, Any]) -> Digests | None:
    if not data.get("content_sha256"):
        return None
    return Digests(whole=data["sha256"], content=data["content_sha256"], weights=data["weights_sha256"])


def _same_original(conversion: Conversion, folder: Path) -> Checkpoint | None:
    """A checkpoint that was made of the same file in the same way, whatever it is called."""
    if conversion.config["kind"] not in CHILD_KINDS:
        return None
    made = sources.original_facts(folder)
    if not made.get("source_sha256"):
        return None
    rows = Checkpoint.objects.filter(
        format=Checkpoint.Format.DIFFUSERS, facts__original__source_sha256=made["source_sha256"], facts__original__weights=made.get("weights")
    )
    rows = rows.visible_to(conversion.owner) if conversion.owner else rows
    kept = sources.keeps_original(folder)
    return next((row for row in rows if row.folder != folder and sources.original_facts(row.folder) and sources.keeps_original(row.folder) == kept), None)


def _tidy_source(conversion: Conversion) -> None:
    """An upload is no longer needed; what lay in the incoming folder is set aside, where no scan looks."""
    config = conversion.config
    if config["afterwards"] == DELETE:
        shutil.rmtree(conversion.folder / "source", ignore_errors=True)
    elif config["afterwards"] == ASIDE and Path(config["source"]).exists():
        source, aside = Path(config["source"]), sources.incoming_folder() / sources.SET_ASIDE
        if source.is_dir() and not conversion.already_here:
            storage.take_away(source, settings.DATA_DIR / config["destination"], aside=aside)
        else:
            storage.set_aside(source, aside)


def _afterwards(path: Path | None, origin: str) -> str:
    """What becomes of a source that was brought in."""
    if path is None:
        return KEEP
    if origin == Checkpoint.Origin.UPLOADED:
        return DELETE
    return ASIDE if path.is_relative_to(settings.DATA_DIR / sources.INCOMING) else KEEP


def _plain_name(found: Found) -> str:
    """What a model is called where nobody named it: its file, without the ending and the numbers of a trainer."""
    return Path(found.label.removeprefix("hub:").partition("@")[0]).name.removesuffix(".zip").removesuffix(".ckpt").removesuffix(".pth").removesuffix(".safetensors") or found.title


def _is_under_way(path: Path) -> bool:
    return any(job.config.get("source") == str(path) for job in Conversion.objects.active())


def _export_folder(conversion: Conversion) -> Path:
    return settings.DATA_DIR / EXPORTS / str(conversion.id)


def _relative(path: Path) -> str:
    return path.relative_to(settings.DATA_DIR).as_posix() if path.is_relative_to(settings.DATA_DIR) else str(path)

