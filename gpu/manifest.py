"""The frozen list of clips that a run trains on: `manifest.jsonl`, one clip a line, with a digest over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from gpu.errors import Fault

MANIFEST_FILE = "manifest.jsonl"
TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)


@dataclass(frozen=True, kw_only=True)
class ManifestClip:
    """One sound as a run sees it.

    Args:
        audio: path of the sound, absolute or relative to the manifest's folder.
        sha256: of the file's bytes; checked before the clip is used.
        split: `train` or `validation`.
    """

    audio: str
    caption: str
    sha256: str
    duration_s: float
    split: str


def write_manifest(folder: Path, clips: Iterable[ManifestClip]) -> str:
    """Write the manifest whole or not at all and return its digest."""
    clips = list(clips)
    text = "".join(json.dumps(asdict(clip), ensure_ascii=False, sort_keys=True) + "\n" for clip in clips)
    temporary = folder / f"{MANIFEST_FILE}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / MANIFEST_FILE)
    return digest(clips)


def read_manifest(folder: Path) -> list[ManifestClip]:
    """Raises Fault `manifest.unreadable` with the line's number."""
    path = folder / MANIFEST_FILE
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # not splitlines(): a caption may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise Fault("manifest.unreadable", f"{path}: {error}") from error
    clips = []
    for number, line in enumerate(lines, start=1):
        try:
            clips.append(ManifestClip(**json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise Fault("manifest.unreadable", f"{path} line {number}: {str(error)[:200]}") from error
    return clips


def digest(clips: Iterable[ManifestClip]) -> str:
    """SHA-256 over every clip's content hash, caption and split, in order; where the files lie does not count."""
    total = hashlib.sha256()
    for clip in clips:
        total.update(json.dumps([clip.sha256, clip.caption, clip.split], ensure_ascii=False).encode())
    return total.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, *, on_file: Callable[[Path], None] | None = None) -> str:
    """SHA-256 over the relative name and content of every file in a model folder, in name order.

    Args:
        on_file: told about each file that was read.
    """
    return digest_of(file_digests(folder, on_file=on_file))


def file_digests(folder: Path, *, files: Iterable[Path] | None = None, on_file: Callable[[Path], None] | None = None) -> dict[str, str]:
    """SHA-256 of the files in a folder, by relative name.

    Args:
        files: relative to the folder; None for all.
        on_file: told about each file that was read.
    """
    paths = [path for path in folder.rglob("*") if path.is_file()] if files is None else [folder / name for name in files]
    found = {}
    for path in sorted(paths):
        found[path.relative_to(folder).as_posix()] = sha256_of(path)
        if on_file:
            on_file(path)
    return found


def digest_of(hashes: Mapping[str, str]) -> str:
    """SHA-256 over files' names and their own hashes, in the order of paths."""
    total = hashlib.sha256()
    for name in sorted(hashes, key=PurePosixPath):
        total.update(f"{name}\0{hashes[name]}\n".encode())
    return total.hexdigest()
