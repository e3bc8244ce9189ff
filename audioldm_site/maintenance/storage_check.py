"""Rows against files, files against hashes, and files that no row knows. Mends only what cannot lose anything."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from audioldm_site.jobs.lifecycle import job_models
from audioldm_site.jobs.models import Job
from datasets_app.models import Clip, Dataset, DatasetStatus
from generation_app.models import Waveform
from gpu.errors import Fault
from gpu.events import EventTail
from gpu.manifest import MANIFEST_FILE, sha256_of
from training_app import storage
from training_app.models import Checkpoint, TrainingRun
from training_app.pretraining import RECIPE_FILE

ABANDONED_S = 6 * 3600
"""What is called .tmp-… and was not touched for so long belongs to nobody who lives."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be.

    Args:
        path: relative to DATA_DIR.
        size_bytes: what a file without a row takes.
        fixed: it was mended by this check.
    """

    code: str
    path: str
    message: str
    size_bytes: int = 0
    fixed: bool = False


def check_storage(*, hashes: bool = False, fix: bool = False) -> Iterator[Finding]:
    """Everything that is found, as it is found.

    Args:
        hashes: read every file and compare its content too: as slow as the disk.
        fix: mark checkpoints as missing or found again, and delete abandoned half-written files. Nothing else is ever changed.
    """
    yield from _datasets(hashes=hashes)
    yield from _checkpoints(hashes=hashes, fix=fix)
    yield from _jobs()
    yield from _sounds(hashes=hashes)
    yield from _unknown()
    yield from _abandoned(fix=fix)


def _datasets(*, hashes: bool) -> Iterator[Finding]:
    for dataset in Dataset.objects.filter(status=DatasetStatus.READY):
        if not dataset.folder.is_dir():
            yield Finding(code="storage.missing", path=_relative(dataset.folder), message=f"the sounds of dataset {dataset} are gone")
            continue
        clips = Clip.objects.filter(dataset=dataset).values_list("path", "size_bytes", "sha256")
        for path, size, sha256 in clips.iterator():
            yield from _file(dataset.folder / path, size=size, sha256=sha256 if hashes else "", of=f"dataset {dataset}")


def _checkpoints(*, hashes: bool, fix: bool) -> Iterator[Finding]:
    for checkpoint in Checkpoint.objects.all():
        there = checkpoint.folder.is_dir()
        if there == checkpoint.missing:
            message = f"checkpoint {checkpoint} is {'there again' if there else 'gone'}"
            yield Finding(code="storage.found" if there else "storage.missing", path=checkpoint.path, message=message, fixed=fix)
            if fix:
                Checkpoint.objects.filter(pk=checkpoint.pk).update(missing=not there)
        elif there and hashes and not _is_whole(checkpoint):
            yield Finding(code="storage.changed", path=checkpoint.path, message=f"checkpoint {checkpoint} is not what was recorded")


def _is_whole(checkpoint: Checkpoint) -> bool:
    try:
        return storage.checkpoint_digest(checkpoint) == checkpoint.sha256
    except (Fault, OSError):
        return False


def _jobs() -> Iterator[Finding]:
    for model in job_models():
        for job in model.objects.all().iterator():
            if not job.folder.is_dir():
                yield Finding(code="storage.missing", path=_relative(job.folder), message=f"the folder of {job.kind} {job} is gone")
            elif not job.is_active:
                yield from _events(job)
    for run in TrainingRun.objects.all().iterator():
        name, what = (RECIPE_FILE, "recipe") if run.is_pretraining else (MANIFEST_FILE, "list of clips")
        if run.folder.is_dir() and not (run.folder / name).is_file():
            yield Finding(code="storage.missing", path=_relative(run.folder / name), message=f"run {run} cannot go on without its {what}")


def _events(job: Job) -> Iterator[Finding]:
    """Of a job that has ended, file and rows say the same."""
    tail = EventTail(job.folder)
    try:
        tail.read()
    except (ValueError, OSError) as error:
        yield Finding(code="storage.changed", path=_relative(tail.path), message=f"the events of {job.kind} {job} cannot be read: {error}")
        return
    if tail.after < job.last_seq:
        message = f"the file of {job.kind} {job} ends at event {tail.after}, its rows at {job.last_seq}; it gets them back when the job goes on"
        yield Finding(code="storage.changed", path=_relative(tail.path), message=message)


def _sounds(*, hashes: bool) -> Iterator[Finding]:
    for sound in Waveform.objects.select_related("generation").iterator():
        if sound.generation.folder.is_dir():
            yield from _file(sound.file, size=None, sha256=sound.sha256 if hashes else "", of=f"generation {sound.generation}")


def _file(path: Path, *, size: int | None, sha256: str, of: str) -> Iterator[Finding]:
    try:
        found = path.stat().st_size
        if (size is not None and found != size) or (sha256 and sha256_of(path) != sha256):
            yield Finding(code="storage.changed", path=_relative(path), message=f"a sound of {of} is not what was recorded")
    except OSError as error:
        yield Finding(code="storage.missing", path=_relative(path), message=f"a sound of {of} cannot be read: {error.strerror}")


def _unknown() -> Iterator[Finding]:
    """Folders and models that no row stands for. They may be somebody's only copy, so they stay."""
    known = {"datasets": {str(pk) for pk in Dataset.objects.values_list("pk", flat=True)}}
    for model in job_models():
        known[model(pk=uuid.UUID(int=0)).folder.parent.name] = {str(pk) for pk in model.objects.values_list("pk", flat=True)}
    paths = set(Checkpoint.objects.values_list("path", flat=True))
    known["checkpoints"] = {Path(path).name for path in paths if path.startswith("checkpoints/")}
    for top, names in known.items():
        for path in _entries(settings.DATA_DIR / top):
            if path.name not in names and not path.name.startswith("."):
                yield Finding(code="storage.unknown", path=_relative(path), message="no row stands for this", size_bytes=bytes_below(path))
    for path in sorted((settings.DATA_DIR / "runs").glob("*/checkpoints/global_step=*")):
        if _relative(path) not in paths and not TrainingRun.objects.active().filter(pk=_id(path.parts[-3])).exists():
            yield Finding(code="storage.unknown", path=_relative(path), message="no row stands for this checkpoint", size_bytes=bytes_below(path))


def _abandoned(*, fix: bool) -> Iterator[Finding]:
    for path in abandoned():
        yield Finding(code="storage.abandoned", path=_relative(path), message="half written and left behind", size_bytes=bytes_below(path), fixed=fix)
        if fix:
            remove(path)


def abandoned(*, now: float | None = None) -> list[Path]:
    """What a killed process left half written, anywhere in DATA_DIR."""
    now = now or time.time()
    places = ["", "*/", "*/*/", "runs/*/checkpoints/"]
    found = {path for place in places for path in settings.DATA_DIR.glob(f"{place}.tmp-*")}
    return sorted(path for path in found if now - _newest(path) > ABANDONED_S)


def bytes_below(path: Path) -> int:
    """The size of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink():
        return 0
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    return sum(item.lstat().st_size for item in path.rglob("*") if item.is_file() and not item.is_symlink())


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _newest(path: Path) -> float:
    """The last change of anything in it: a long write touches a file, not the folder."""
    moments = [path.lstat().st_mtime]
    if path.is_dir() and not path.is_symlink():
        moments += [item.lstat().st_mtime for item in path.rglob("*")]
    return max(moments)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        return uuid.UUID(int=0)


def _relative(path: Path) -> str:
    return path.relative_to(settings.DATA_DIR).as_posix() if path.is_relative_to(settings.DATA_DIR) else str(path)


