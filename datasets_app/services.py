"""Everything that changes datasets and their clips.

An import works in `DATA_DIR/uploads/<id>/`, where the source waits, and in `DATA_DIR/datasets/.tmp-<id>/`. Only when every clip has been
measured is that folder renamed, and only then do the rows appear, all in one transaction. Killed at any moment it leaves a dataset that
says `importing` and nothing else that counts; the next attempt begins clean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction

from audioldm_site.jobs import queue
from audioldm_site.names import free_name
from datasets_app.archive import LIMITS, disk_faults, open_source, require_space
from datasets_app.inspect import EXCLUDED_FLAGS, UNUSABLE_FLAGS, ClipFacts, Inspection, NoUsableClips, clean_caption, inspect_source
from datasets_app.models import Clip, Dataset, DatasetStatus, Origin, Split
from datasets_app.problems import as_json
from datasets_app.selectors import PROGRESS_FILE
from gpu.errors import Fault
from gpu.manifest import ManifestClip, folder_digest, sha256_of, write_manifest

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
SETTLED_S = 2.0
"""A file in the incoming folder that changed more recently may still be growing."""
PROGRESS_EVERY_S = 0.5
CLIP_BATCH = 500
ABANDONED_S = 6 * 3600
MAX_SHARE = 0.9
DEMO_LICENCE = "CC0, CC BY, MIT or public domain: ATTRIBUTION.md in the archive"
IMPORTED_FOLDER = "imported"


class Ignored(TypedDict):
    """A file that a scan left alone, and why."""

    path: str
    message: str


class Scan(NamedTuple):
    imported: list[Dataset]
    ignored: list[Ignored]


def create_dataset(
    *,
    source: Path,
    name: str | None = None,
    owner,
    origin: str,
    source_name: str | None = None,
    move: bool = False,
    enqueue: bool = True,
    pk: uuid.UUID | None = None,
) -> Dataset:
    """A dataset that is about to be imported; its source is kept in DATA_DIR/uploads until then.

    Args:
        source: a zip, or a folder with metadata.csv.
        name: the source's own name when None; a number is added when it is taken.
        move: take the source away instead of copying it.
        enqueue: False for a caller that calls `import_dataset` itself.
        pk: the id that it shall have, for a caller that must not make it twice.
    Raises:
        Fault: `dataset.not_a_zip` when the source is not there, `disk.full`.
    """
    source_name = source_name or source.name or source.resolve().name or "dataset"  # "." has no name of its own
    _require_readable(source)
    dataset = Dataset(pk=pk or uuid.uuid4(), owner=owner, origin=origin, source_name=source_name[:255])
    upload = _upload_folder(dataset)
    try:
        with disk_faults():
            upload.mkdir(parents=True)
            _take(source, upload / "source", move=move)
        with transaction.atomic():
            dataset.name = free_name(Dataset.objects.all(), name or Path(source_name).stem)
            dataset.full_clean(exclude={"problems"})
            dataset.save(force_insert=True)
            if enqueue:
                _enqueue(dataset)
    except BaseException:
        shutil.rmtree(upload, ignore_errors=True)
        raise
    return dataset


def import_dataset(dataset: Dataset) -> Dataset:
    """Read the waiting source; the dataset ends `ready` or `failed`.

    Called twice, or for a dataset that is not waiting, it does nothing.
    """
    with _claimed(dataset) as claimed:
        if claimed:
            try:
                inspection = _read_source(dataset)
                _publish(dataset, inspection)
            except Fault as fault:
                _fail(dataset, fault)
            except Exception:
                log.exception("dataset %s (%s) could not be imported", dataset.pk, dataset.name)
                _fail(dataset, Fault("dataset.import_failed", "the import met an error of the program; the log has the details", operator=True))
            finally:
                shutil.rmtree(_working_folder(dataset), ignore_errors=True)
    if Dataset.objects.filter(pk=dataset.pk).exists():
        dataset.refresh_from_db()
    return dataset


def import_inline(*, source: Path, name: str | None = None, owner=None, origin: str = Origin.IMPORTED) -> Dataset:
    """Create and import in this process, as the terminal does.

    Raises:
        Fault: the dataset was refused; nothing is kept of it.
    """
    dataset = import_dataset(create_dataset(source=source, name=name, owner=owner, origin=origin, enqueue=False))
    if dataset.status == DatasetStatus.FAILED:
        fault = Fault(dataset.error_code, dataset.error_detail)
        delete_dataset(dataset)
        raise fault
    return dataset


def recover_imports() -> list[Dataset]:
    """What a starting worker does: imports that died are put in line again, or fail honestly. Returns those put in line.

    Also removes what killed imports and deletions left in DATA_DIR.
    """
    again = []
    for dataset in Dataset.objects.filter(status=DatasetStatus.IMPORTING):
        with _lock(dataset) as free:
            if not free:
                continue
            if not (_upload_folder(dataset) / "source").exists():
                _fail(dataset, Fault("dataset.interrupted", f"the import of {dataset.source_name} was interrupted and its file is gone"))
            else:
                _enqueue(dataset)
                again.append(dataset)
    _sweep()
    return again


def update_clip(clip: Clip, *, caption: str | None = None, split: str | None = None, excluded: bool | None = None) -> Clip:
    """Change what a person decides about a clip; runs that exist keep the caption that they were frozen with.

    Exact duplicates follow a change of the split, so that no sound is on both sides.

    Raises:
        Fault: the clip can never be used, or there is no such split.
    """
    changed = []
    if caption is not None:
        clip.caption = clean_caption(caption.replace("\0", ""))
        flags = [flag for flag in clip.flags if flag != "no_caption"]
        clip.flags = flags if clip.caption else [*flags, "no_caption"]
        changed += ["caption", "flags"]
    if excluded is not None:
        unusable = UNUSABLE_FLAGS.intersection(clip.flags)
        if unusable and not excluded:
            raise Fault("clip.not_finite", f"{clip.original_name} has samples that are not numbers and cannot be included")
        clip.excluded = excluded
        changed.append("excluded")
    if split is not None:
        if split not in Split.values:
            raise Fault("split.unknown", f"{split!r} is not a split; known: {', '.join(Split.values)}")
        clip.split = split
        changed.append("split")
    with transaction.atomic():
        clip.save(update_fields=changed)
        if split is not None:
            Clip.objects.filter(dataset=clip.dataset_id, sha256=clip.sha256).update(split=split)
    return clip


def resplit(dataset: Dataset, *, seed: int, validation_share: float) -> Dataset:
    """Split all clips again; choices made by hand are forgotten.

    Raises:
        Fault: the share or the seed is out of bounds.
    """
    if not 0 <= validation_share <= MAX_SHARE:
        raise Fault("split.share", f"the validation share ({validation_share:g}) must be from 0 to {MAX_SHARE:g}")
    if not 0 <= seed < 2**31:
        raise Fault("split.seed", f"the seed ({seed}) must be from 0 to {2**31 - 1}")
    with transaction.atomic():
        clips = list(dataset.clips.values_list("sha256", "caption", "excluded"))
        usable = {sha256 for sha256, caption, excluded in clips if caption and not excluded}
        held_out = validation_hashes({sha256 for sha256, _, _ in clips}, prefer=usable, seed=seed, share=validation_share)
        for split in Split:
            wanted = [sha256 for sha256, _, _ in clips if (sha256 in held_out) == (split == Split.VALIDATION)]
            for batch in _batches(wanted, CLIP_BATCH):
                dataset.clips.filter(sha256__in=batch).update(split=split)
        dataset.split_seed, dataset.validation_share = seed, validation_share
        dataset.save(update_fields=["split_seed", "validation_share"])
    return dataset


def validation_hashes(hashes: set[str], *, prefer: set[str], seed: int, share: float) -> set[str]:
    """The content hashes that are held out.

    Each is drawn by a hash of itself and the seed, so a clip keeps its side when others come and go, and exact duplicates stay together.
    At least one of `prefer` (the usable ones) stays for training; with two or more, at least one is held out unless the share is 0.
    """

    def place(sha256: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{seed}:{sha256}".encode()).digest()[:8])

    held_out = {sha256 for sha256 in hashes if place(sha256) < share * 2**64}
    ordered = sorted(prefer & hashes or hashes, key=place)
    if share > 0 and len(ordered) >= 2:
        held_out.add(ordered[0])
    if ordered:
        held_out.discard(ordered[-1])
    return held_out


def update_dataset(dataset: Dataset, *, name: str | None = None, notes: str | None = None, licence: str | None = None) -> Dataset:
    """Change what people wrote about a dataset.

    Raises:
        Fault: the name is empty or taken, or a text is too long.
    """
    changed = []
    if name is not None and name != dataset.name:
        name = " ".join(name.split())
        if not name or Dataset.objects.exclude(pk=dataset.pk).filter(name=name).exists():
            raise Fault("dataset.name_taken", f"{name!r} is empty or the name of another dataset")
        dataset.name = name
        changed.append("name")
    if notes is not None:
        dataset.notes = notes
        changed.append("notes")
    if licence is not None:
        dataset.licence = licence.strip()
        changed.append("licence")
    try:
        dataset.full_clean(exclude={"owner", "problems"})
    except ValidationError as error:
        raise Fault("dataset.invalid", " ".join(error.messages)) from error
    dataset.save(update_fields=changed)
    return dataset


def rename_dataset(dataset: Dataset, *, name: str) -> Dataset:
    """Raises Fault `dataset.name_taken`."""
    return update_dataset(dataset, name=name)


def hand_over(dataset: Dataset, *, owner) -> Dataset:
    """Give a dataset to somebody, or to nobody: then everyone sees it."""
    dataset.owner = owner
    dataset.save(update_fields=["owner"])
    return dataset


def delete_dataset(dataset: Dataset) -> None:
    """Delete rows and sounds. Runs keep their history and lose the possibility to go on.

    Raises:
        Fault: `dataset.in_use` while a run that reads the sounds waits or works.
    """
    with transaction.atomic():
        active = dataset.runs.active().first()
        if active:
            raise Fault("dataset.in_use", f"{dataset.name} is used by the run {active}, which is {active.get_status_display()}; stop it first")
        folder, upload, pk = dataset.folder, _upload_folder(dataset), dataset.pk
        Dataset.objects.filter(pk=pk).delete()

    for path in (folder, upload):
        with contextlib.suppress(FileNotFoundError):
            # Renamed first: a deletion that is killed leaves nothing that looks whole.
            doomed = path.rename(path.with_name(f".tmp-deleted-{pk}"))
            shutil.rmtree(doomed, ignore_errors=True)


def freeze_manifest(dataset: Dataset, folder: Path) -> str:
    """Write the usable clips of a ready dataset as `manifest.jsonl` into a run's folder and return its digest.

    Raises:
        Fault: the dataset is not ready, has no usable clip, or lost a file.
    """
    if dataset.status != DatasetStatus.READY:
        raise Fault("dataset.not_ready", f"dataset {dataset.name} is {dataset.get_status_display()}; only a ready one can be trained on")
    clips = [
        ManifestClip(audio=str(dataset.folder / path), caption=caption, sha256=sha256, duration_s=duration_s, split=split)
        for path, caption, sha256, duration_s, split in dataset.clips.usable().values_list("path", "caption", "sha256", "duration_s", "split")
    ]
    if not clips:
        raise Fault("dataset.no_usable_clips", f"dataset {dataset.name} has no clip with a caption that is not excluded")
    gone = next((clip.audio for clip in clips if not Path(clip.audio).is_file()), None)
    if gone:
        raise Fault("clip.missing", f"{gone} of dataset {dataset.name} is not there any more", operator=True)
    return write_manifest(folder, clips)


def scan_incoming(*, owner=None) -> Scan:
    """Import what was dropped into DATA_DIR/incoming/datasets: zips, and folders with a metadata.csv.

    What is taken is moved to `imported/` beside it, where no scan looks. A file that is still being copied is left for the next
    scan, and so is one whose content is a dataset already.
    """
    incoming = settings.DATA_DIR / "incoming" / "datasets"
    scan = Scan([], [])
    for path in sorted(incoming.iterdir()) if incoming.is_dir() else []:
        if path.name.startswith((".", "_")) or path.name == IMPORTED_FOLDER:
            continue
        reason = _not_importable(path)
        sha256 = "" if reason else _source_sha256(path)
        twin = Dataset.objects.filter(source_sha256=sha256).exclude(status=DatasetStatus.FAILED).first() if sha256 else None
        if twin:
            reason = f"its content is already the dataset {twin.name}"
        if reason:
            scan.ignored.append({"path": str(path.relative_to(settings.DATA_DIR)), "message": reason})
        else:
            scan.imported.append(_import_dropped(path, sha256=sha256, owner=owner))
    return scan


def ensure_demo(archive: Path) -> Dataset | None:
    """The dataset that ships with the project, imported once: who deletes it does not get it back."""
    marker = settings.DATA_DIR / "demo_dataset_offered"
    if marker.exists() or Dataset.objects.exists():
        return None
    try:
        dataset = import_inline(source=archive, name="demo", origin=Origin.BUILTIN)
        update_dataset(dataset, licence=DEMO_LICENCE)
    except Fault as fault:
        log.warning("the demo dataset could not be imported: %s: %s", fault.code, fault.message)
        return None
    marker.touch()
    return dataset


def _read_source(dataset: Dataset) -> Inspection:
    """Extract and measure into the working folder, then give it its final name."""
    working, upload = _working_folder(dataset), _upload_folder(dataset) / "source"
    shutil.rmtree(working, ignore_errors=True)
    shutil.rmtree(dataset.folder, ignore_errors=True)  # of an attempt that died between the renaming and the rows
    if not upload.exists():
        raise Fault("dataset.interrupted", f"the import of {dataset.source_name} was interrupted and its file is gone")
    started = time.monotonic()
    with disk_faults():
        if not dataset.source_sha256:
            dataset.source_sha256 = _source_sha256(upload)
        require_space(settings.DATA_DIR, _bytes_below(upload))
        working.mkdir(parents=True)
        with open_source(upload, label=dataset.source_name, limits=LIMITS) as source:
            inspection = inspect_source(source, working, on_progress=_progress_writer(dataset))
        working.rename(dataset.folder)
    log.info("dataset %s: %d clips read in %.1f s", dataset.name, len(inspection.clips), time.monotonic() - started)
    return inspection


def _progress_writer(dataset: Dataset) -> Callable[[int, int], None]:
    """Keeps a small file for the page that waits; a row would cost a transaction each time."""
    path, last = _upload_folder(dataset) / PROGRESS_FILE, 0.0

    def write(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_EVERY_S:
            last = time.monotonic()
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"done": done, "total": total}))
            temporary.replace(path)

    return write


def _publish(dataset: Dataset, inspection: Inspection) -> None:
    """All rows and the status in one transaction; a dataset that was deleted meanwhile stays deleted."""
    clips = _clip_rows(dataset, inspection.clips)
    with transaction.atomic():
        published = Dataset.objects.filter(pk=dataset.pk, status=DatasetStatus.IMPORTING).update(
            status=DatasetStatus.READY,
            problems=as_json(inspection.problems),
            source_sha256=dataset.source_sha256,
            error_code="",
            error_detail="",
        )
        if published:
            Clip.objects.bulk_create(clips, batch_size=CLIP_BATCH)
    if not published:
        log.info("dataset %s was deleted while it was imported", dataset.pk)
        shutil.rmtree(dataset.folder, ignore_errors=True)
    shutil.rmtree(_upload_folder(dataset), ignore_errors=True)


def _clip_rows(dataset: Dataset, facts: list[ClipFacts]) -> list[Clip]:
    usable = {clip.sha256 for clip in facts if clip.caption and not EXCLUDED_FLAGS.intersection(clip.flags)}
    held_out = validation_hashes({clip.sha256 for clip in facts}, prefer=usable, seed=dataset.split_seed, share=dataset.validation_share)
    return [
        Clip(
            dataset=dataset,
            position=position,
            path=clip.path,
            original_name=clip.original_name,
            caption=clip.caption,
            original_caption=clip.original_caption,
            sha256=clip.sha256,
            size_bytes=clip.size_bytes,
            duration_s=clip.sound.duration_s,
            sample_rate_hz=clip.sound.sample_rate_hz,
            channels=clip.sound.channels,
            subtype=clip.sound.subtype,
            peak_dbfs=clip.sound.peak_dbfs,
            loudness_lufs=clip.sound.loudness_lufs,
            silence_share=clip.sound.silence_share,
            flags=clip.flags,
            peaks=clip.sound.peaks,
            split=Split.VALIDATION if clip.sha256 in held_out else Split.TRAIN,
            excluded=bool(EXCLUDED_FLAGS.intersection(clip.flags)),
        )
        for position, clip in enumerate(facts)
    ]


def _fail(dataset: Dataset, fault: Fault) -> None:
    """Say why, and keep nothing of the source: a mended one comes as a new upload."""
    problems = as_json(fault.problems) if isinstance(fault, NoUsableClips) else []
    Dataset.objects.filter(pk=dataset.pk, status=DatasetStatus.IMPORTING).update(
        status=DatasetStatus.FAILED, error_code=fault.code, error_detail=fault.message, problems=problems
    )
    log.info("dataset %s was refused: %s: %s", dataset.name, fault.code, fault.message)
    shutil.rmtree(dataset.folder, ignore_errors=True)
    shutil.rmtree(_upload_folder(dataset), ignore_errors=True)


@contextlib.contextmanager
def _claimed(dataset: Dataset) -> Iterator[bool]:
    """Whether this process may import: the dataset waits, nobody else works on it, and it has not died too often."""
    with _lock(dataset) as free:
        if not free:
            yield False
            return
        if not Dataset.objects.filter(pk=dataset.pk, status=DatasetStatus.IMPORTING).exists():
            shutil.rmtree(_upload_folder(dataset), ignore_errors=True)
            yield False
            return
        attempts = _upload_folder(dataset) / "attempts"
        count = len(attempts.read_bytes()) if attempts.exists() else 0
        if count >= MAX_ATTEMPTS:
            message = f"the import of {dataset.source_name} died {count} times, perhaps for want of memory; see the worker's log"
            _fail(dataset, Fault("dataset.interrupted", message, operator=True))
            yield False
            return
        with open(attempts, "ab") as file:
            file.write(b".")
        yield True


@contextlib.contextmanager
def _lock(dataset: Dataset) -> Iterator[bool]:
    """Whether nobody imports this dataset; held until the end of the block. The system drops it when the process dies."""
    folder = _upload_folder(dataset)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _sweep() -> None:
    """Remove folders that no living import or dataset needs."""
    waiting = {str(pk) for pk in Dataset.objects.filter(status=DatasetStatus.IMPORTING).values_list("pk", flat=True)}
    for path in [*(settings.DATA_DIR / "uploads").glob("*"), *(settings.DATA_DIR / "datasets").glob(".tmp-*")]:
        if path.name.removeprefix(".tmp-") not in waiting and time.time() - path.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _enqueue(dataset: Dataset) -> None:
    queue.enqueue_call("datasets", "datasets_app.tasks.import_dataset", str(dataset.pk))


def _require_readable(source: Path) -> None:
    """Before anything is copied: a folder that holds no dataset may be the whole disk.

    Raises:
        Fault: there is nothing, or something that cannot be read as a dataset.
    """
    try:
        status = source.stat()
        if stat.S_ISDIR(status.st_mode):
            with open_source(source):
                return
        if not stat.S_ISREG(status.st_mode):
            raise Fault("dataset.not_a_zip", f"{source} is no file and no folder")
        source.open("rb").close()
    except FileNotFoundError as error:
        raise Fault("dataset.not_a_zip", f"{source} does not exist") from error
    except OSError as error:
        raise Fault("dataset.not_a_zip", f"{source} cannot be read: {error.strerror}") from error


def _take(source: Path, target: Path, *, move: bool) -> None:
    if move:
        try:
            source.rename(target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        try:
            os.link(source.resolve(), target)  # no second copy of 20 GB where the file system can share one
        except OSError:
            shutil.copyfile(source, target)
    if move:
        shutil.rmtree(source) if source.is_dir() else source.unlink()


def _not_importable(path: Path) -> str:
    """Why a scan leaves a file alone; "" when it does not."""
    files = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
    newest = max((file.stat().st_mtime for file in files), default=0.0)
    if time.time() - newest < SETTLED_S:
        return "it is still being copied; scan again in a moment"
    if path.is_dir():
        return "" if (path / "metadata.csv").is_file() else "the folder has no metadata.csv"
    return "" if zipfile.is_zipfile(path) else "it is not a zip, or not a whole one yet"


def _import_dropped(path: Path, *, sha256: str, owner) -> Dataset:
    """Link the file into uploads without copying its bytes, and move it aside once the dataset stands in line."""
    keep = path.parent / IMPORTED_FOLDER
    keep.mkdir(exist_ok=True)
    kept = keep / path.name
    number = 1
    while kept.exists():
        number += 1
        kept = keep / f"{path.stem} {number}{path.suffix}"
    with transaction.atomic():
        dataset = create_dataset(source=path, owner=owner, origin=Origin.SCANNED)
        Dataset.objects.filter(pk=dataset.pk).update(source_sha256=sha256)
        dataset.source_sha256 = sha256
        path.rename(kept)
    return dataset


def _source_sha256(path: Path) -> str:
    return folder_digest(path) if path.is_dir() else sha256_of(path)


def _bytes_below(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    items = sorted(set(items))
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _upload_folder(dataset: Dataset) -> Path:
    return settings.DATA_DIR / "uploads" / str(dataset.pk)


def _working_folder(dataset: Dataset) -> Path:
    return settings.DATA_DIR / "datasets" / f".tmp-{dataset.pk}"
