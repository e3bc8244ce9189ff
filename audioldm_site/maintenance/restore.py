"""Read a backup into an empty DATA_DIR, wherever that is. Nothing is believed: every name, size and hash is checked before a file counts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import uuid
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, connection

from audioldm_site.jobs.lifecycle import job_models
from audioldm_site.jobs.models import Worker
from audioldm_site.maintenance.backup import (
    DUMP_FILE,
    FORMAT,
    HEADER,
    INDEX,
    JSON_FILE,
    KEPT_FILES,
    PIECE_BYTES,
    SQLITE_FILE,
    Result,
    Say,
    media_folders,
    run_postgres,
)
from gpu.config import CONFIG_FILE
from gpu.errors import Fault
from gpu.manifest import MANIFEST_FILE

DATABASES = (SQLITE_FILE, DUMP_FILE, JSON_FILE)
TEXT_BYTES = 512 * 2**20
"""More than the index of a million files."""


def restore(source: Path, *, say: Say = lambda line: None) -> Result:
    """Put a backup into DATA_DIR, which must be empty, and the database.

    Paths that jobs have frozen (their model, their clips) are changed to the new place.

    Raises:
        Fault: DATA_DIR or the database is in use (`restore.not_empty`), the backup is not one or not whole (`backup.damaged`), it is of
            another kind of database (`restore.other_database`), or there is no room.
    """
    require_empty()
    staging = settings.DATA_DIR / ".tmp-restore"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        header, result = unpack(source, staging, say=say)
        _require_same_database(header["database"])
        say("every file is whole; moving them to their places")
        relocate(staging, old=header["data_dir"], new=str(settings.DATA_DIR))
        for name in media_folders():
            if (staging / name).is_dir():
                shutil.rmtree(settings.DATA_DIR / name, ignore_errors=True)
                (staging / name).replace(settings.DATA_DIR / name)
        for name in KEPT_FILES:
            if (staging / name).is_file():
                (staging / name).replace(settings.DATA_DIR / name)
        # Last: without it the studio would be empty, and a killed restore is easily told.
        _bring_database(staging / header["database"])
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return result


def check(source: Path, *, say: Say = lambda line: None) -> Result:
    """Read a whole backup and compare every hash; keeps nothing.

    Raises:
        Fault: as `restore`.
    """
    return unpack(source, None, say=say)[1]


def require_empty() -> None:
    """Raises Fault where something would be written over."""
    for name in media_folders():
        folder = settings.DATA_DIR / name
        if folder.is_dir() and any(folder.iterdir()):
            raise Fault("restore.not_empty", f"{folder} is not empty: a backup is restored into a DATA_DIR of its own")
    if not settings.ENVIRONMENT.database_url:
        if (settings.DATA_DIR / SQLITE_FILE).exists():
            raise Fault("restore.not_empty", f"{settings.DATA_DIR / SQLITE_FILE} exists: a backup is restored into a DATA_DIR of its own")
    elif connection.introspection.table_names():
        raise Fault("restore.not_empty", f"the database {connection.settings_dict['NAME']} has tables: a backup is restored into an empty one")


def unpack(source: Path, folder: Path | None, *, say: Say) -> tuple[dict[str, Any], Result]:
    """Write the archive's files below `folder` (None: nowhere) and compare each with the index at its end."""
    found: dict[str, tuple[int, str]] = {}
    header: dict[str, Any] | None = None
    index: dict[str, Any] | None = None
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                if header is None:
                    header = _header(archive, member)
                    _require_room(header, folder)
                elif member.name == INDEX:
                    index = _json(archive, member)
                else:
                    name = _safe_name(member)
                    found[name] = _extract(archive, member, folder / name if folder else None)
                    if len(found) % 1000 == 0:
                        say(f"{len(found)} files")
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Fault("backup.damaged", f"{source} cannot be read as a backup: {error}") from error
    if header is None or index is None or header["database"] not in found:
        raise Fault("backup.damaged", f"{source} ends before its index, or has no database: it was cut short")
    _compare(source, found, index)
    return header, Result(path=source, files=len(found), size_bytes=sum(size for size, _ in found.values()), database=header["database"])


def relocate(root: Path, *, old: str, new: str) -> int:
    """Change frozen absolute paths below `old` to `new` in the jobs' folders below `root`; returns how many files were changed.

    A manifest's digest counts contents, captions and splits, not where the files lie, so it stays what it was.
    """
    if old == new:
        return 0
    changed = 0
    for path in sorted(path for name in (CONFIG_FILE, MANIFEST_FILE) for top in job_folders() for path in (root / top).glob(f"*/{name}")):
        text = path.read_text(encoding="utf-8")
        if path.name == CONFIG_FILE:
            moved = json.dumps(_moved(json.loads(text), old, new), indent=1, ensure_ascii=False) + "\n"
        else:
            lines = text.rstrip("\n").split("\n")
            moved = "".join(json.dumps(_moved(json.loads(line), old, new), ensure_ascii=False, sort_keys=True) + "\n" for line in lines if line)
        if moved != text:
            path.write_text(moved, encoding="utf-8")
            changed += 1
    return changed


def job_folders() -> list[str]:
    """The folders of DATA_DIR in which jobs have their own."""
    return [model(pk=uuid.UUID(int=0)).folder.parent.name for model in job_models()]


def _moved(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str) and (value == old or value.startswith(old + "/")):
        return new + value[len(old) :]
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    return value


def _header(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    if member.name != HEADER:
        raise Fault("backup.damaged", f"the archive begins with {member.name!r}, not with {HEADER}: it is no backup of a studio")
    header = _json(archive, member)
    if header.get("format") != FORMAT or header.get("database") not in DATABASES or not isinstance(header.get("data_dir"), str):
        raise Fault("backup.damaged", f"the backup's format ({header.get('format')!r}) is not {FORMAT}: it was written by another version")
    return header


def _json(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    file = archive.extractfile(member) if member.isreg() and member.size <= TEXT_BYTES else None
    content = json.loads(file.read()) if file else None
    if not isinstance(content, dict):
        raise Fault("backup.damaged", f"{member.name} in the backup is not what it should be")
    return content


def _safe_name(member: tarfile.TarInfo) -> str:
    parts = PurePosixPath(member.name).parts
    allowed = parts and (parts[0] in media_folders() if len(parts) > 1 else parts[0] in (*KEPT_FILES, *DATABASES))
    if not member.isreg() or not allowed or ".." in parts or "\0" in member.name or member.name != "/".join(parts):
        raise Fault("backup.damaged", f"{member.name!r} does not belong into a backup")
    return member.name


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path | None) -> tuple[int, str]:
    file = archive.extractfile(member)
    total, size = hashlib.sha256(), 0
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with open(path or os.devnull, "wb") as target:
        while file and (piece := file.read(PIECE_BYTES)):
            total.update(piece)
            size += len(piece)
            target.write(piece)
    if path is not None:
        if member.name in KEPT_FILES or member.name in DATABASES:
            path.chmod(0o600)
        os.utime(path, (member.mtime, member.mtime))
    return size, total.hexdigest()


def _compare(source: Path, found: dict[str, tuple[int, str]], index: dict[str, Any]) -> None:
    listed = {name: (size, sha256) for name, size, sha256 in index.get("files", [])}
    if listed != found:
        wrong = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
        raise Fault("backup.damaged", f"{len(wrong)} files of {source} are not as they were written, {wrong[0]} among them")


def _require_room(header: dict[str, Any], folder: Path | None) -> None:
    needed = header.get("size_bytes", 0)
    if folder is not None and needed > (free := shutil.disk_usage(settings.DATA_DIR).free):
        raise Fault("disk.full", f"the backup holds {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free under {settings.DATA_DIR}", operator=True)


def _require_same_database(name: str) -> None:
    is_sqlite = not settings.ENVIRONMENT.database_url
    if (name == SQLITE_FILE) != is_sqlite:
        raise Fault("restore.other_database", f"the backup holds {name}, and DATABASE_URL is {'empty (SQLite)' if is_sqlite else 'a PostgreSQL'}")


def _bring_database(copy: Path) -> None:
    if copy.name == SQLITE_FILE:
        with closing(sqlite3.connect(copy)) as database:
            # They work elsewhere.
            database.execute(f"DELETE FROM {Worker._meta.db_table}")
            database.commit()
        copy.replace(settings.DATA_DIR / SQLITE_FILE)
        return
    if copy.name == DUMP_FILE:
        run_postgres(["pg_restore", "--no-owner", "--exit-on-error", f"--dbname={connection.settings_dict['NAME']}", str(copy)])
    else:
        # The backup has the starter and the demo, or its owner did not want them.
        settings.BUILTINS = False
        call_command("migrate", verbosity=0, interactive=False)
        call_command("loaddata", str(copy), verbosity=0)
    try:
        Worker.objects.all().delete()
    except DatabaseError as error:
        raise Fault("backup.database", f"the restored database cannot be read: {error}", operator=True) from error
