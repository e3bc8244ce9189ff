"""What the worker does itself when a model comes in that needs no converting: folders, zips of folders, runs' checkpoints, LoRAs.

Everything is written to `.tmp-…` beside its place and renamed when it is whole. An attempt that died is begun anew; one that had
already renamed goes on from there.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from datasets_app.archive import disk_faults
from gpu.errors import Fault
from gpu.events import FINISHED, STARTED, STOPPED, WAITING, EventWriter
from gpu.models import CHECKPOINT_FILE, LORA_FILE, UNET_FILE, describe, verify_checkpoint
from gpu.originals.contents import SIDE_FILE, Digests, digests, kept_files
from gpu.originals.finite import require_finite
from training_app import loras, sources, storage
from training_app.models import Conversion

TELL_EVERY_S = 0.5
CHUNK_BYTES = 16 * 2**20


class _StopAsked(Exception):
    """Somebody wants this to end."""


class Teller:
    """Says how far the work is, at most twice a second, and ends it when it is asked to stop."""

    def __init__(self, events: EventWriter, should_stop: Callable[[], bool]) -> None:
        self._events, self._should_stop = events, should_stop
        self._stage, self._told_at = "", 0.0

    def tell(self, stage: str, done: int, total: int) -> None:
        """Raises _StopAsked."""
        if self._should_stop():
            raise _StopAsked
        moment = time.monotonic()
        if stage != self._stage or done >= total or moment - self._told_at >= TELL_EVERY_S:
            self._stage, self._told_at = stage, moment
            self._events.write(WAITING, stage=stage, done=done, total=total, message="")


def bring_in(conversion: Conversion, events: EventWriter, should_stop: Callable[[], bool]) -> None:
    """The whole work of such an import, with its events.

    Raises:
        Fault: it is no model that we know, is damaged, or does not fit on the disk.
    """
    started = time.monotonic()
    config = conversion.config
    teller = Teller(events, should_stop)
    target = settings.DATA_DIR / config["destination"]
    events.write(STARTED, source=conversion.source)
    try:
        with disk_faults(), _staging(target) as staging:
            known = _known(conversion, teller)
            if known:
                target = known
            elif not target.is_dir():
                _place(conversion, staging, target, teller)
            told = _digest(target, teller)
    except _StopAsked:
        _take_back(conversion, target)
        events.write(STOPPED)
        return
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    events.write(FINISHED, path=str(target), size_bytes=size, **told, elapsed_s=time.monotonic() - started)


def _known(conversion: Conversion, teller: Teller) -> Path | None:
    """The place of an equal model that is registered already; only looked for where one is of the same sizes."""
    config = conversion.config
    source = Path(config["source"])
    if config["kind"] != sources.FOLDER or not source.is_dir() or not storage.may_be_known(describe(source)):
        return None
    row = storage.same_model(source, _digests(source, teller, files=kept_files(source)), owner=conversion.owner)
    at_home = row is not None and row.folder.is_dir() and row.folder.parent == settings.DATA_DIR / "checkpoints"
    return row.folder if at_home else None


def _place(conversion: Conversion, staging: Path, target: Path, teller: Teller) -> None:
    """Put the model at its place, whole."""
    config = conversion.config
    source = Path(config["source"])
    if not source.exists():
        raise Fault("checkpoint.missing", f"{source.name} is no longer where it was")
    if config["kind"] in sources.ADDITIONS:
        found = sources.look_at(source, follow_links=True)
        loras.write_checkpoint(found, conversion.base, staging, licence=config["licence"], report=lambda done, total: teller.tell("writing", done, total))
    elif config["kind"] == sources.ZIP:
        _unpack(source, staging, label=conversion.source, teller=teller)
        _require_model(staging)
    elif config["afterwards"] == "set aside":
        # It lies below DATA_DIR already: it takes no more room, and what does not belong to it stays behind.
        sources.refuse_links(source)
        _require_model(source)
        storage.link_model(source, staging)
    else:
        _require_model(source)
        _copy(source, staging, teller)
    if config["kind"] not in sources.ADDITIONS:
        _require_finite(staging, teller)
        storage.settle_on_base(staging, owner=conversion.owner)
    staging.rename(target)


def _take_back(conversion: Conversion, target: Path) -> None:
    """Nothing half done stays; a model that was there before is nobody's to take back."""
    if target == settings.DATA_DIR / conversion.config["destination"]:
        shutil.rmtree(target, ignore_errors=True)


def _unpack(source: Path, staging: Path, *, label: str, teller: Teller) -> None:
    with sources.open_zip(source, label=label) as archive:
        total = archive.total_bytes
        storage.require_space(total, folder=staging.parent, what=label)
        archive.on_bytes = lambda done: teller.tell("unpacking", done, total)
        staging.mkdir()
        for name in archive.kept():
            archive.extract(name, staging)


def _copy(source: Path, staging: Path, teller: Teller) -> None:
    """Copy a folder that was named in a terminal. Links in it are followed: the hub's own cache is made of them."""
    files = [source / name for name in kept_files(source)]
    total, done = sum(path.stat().st_size for path in files), 0
    for path in files:
        target = staging / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "rb") as reader, open(target, "wb") as writer:
            while piece := reader.read(CHUNK_BYTES):
                writer.write(piece)
                done += len(piece)
                teller.tell("copying", done, total)
            writer.flush()
            os.fsync(writer.fileno())


def _require_model(folder: Path) -> None:
    """Raises Fault unless it is a whole model, or a run's checkpoint that can be laid on one."""
    if (folder / CHECKPOINT_FILE).is_file():
        verify_checkpoint(folder, only=(UNET_FILE, LORA_FILE))
    else:
        describe(folder)


def _require_finite(folder: Path, teller: Teller) -> None:
    """Raises Fault `checkpoint.not_finite` when a weight is no number."""
    paths = [path for path in sorted(folder.rglob("*.safetensors")) if path.name != SIDE_FILE]
    total, done = sum(path.stat().st_size for path in paths), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        teller.tell("checking", done, total)

    require_finite(paths, on_bytes=count)


def _digest(folder: Path, teller: Teller) -> dict[str, str]:
    """What `Checkpoint.sha256` is, and what else the last event says of a model, told as it goes."""
    if (folder / CHECKPOINT_FILE).is_file():
        facts = verify_checkpoint(folder, only=(UNET_FILE, LORA_FILE))
        return {"sha256": facts.files[facts.weights_file]}
    found = _digests(folder, teller, files=None)
    return {"sha256": found.whole, "content_sha256": found.content, "weights_sha256": found.weights}


def _digests(folder: Path, teller: Teller, *, files: list[Path] | None) -> Digests:
    total, done = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), 0

    def count(path: Path) -> None:
        nonlocal done
        done += path.stat().st_size
        teller.tell("checking", done, total)

    teller.tell("checking", 0, total)
    return digests(folder, files=files, on_file=count)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A place beside the target that is gone afterwards, whatever happens."""
    staging = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
