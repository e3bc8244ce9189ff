"""One file with everything: `manage.py backup` writes it while the studio works, `manage.py restore` reads it into an empty DATA_DIR.

The parts must fit each other although jobs run meanwhile:

1. Every file is hard-linked into a folder of its own, so that nothing that is deleted from now on is missed. Files that grow (events, logs)
   are copied instead.
2. The database is copied as it is at one moment.
3. What came between is linked too. Then the jobs are cut back to that moment: events that the copied rows do not know, and checkpoints that
   have no row yet, are left out. Such a job is one that was killed just then, and every job goes on after that.

The tar holds a header, the files, and at its end an index with the SHA-256 of each. It is as secret as the machine: passwords' hashes and the
secret key are in it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction

from audioldm_site.jobs.lifecycle import job_models
from gpu.errors import Fault
from gpu.events import EVENTS_FILE, Event
from training_app.models import Checkpoint

FORMAT = 1
HEADER, INDEX = "backup.json", "index.json"
LEFT_OUT = ("cache", "uploads", "parts", "exports", "incoming")
"""Made again when needed, half brought in, or not ours yet."""
GROWING = (EVENTS_FILE, "log.txt", "log.1.txt", "pinned")
SQLITE_FILE, DUMP_FILE, JSON_FILE = "db.sqlite3", "postgres.dump", "database.json"
KEPT_FILES = ("secret_key", "demo_dataset_offered")
PIECE_BYTES = 1 << 20
NO_LINKS = (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the copied rows say: each job's newest event, and every checkpoint's path."""

    last_seqs: dict[str, int]
    checkpoints: set[str]


@dataclass(kw_only=True)
class Result:
    """What was put into a backup, or taken out of one."""

    path: Path
    files: int = 0
    size_bytes: int = 0
    database: str = ""
    vanished: list[str] = field(default_factory=list)


def back_up(target: Path, *, say: Say = lambda line: None) -> Result:
    """Write everything into `target`, whole or not at all.

    Args:
        target: a .tar, or a .tar.gz (smaller by little, as sounds and weights hardly shrink); must not exist.
    Raises:
        Fault: it exists, has another ending, lies below DATA_DIR's media, or there is no room (`disk.full`).
    """
    target = Path(os.path.realpath(target))
    if target.exists() or not target.name.endswith((".tar", ".tar.gz")):
        raise Fault("backup.target", f"{target} must be a new file that ends in .tar or .tar.gz")
    if not target.parent.is_dir():
        raise Fault("backup.target", f"{target.parent} is no folder")
    part = target.with_name(f".{target.name}.part")
    staging = settings.DATA_DIR / f".tmp-backup-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        files = _collect(staging)
        say(f"{len(files)} files are held; copying the database")
        with _database_copy(staging) as (name, known):
            files |= _collect(staging)
        _cut_back(staging, files, known)
        files[name] = staging / name
        _require_room(files, part.parent)
        result = _write(part, files, database=name, say=say)
        part.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        part.unlink(missing_ok=True)
    result.path, result.size_bytes = target, target.stat().st_size
    return result


def media_folders() -> list[str]:
    """The folders of DATA_DIR that cannot be made again."""
    tops = dict.fromkeys(name.split("/")[0] for name in settings.MEDIA_FOLDERS)
    return [name for name in tops if name not in LEFT_OUT]


def _collect(staging: Path) -> dict[str, Path]:
    """Relative name → where its bytes are held. A second call adds what is new, and copies again what grows."""
    held: dict[str, Path] = {}
    for top in media_folders():
        for path in _files_below(settings.DATA_DIR / top):
            relative = path.relative_to(settings.DATA_DIR)
            try:
                held[relative.as_posix()] = _hold(path, staging / relative)
            except FileNotFoundError:  # deleted this very moment
                continue
    for name in KEPT_FILES:
        if (settings.DATA_DIR / name).is_file():
            held[name] = settings.DATA_DIR / name
    return held


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        # What is half written, and requests to a process that will not live there.
        folders[:] = sorted(name for name in folders if not name.startswith(".tmp-") and name != "control")
        for name in sorted(names):
            path = Path(parent, name)
            if not name.endswith((".tmp", ".lock", ".part")) and not name.startswith(".tmp-") and path.is_file() and not path.is_symlink():
                yield path


def _hold(path: Path, copy: Path) -> Path:
    """Where this file's bytes stay as they are: a hard link, or a copy of what grows; the file itself where links are not to be had."""
    grows = path.name in GROWING
    if copy.exists() and not grows:
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    if grows:
        shutil.copyfile(path, copy)
        return copy
    try:
        os.link(path, copy)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return path
    return copy


@contextmanager
def _database_copy(staging: Path) -> Iterator[tuple[str, Known]]:
    """The database as it is at one moment, in a file, and what it says."""
    if connection.vendor == "sqlite":
        copy = staging / SQLITE_FILE
        _copy_sqlite(Path(connection.settings_dict["NAME"]), copy)
        with closing(sqlite3.connect(copy)) as database:
            known = _known(lambda sql: database.execute(sql).fetchall())
        yield SQLITE_FILE, known
        return
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        name = _dump_postgres(cursor, staging)

        def ask(sql: str) -> list[tuple]:
            cursor.execute(sql)
            return cursor.fetchall()

        known = _known(ask)
    yield name, known


def _copy_sqlite(source: Path, copy: Path) -> None:
    """By SQLite's own backup, which goes on beside writers."""
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)) as live, closing(sqlite3.connect(copy)) as target:
        live.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
        if (found := target.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise Fault("backup.damaged", f"the database is damaged: {found}", operator=True)


def _dump_postgres(cursor, staging: Path) -> str:
    """With pg_dump where it is installed, else as Django's JSON; both at the moment of this transaction."""
    if shutil.which("pg_dump"):
        cursor.execute("SELECT pg_export_snapshot()")
        command = ["pg_dump", "--format=custom", "--no-owner", f"--snapshot={cursor.fetchone()[0]}", f"--file={staging / DUMP_FILE}"]
        run_postgres(command)
        return DUMP_FILE
    with open(staging / JSON_FILE, "w", encoding="utf-8") as file:
        call_command("dumpdata", "--natural-foreign", exclude=["contenttypes", "auth.permission", "sessions.session"], stdout=file)
    return JSON_FILE


def run_postgres(command: list[str]) -> None:
    database = connection.settings_dict
    places = {"PGHOST": database["HOST"], "PGPORT": str(database["PORT"]), "PGUSER": database["USER"], "PGPASSWORD": database["PASSWORD"], "PGDATABASE": database["NAME"]}
    done = subprocess.run(command, env={**os.environ, **{name: value for name, value in places.items() if value}}, capture_output=True, text=True)
    if done.returncode != 0:
        raise Fault("backup.database", f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}", operator=True)


def _known(ask: Callable[[str], Iterable[tuple]]) -> Known:
    last_seqs: dict[str, int] = {}
    for model in job_models():
        last_seqs |= {str(uuid.UUID(str(pk))): seq for pk, seq in ask(f"SELECT id, last_seq FROM {model._meta.db_table}")}
    return Known(last_seqs=last_seqs, checkpoints={path for (path,) in ask(f"SELECT path FROM {Checkpoint._meta.db_table}")})


def _cut_back(staging: Path, files: dict[str, Path], known: Known) -> None:
    """Leave each job as the copied rows know it."""
    for name in list(files):
        parts = PurePosixPath(name).parts
        if parts[-1] == EVENTS_FILE and len(parts) == 3:
            _cut_events(files[name], known.last_seqs.get(parts[1], 0))
        elif parts[0] == "runs" and parts[2:3] == ("checkpoints",) and "/".join(parts[:4]) not in known.checkpoints:
            del files[name]


def _cut_events(path: Path, last_seq: int) -> None:
    whole = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or Event.from_json(line).seq > last_seq:
                    break
            except ValueError:
                break
            whole += len(line)
    os.truncate(path, whole)


def _require_room(files: dict[str, Path], folder: Path) -> None:
    needed, free = sum(path.stat().st_size + 1024 for path in files.values() if path.exists()), shutil.disk_usage(folder).free
    if needed > free:
        raise Fault("disk.full", f"the backup needs up to {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free under {folder}", operator=True)


def _write(part: Path, files: dict[str, Path], *, database: str, say: Say) -> Result:
    result = Result(path=part, database=database)
    index: list[list[Any]] = []
    header = {
        "format": FORMAT,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_dir": str(settings.DATA_DIR),
        "database": database,
        "size_bytes": sum(path.stat().st_size for path in files.values() if path.exists()),
        "django": version("Django"),
    }
    with tarfile.open(part, "w:gz" if part.name.endswith(".gz.part") else "w", format=tarfile.PAX_FORMAT) as archive:
        _add_text(archive, HEADER, header)
        for number, (name, path) in enumerate(sorted(files.items()), start=1):
            try:
                index.append([name, *_add_file(archive, name, path)])
            except FileNotFoundError:  # only where links are not to be had
                result.vanished.append(name)
            if number % 1000 == 0:
                say(f"{number} of {len(files)} files")
        _add_text(archive, INDEX, {"files": index})
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    result.files = len(index)
    return result


def _add_text(archive: tarfile.TarFile, name: str, content: dict[str, Any]) -> None:
    data = json.dumps(content, ensure_ascii=False).encode()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    archive.addfile(entry, io.BytesIO(data))


def _add_file(archive: tarfile.TarFile, name: str, path: Path) -> tuple[int, str]:
    """Returns its size and SHA-256, of the very bytes that were written."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime, entry.mode = status.st_size, int(status.st_mtime), 0o600
        hashed = Hashed(file)
        archive.addfile(entry, hashed)
    return status.st_size, hashed.total.hexdigest()


class Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.total = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.total.update(data)
        return data
