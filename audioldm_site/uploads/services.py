"""Everything that changes uploads.

The rules that keep them whole: bytes count only when they are synced (`Upload.offset`), whatever lies behind is cut off before anything is
appended, and one process at a time works on an upload (a lock that the system drops with its holder). What comes of a complete one has its
id, so it is made once, however often the end of it is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import BinaryIO

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, Sum
from django.urls import reverse
from django.utils import timezone

from audioldm_site.uploads.models import FOLDER, Upload
from datasets_app import services as datasets
from datasets_app.models import Dataset, Origin
from gpu.errors import Fault
from training_app import drafts

log = logging.getLogger(__name__)

ALGORITHMS = ("sha1", "sha256")
PIECE_BYTES = 256 * 1024
SYNC_EVERY_BYTES = 16 * 1024**2
ROOM_BYTES = 500 * 10**6
"""What an upload leaves free: the database, logs and the checkpoints of running jobs come first."""
UPLOADS_AT_ONCE = 100
"""Unfinished ones that one user may have; each is a row and a folder."""
LOCK_FILE = "lock"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class BodyLost(Exception):
    """The connection ended before the whole request had come."""


@dataclass(frozen=True)
class Checksum:
    """What a client says that the bytes of one request hash to."""

    algorithm: str
    digest: bytes


def create_upload(*, owner, kind: str, filename: str, length: int, label: str = "", metadata: str = "") -> Upload:
    """Room for a file that will come.

    Raises:
        Fault: `upload.invalid`, `upload.too_large`, `upload.quota`, or `disk.full` when it and what else is on its way would not fit.
    """
    sweep()
    _require_valid(kind=kind, filename=filename, length=length, label=label)
    with transaction.atomic():
        upload = Upload(owner=owner, kind=kind, filename=filename, label=label, metadata=metadata, length=length)
        _require_quota(upload)
        _require_room(length + _on_their_way())
        upload.save(force_insert=True)
        with _disk_faults():
            upload.folder.mkdir(parents=True)
            upload.part.touch()
    if length == 0:
        finish(upload)
    return upload


def receive(upload: Upload, read: Callable[[int], bytes], *, offset: int, checksum: Checksum | None = None) -> Upload:
    """Append the body of one request; the last byte finishes the upload.

    Args:
        read: gives at most so many bytes of the body, and b"" at its end. When it raises BodyLost what has come is kept, unless there is a
            checksum, which can no longer be compared.
        offset: where the client believes that the body goes.
    Raises:
        Fault: `upload.locked`, `upload.offset`, `upload.too_long`, `upload.checksum` (nothing of the request is kept), `upload.gone`,
            `disk.full`, or what finishing it raises.
        BodyLost: as it came from `read`; what may be kept is.
    """
    _require_offset(upload, offset)
    with _locked(upload):
        _require_offset(upload, offset)
        # Unbuffered: after a full disk there is nothing left that closing the file would try to write again.
        with _disk_faults(), open(upload.part, "r+b", buffering=0) as file:
            file.truncate(offset)
            file.seek(offset)
            _append(upload, file, read, checksum=checksum)
        if upload.is_complete:
            _finish(upload)
    return upload


def finish(upload: Upload) -> Upload:
    """Hand a complete upload on, unless that has been done: for one whose process was killed between its last byte and that.

    Raises:
        Fault: `upload.locked`; what only the operator can mend (a full disk): the upload stays as it is and can be finished later.
    """
    if upload.is_complete and not upload.finished_at:
        with _locked(upload):
            _finish(upload)
    return upload


def remove(upload: Upload) -> None:
    """Forget an upload and its bytes. What came of it stays.

    Raises:
        Fault: `upload.locked`, somebody is sending it.
    """
    if upload.folder.exists():
        with _lock(upload):
            shutil.rmtree(upload.folder, ignore_errors=True)
    Upload.objects.filter(pk=upload.pk).delete()


def arrived(upload: Upload) -> int:
    """Bytes that are safe. Less than the row says where the disk has lost some."""
    with contextlib.suppress(FileNotFoundError):
        return min(upload.offset, upload.part.stat().st_size) if not upload.finished_at else upload.offset
    return upload.offset if upload.is_complete else 0


def expired(*, now=None) -> list[Upload]:
    """Uploads to which nothing has come for so long that they may go, finished ones too: what came of those has its own place."""
    before = (now or timezone.now()) - timedelta(hours=settings.ENVIRONMENT.upload_keep_hours)
    return list(Upload.objects.filter(touched_at__lt=before))


def sweep(*, now=None) -> int:
    """Remove expired uploads, and folders that no row knows; returns how many went. One that somebody is sending right now stays."""
    count = 0
    for upload in expired(now=now):
        with contextlib.suppress(Fault):
            remove(upload)
            count += 1
    known = {str(pk) for pk in Upload.objects.values_list("pk", flat=True)}
    oldest = (now.timestamp() if now else time.time()) - settings.ENVIRONMENT.upload_keep_hours * 3600
    for path in (settings.DATA_DIR / FOLDER).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.name not in known and path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)
                count += 1
    return count


def _require_offset(upload: Upload, offset: int) -> None:
    if upload.finished_at or offset != arrived(upload):
        raise Fault("upload.offset", f"{arrived(upload)} bytes of {upload.filename} have arrived; the request begins at {offset}")


def _append(upload: Upload, file: BinaryIO, read: Callable[[int], bytes], *, checksum: Checksum | None) -> None:
    digest = hashlib.new(checksum.algorithm) if checksum else None
    began = at = looked_at = upload.offset
    kept = False
    try:
        while piece := read(PIECE_BYTES):
            if at + len(piece) > upload.length:
                raise Fault("upload.too_long", f"{upload.filename} has {upload.length} bytes, as it was announced; more are sent")
            _write(file, piece)
            at += len(piece)
            if digest:
                digest.update(piece)
            if at - looked_at >= SYNC_EVERY_BYTES:
                looked_at = at
                if not digest:
                    _sync(upload, file, at)
                _require_room(0)
        if checksum and digest and not hmac.compare_digest(digest.digest(), checksum.digest):
            raise Fault("upload.checksum", f"the bytes from {began} to {at} hash ({checksum.algorithm}) to something else than was announced")
        kept = True
    except BodyLost:
        kept = checksum is None
        raise
    finally:
        # Whole pieces count; those of a request that was refused, or could not be compared, do not.
        if kept and at > upload.offset:
            _sync(upload, file, at)
        elif not kept:
            file.truncate(upload.offset)


def _write(file: BinaryIO, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


def _sync(upload: Upload, file: BinaryIO, at: int) -> None:
    """Make the bytes safe, then say so: never the other way round."""
    os.fsync(file.fileno())
    upload.offset, upload.touched_at = at, timezone.now()
    if not Upload.objects.filter(pk=upload.pk).update(offset=at, touched_at=upload.touched_at):
        raise Fault("upload.gone", f"{upload.filename} was removed meanwhile")


def _finish(upload: Upload) -> None:
    """Call what an upload of this kind is for; under the lock. A refusal is kept as the upload's result, and its bytes go."""
    if upload.finished_at:
        return
    try:
        upload.location = {Upload.Kind.DATASET: _as_dataset, Upload.Kind.CHECKPOINT: _as_checkpoint}[Upload.Kind(upload.kind)](upload)
    except Fault as fault:
        if fault.operator:
            raise
        upload.error_code, upload.error_detail = fault.code, fault.message
    except ValidationError as error:
        upload.error_code, upload.error_detail = "config.invalid", " ".join(error.messages)
    upload.finished_at = timezone.now()
    upload.save(update_fields=["location", "error_code", "error_detail", "finished_at"])
    log.info("upload %s of %s (%s bytes) ended: %s", upload.pk, upload.filename, upload.length, upload.error_code or upload.location)
    if upload.error_code or upload.kind == Upload.Kind.DATASET:
        shutil.rmtree(upload.folder, ignore_errors=True)


def _as_dataset(upload: Upload) -> str:
    if not Dataset.objects.filter(pk=upload.pk).exists():
        # Of a process that was killed on the way; the bytes are still ours, since they are linked, not moved.
        shutil.rmtree(settings.DATA_DIR / "uploads" / str(upload.pk), ignore_errors=True)
        datasets.create_dataset(
            pk=upload.pk, source=upload.part, source_name=upload.filename, name=upload.label or None, owner=upload.owner, origin=Origin.UPLOADED
        )
    return reverse("datasets:dataset", args=[upload.pk])


def _as_checkpoint(upload: Upload) -> str:
    drafts.keep_draft(upload.folder, upload.part, name=upload.filename, owner=upload.owner)
    return f"{reverse('checkpoints:choose')}?upload={upload.pk}"


def _require_valid(*, kind: str, filename: str, length: int, label: str) -> None:
    if kind not in Upload.Kind.values:
        raise Fault("upload.invalid", f"kind ({kind[:20]!r}) must be one of {', '.join(Upload.Kind.values)}")
    for name, text, longest, least in (("filename", filename, 255, 1), ("name", label, 115, 0)):
        if not least <= len(text) <= longest or CONTROL.search(text):
            raise Fault("upload.invalid", f"{name} ({text[:40]!r}) must have {least} to {longest} characters and no control characters")
    most = settings.ENVIRONMENT.upload_max_gb * 10**9
    if length > most:
        raise Fault("upload.too_large", f"{filename} has {length / 1e9:.1f} GB; one file may have {most / 1e9:g} GB (UPLOAD_MAX_GB)")


def _require_quota(upload: Upload) -> None:
    mine = Upload.objects.of(upload.owner).unfinished()
    held = mine.aggregate(total=Sum("length"))["total"] or 0
    most = settings.ENVIRONMENT.upload_quota_gb * 10**9
    if held + upload.length > most:
        message = f"your unfinished uploads would take {(held + upload.length) / 1e9:.1f} GB; the limit is {most / 1e9:g} GB (UPLOAD_QUOTA_GB)"
        raise Fault("upload.quota", message)
    if mine.count() >= UPLOADS_AT_ONCE:
        raise Fault("upload.quota", f"you have {UPLOADS_AT_ONCE} unfinished uploads, the limit")


def _on_their_way() -> int:
    """Bytes that unfinished uploads still have to bring."""
    return Upload.objects.unfinished().aggregate(total=Sum(F("length") - F("offset")))["total"] or 0


def _require_room(needed_bytes: int) -> None:
    free = shutil.disk_usage(settings.DATA_DIR).free
    if needed_bytes + ROOM_BYTES > free:
        message = f"{needed_bytes / 1e9:.2f} GB are to come, {ROOM_BYTES / 1e9:.1f} GB must stay free, and {free / 1e9:.2f} GB are free on the disk"
        raise Fault("disk.full", message, operator=True)


@contextlib.contextmanager
def _disk_faults() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Fault("upload.gone", "the upload was removed meanwhile") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Fault("disk.full", "the disk is full; what has arrived is kept, and the upload can go on", operator=True) from error
        raise


@contextlib.contextmanager
def _locked(upload: Upload) -> Iterator[None]:
    """The upload as it stands, and nobody else at it until the end of the block.

    Raises:
        Fault: `upload.locked`, `upload.gone`.
    """
    with _lock(upload):
        try:
            upload.refresh_from_db()
        except Upload.DoesNotExist:
            raise Fault("upload.gone", f"{upload.filename} was removed") from None
        upload.offset = arrived(upload)
        yield


@contextlib.contextmanager
def _lock(upload: Upload) -> Iterator[None]:
    try:
        file = open(upload.folder / LOCK_FILE, "ab")  # noqa: SIM115 (closed below)
    except FileNotFoundError as error:
        raise Fault("upload.gone", f"{upload.filename} has ended, or was removed") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fault("upload.locked", f"another request is sending {upload.filename} right now") from None
        yield
