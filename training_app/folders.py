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
from gpu.manifest import folder_digest
from gpu.models import CHECKPOINT_FILE, describe, verify_checkpoint
from training_app import loras, sources, storage
from training_app.models import Checkpoint, Conversion

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
            sha256, known = _known(conversion, teller)
            if known:
                target = known
            else:
                if not target.is_dir():
                    _place(conversion, staging, target, teller)
                sha256 = _digest(target, teller)
    except _StopAsked:
        _take_back(conversion, target)
        events.write(STOPPED)
        return
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    events.write(FINISHED, path=str(target), size_bytes=size, sha256=sha256, elapsed_s=time.monotonic() - started)


def _known(conversion: Conversion, teller: Teller) -> tuple[str, Path | None]:
    """The digest and the place of an equal model that is registered already; only looked for where one has the same size."""
    config = conversion.config
    source = Path(config["source"])
    if config["kind"] != sources.FOLDER or not source.is_dir():
        return "", None
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    if not Checkpoint.objects.filter(format=Checkpoint.Format.DIFFUSERS, size_bytes=size).exists():
        return "", None
    sha256 = _digest(source, teller)
    row = storage.twin(sha256=sha256, format=Checkpoint.Format.DIFFUSERS, owner=conversion.owner)
    at_home = row is not None and row.folder.is_dir() and row.folder.parent == settings.DATA_DIR / "checkpoints"
    return (sha256, row.folder) if at_home else ("", None)


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
        # It lies below DATA_DIR already: it is moved, not copied.
        sources.refuse_links(source)
        _require_model(source)
        source.rename(target)
        return
    else:
        _require_model(source)
        _copy(source, staging, teller)
    staging.rename(target)


def _take_back(conversion: Conversion, target: Path) -> None:
    """Nothing half done stays; a folder that was moved from the incoming folder goes back there."""
    source = Path(conversion.config["source"])
    if target.is_dir() and not source.exists():
        target.rename(source)
    shutil.rmtree(target, ignore_errors=True)


def _unpack(source: Path, staging: Path, *, label: str, teller: Teller) -> None:
    with sources.open_zip(source, label=label) as archive:
        total = archive.total_bytes
        storage.require_space(total, folder=staging.parent, what=label)
        archive.on_bytes = lambda done: teller.tell("unpacking", done, total)
        staging.mkdir()
        for name in sorted(archive.names):
            archive.extract(name, staging)


def _copy(source: Path, staging: Path, teller: Teller) -> None:
    """Copy a folder that was named in a terminal. Links in it are followed: the hub's own cache is made of them."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
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
        verify_checkpoint(folder)
    else:
        describe(folder)
        sources.require_known_parts(folder)


def _digest(folder: Path, teller: Teller) -> str:
    """What `Checkpoint.sha256` is, told as it goes."""
    if (folder / CHECKPOINT_FILE).is_file():
        facts = verify_checkpoint(folder)
        return facts.files[facts.weights_file]
    total, done = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), 0

    def count(path: Path) -> None:
        nonlocal done
        done += path.stat().st_size
        teller.tell("checking", done, total)

    teller.tell("checking", 0, total)
    return folder_digest(folder, on_file=count)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A place beside the target that is gone afterwards, whatever happens."""
    staging = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
