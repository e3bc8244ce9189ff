"""What may go: shows it first, deletes it on request. Never what is pinned, best, last, liked, or what anything else was made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models import F, Max, ProtectedError, Q
from django.utils import timezone

from audioldm_site.accounts.models import LoginAttempts
from audioldm_site.accounts.throttle import FORGOTTEN_AFTER
from audioldm_site.jobs.lifecycle import job_models
from audioldm_site.jobs.models import ENDED
from audioldm_site.maintenance.storage_check import abandoned, bytes_below, remove
from audioldm_site.uploads import services as uploads
from datasets_app.models import Dataset, DatasetStatus
from generation_app import services as generations
from generation_app.models import Generation
from training_app.models import Checkpoint

DAY_S = 24 * 3600
PARTS_AFTER_S = DAY_S
"""Uploads that nobody goes on with."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that may go, and how it goes."""

    kind: str
    name: str
    size_bytes: int
    delete: Callable[[], object]


def targets(
    *, cache_days: float = 30, export_days: float = 7, checkpoint_days: float | None = None, sound_days: float | None = None
) -> Iterator[Target]:
    """Everything that nobody needs any more, by the ages given (in days, since the last use or the end).

    Args:
        checkpoint_days: also checkpoints of ended runs, but for the best, the last, pinned ones and those that something was made from.
            None keeps them all.
        sound_days: also generations that nobody likes. None keeps them all.
    """
    yield from _cache(cache_days)
    yield from _old_files("export", settings.DATA_DIR / "exports", export_days * DAY_S, busy=_active_ids())
    yield from _uploads()
    yield from (Target(kind="half written", name=_name(path), size_bytes=bytes_below(path), delete=lambda path=path: remove(path)) for path in abandoned())
    if checkpoint_days is not None:
        yield from _checkpoints(checkpoint_days)
    if sound_days is not None:
        yield from _sounds(sound_days)
    yield from _rows()


def _cache(days: float) -> Iterator[Target]:
    """Latents and embeddings are made again when they are missed; while a run works its own stay, whatever their age."""
    youngest = min((job.started_at.timestamp() for model in job_models() for job in model.objects.active() if job.started_at), default=time.time())
    for path in _files(settings.DATA_DIR / "cache"):
        status = path.stat()
        used = max(status.st_mtime, status.st_atime)
        if time.time() - used > days * DAY_S and used < youngest:
            yield Target(kind="cache", name=_name(path), size_bytes=status.st_size, delete=lambda path=path: path.unlink(missing_ok=True))


def _old_files(kind: str, folder: Path, age_s: float, *, busy: set[str]) -> Iterator[Target]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if time.time() - path.stat().st_mtime > age_s and not any(name in path.name for name in busy):
            yield Target(kind=kind, name=_name(path), size_bytes=bytes_below(path), delete=lambda path=path: remove(path))


def _uploads() -> Iterator[Target]:
    importing = {str(pk) for pk in Dataset.objects.filter(status=DatasetStatus.IMPORTING).values_list("pk", flat=True)}
    yield from _old_files("upload", settings.DATA_DIR / "uploads", PARTS_AFTER_S, busy=importing | _active_ids())
    for upload in uploads.expired():
        yield Target(kind="upload", name=upload.filename, size_bytes=bytes_below(upload.folder), delete=lambda upload=upload: uploads.remove(upload))


def _checkpoints(days: float) -> Iterator[Target]:
    ended_before = timezone.now() - timedelta(days=days)
    rows = (
        Checkpoint.objects.filter(origin=Checkpoint.Origin.RUN, pinned=False, is_best=False, missing=False)
        .filter(run__status__in=ENDED, run__finished_at__lt=ended_before)
        .filter(descendants=None, runs=None, generations=None, evaluations=None, listenings=None)
        .annotate(last_step=Max("run__checkpoints__global_step", filter=Q(run__checkpoints__missing=False)))
        .exclude(global_step=F("last_step"))
        .select_related("run")
    )
    for checkpoint in rows.order_by("run__finished_at", "global_step").distinct():
        size = bytes_below(checkpoint.folder)
        yield Target(kind="checkpoint", name=str(checkpoint), size_bytes=size, delete=lambda checkpoint=checkpoint: _delete_checkpoint(checkpoint))


def _delete_checkpoint(checkpoint: Checkpoint) -> None:
    """The row first: what something else needs cannot go, whoever made it since this list was."""
    try:
        with transaction.atomic():
            folder = checkpoint.folder
            Checkpoint.objects.select_for_update().filter(pinned=False, is_best=False).get(pk=checkpoint.pk).delete()
    except (ProtectedError, Checkpoint.DoesNotExist):
        return
    remove(folder)


def _sounds(days: float) -> Iterator[Target]:
    rows = Generation.objects.filter(status__in=ENDED, favourite=False, finished_at__lt=timezone.now() - timedelta(days=days))
    for generation in rows.exclude(waveforms__favourite=True):
        size = bytes_below(generation.folder)
        yield Target(kind="generation", name=str(generation), size_bytes=size, delete=lambda generation=generation: generations.delete_generation(generation))


def _rows() -> Iterator[Target]:
    old = [
        ("expired sessions", Session.objects.filter(expire_date__lt=timezone.now())),
        ("forgotten login attempts", LoginAttempts.objects.filter(last_at__lt=timezone.now() - FORGOTTEN_AFTER)),
    ]
    for name, rows in old:
        if count := rows.count():
            yield Target(kind="rows", name=f"{count} {name}", size_bytes=0, delete=rows.delete)


def _active_ids() -> set[str]:
    return {str(pk) for model in job_models() for pk in model.objects.active().values_list("pk", flat=True)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()) if folder.is_dir() else iter(())


def _name(path: Path) -> str:
    return path.relative_to(settings.DATA_DIR).as_posix()
