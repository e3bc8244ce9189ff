"""The untrusted source of a dataset: a zip, or a folder in the terminal.

A zip is refused whole when anything about it is meant to harm (names that lead out of the folder, links, bombs, overlapping entries);
a single damaged entry costs only its own clip. Sizes are counted while bytes are written, never believed from a header.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gpu.errors import Fault

METADATA_FILE = "metadata.csv"
CHUNK_BYTES = 1 << 20
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a dataset may cost. Every limit is checked against real bytes, and named in the refusal.

    Args:
        ratio: extracted bytes for each byte of the archive. WAV seldom shrinks to a tenth, digital silence to a thousandth, so the first
            `ratio_free_bytes` do not count.
        directory_bytes: of the zip's table of contents, which is read into memory before its entries can be counted.
        path_bytes, name_bytes: of a name in the archive as UTF-8, whole and between two slashes.
    """

    total_bytes: int = 64 * GIB
    file_bytes: int = 4 * GIB
    metadata_bytes: int = 64 * MIB
    ratio: int = 100
    ratio_free_bytes: int = 256 * MIB
    entries: int = 50_000
    directory_bytes: int = 16 * MIB
    path_bytes: int = 400
    name_bytes: int = 200


LIMITS = Limits()

LITTER = re.compile(r"(^|/)(__MACOSX(/|$)|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)")
DRIVE = re.compile(r"^[A-Za-z]:")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10))}
UTF8_FLAG, ENCRYPTED_FLAGS = 0x800, 0x2041
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""bzip2 and LZMA are refused: zipfile decompresses them without a bound on memory."""
KNOWN_HEADS = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x1f\x8b": "a gzip file",
    b"RIFF": "a WAV file",
    b"ID3": "an MP3 file",
    b"fLaC": "a FLAC file",
    b"<!DO": "a web page",
    b"<htm": "a web page",
}


class Source:
    """The files of a dataset by their names below the folder that holds metadata.csv.

    Names are in NFC with `/`; what macOS and Windows leave behind is not among them.
    """

    def __init__(self, names: list[str], *, label: str, limits: Limits) -> None:
        if not names:
            raise Fault("dataset.empty", f"{label} holds no files")
        root, metadata = self._locate(names, label=label)
        self.limits = limits
        self.names = frozenset(name.removeprefix(root) for name in names if name.startswith(root) and name != metadata)
        self._root, self._metadata = root, metadata
        self._written = 0
        self._parents: set[Path] = set()

    def metadata(self) -> bytes:
        """The bytes of metadata.csv.

        Raises:
            Fault: it is damaged, or larger than the limit.
        """
        content = bytearray()
        for piece in self._pieces(self._metadata):
            content += piece
            if len(content) > self.limits.metadata_bytes:
                raise Fault("archive.too_large", f"{self._metadata} is larger than {_size(self.limits.metadata_bytes)}")
        return bytes(content)

    def extract(self, name: str, folder: Path) -> tuple[str, int]:
        """Write one file below `folder` and return its SHA-256 and size.

        Raises:
            Fault: `clip.corrupt` when this entry alone is damaged; `archive.…` when a limit is crossed; `disk.full`.
        """
        target = folder / name
        digest, size = hashlib.sha256(), 0
        with disk_faults():
            try:
                self._make_parent(target, folder, name)
                file = open(target, "xb")  # noqa: SIM115 (closed below)
            except (FileExistsError, NotADirectoryError):
                raise Fault("archive.duplicate_name", f"{name} collides with another name in the archive") from None
            with file:
                for piece in self._pieces(self._root + name):
                    size += len(piece)
                    self._count(len(piece), size, name)
                    digest.update(piece)
                    file.write(piece)
        return digest.hexdigest(), size

    def _make_parent(self, target: Path, folder: Path, name: str) -> None:
        """Once for each of them: asking where a path really leads costs a system call for each of its parts."""
        if target.parent in self._parents:
            return
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            raise Fault("archive.path_unsafe", f"{name} leads out of the dataset's folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._parents.add(target.parent)

    def _locate(self, names: list[str], *, label: str) -> tuple[str, str]:
        """The prefix below which the wanted files lie, and the name of the one that lists them."""
        return _locate_metadata(names, label=label)

    def _count(self, written: int, file_size: int, name: str) -> None:
        self._written += written
        if file_size > self.limits.file_bytes:
            raise Fault("archive.too_large", f"{name} is larger than {_size(self.limits.file_bytes)}, the limit for one file")
        if self._written > self.limits.total_bytes:
            raise Fault("archive.too_large", f"the extracted files are larger than {_size(self.limits.total_bytes)}, the limit for a dataset")

    def _pieces(self, name: str) -> Iterator[bytes]:
        """The content of a file, by its name in the whole source."""
        raise NotImplementedError


class ZipSource(Source):
    def __init__(self, file: BinaryIO, *, label: str, limits: Limits) -> None:
        self._label = label
        self._archive_bytes = os.fstat(file.fileno()).st_size
        self._zip = _open_zip(file, size=self._archive_bytes, label=label, limits=limits)
        self._entries = self._checked_entries(limits)
        _refuse_overlaps(file, self._zip)
        super().__init__(sorted(self._entries), label=label, limits=limits)

    def _checked_entries(self, limits: Limits) -> dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        if len(infos) > limits.entries:
            raise Fault("archive.too_many_files", f"{self._label} holds {len(infos)} entries; the limit is {limits.entries}")
        entries: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            written = _decoded_name(info)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Fault("archive.link", f"{written!r} is a link or a device; only files and folders are accepted")
            if info.flag_bits & ENCRYPTED_FLAGS:
                raise Fault("archive.encrypted", f"{written!r} is encrypted; make the zip without a password")
            name = safe_name(written, limits=limits)
            if written.endswith("/") or LITTER.search(name):
                continue
            if info.compress_type not in METHODS:
                raise Fault("archive.compression", f"{name} is packed by method {info.compress_type}; only plain and deflated entries are read")
            if name in entries:
                raise Fault("archive.duplicate_name", f"{name} is in the archive twice")
            entries[name] = info
        return entries

    def _pieces(self, name: str) -> Iterator[bytes]:
        try:
            with self._zip.open(self._entries[name]) as file:
                while piece := file.read(CHUNK_BYTES):
                    yield piece
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise Fault("clip.corrupt", f"{name} is damaged inside the zip: {error}") from error

    def _count(self, written: int, file_size: int, name: str) -> None:
        super()._count(written, file_size, name)
        allowed = self.limits.ratio_free_bytes + self.limits.ratio * self._archive_bytes
        if self._written > allowed:
            raise Fault(
                "archive.ratio",
                f"{self._label} ({_size(self._archive_bytes)}) unpacks to more than {_size(allowed)}, over {self.limits.ratio} times its size",
            )


class FolderSource(Source):
    def __init__(self, folder: Path, *, limits: Limits) -> None:
        self._paths: dict[str, Path] = {}
        for parent, folders, files in os.walk(folder):
            for written in [*folders, *files]:
                path = Path(parent, written)
                name = safe_name(path.relative_to(folder).as_posix(), limits=limits)
                if LITTER.search(name):
                    continue
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise Fault("archive.link", f"{name} is a link or a device; only files and folders are accepted")
                if path.is_file():
                    if name in self._paths:
                        raise Fault("archive.duplicate_name", f"{name} is in the folder twice, in two Unicode spellings")
                    self._paths[name] = path
            if len(self._paths) > limits.entries:
                raise Fault("archive.too_many_files", f"{folder.name} holds more than {limits.entries} files, the limit")
        super().__init__(sorted(self._paths), label=folder.name, limits=limits)

    def _pieces(self, name: str) -> Iterator[bytes]:
        with open(self._paths[name], "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece


@contextlib.contextmanager
def open_source(path: Path, *, label: str | None = None, limits: Limits = LIMITS) -> Iterator[Source]:
    """A zip or folder, checked and ready to be extracted from.

    Args:
        label: what the user calls it, for the messages.
    Raises:
        Fault: `dataset.not_a_zip`, `dataset.empty`, `dataset.no_metadata`, `archive.…`.
    """
    if path.is_dir():
        yield FolderSource(path, limits=limits)
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise Fault("dataset.not_a_zip", f"{label or path.name} cannot be read: {error.strerror}") from error
    with file:
        yield ZipSource(file, label=label or path.name, limits=limits)


def safe_name(written: str, *, limits: Limits = LIMITS) -> str:
    """A relative name in NFC without `.` and empty parts.

    Raises:
        Fault: `archive.path_unsafe` when it could lead elsewhere than below a folder, or cannot be a file's name on some system.
    """
    name = unicodedata.normalize("NFC", written)
    parts = [part for part in PurePosixPath(name).parts if part != "/"]
    clean = "/".join(parts)
    reason = ""
    if name.startswith("/") or DRIVE.match(name):
        reason = "is an absolute path"
    elif "\\" in name:
        reason = "contains a backslash"
    elif CONTROL.search(name):
        reason = "contains a control character"
    elif SURROGATE.search(name):
        reason = "is not Unicode"
    elif ".." in parts or not parts:
        reason = "leads out of the folder"
    elif any(part.split(".")[0].rstrip().upper() in DEVICES for part in parts):
        reason = "is the name of a device on Windows"
    elif len(clean.encode()) > limits.path_bytes or any(len(part.encode()) > limits.name_bytes for part in parts):
        reason = f"is longer than {limits.path_bytes} bytes, or than {limits.name_bytes} between two slashes"
    if reason:
        raise Fault("archive.path_unsafe", f"the name {written[:200]!r} {reason}")
    return clean


@contextlib.contextmanager
def disk_faults() -> Iterator[None]:
    """Says `disk.full` for the system's word that nothing more can be written.

    Raises:
        Fault: `disk.full`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Fault("disk.full", "the disk is full; nothing was kept of the import", operator=True) from error
        raise


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse early what cannot fit.

    Raises:
        Fault: `disk.full`.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise Fault("disk.full", f"{_size(needed_bytes)} are needed and {_size(free)} are free on the disk", operator=True)


def _locate_metadata(names: list[str], *, label: str) -> tuple[str, str]:
    """The prefix of the folder with metadata.csv, and that file's name: at the top, or in the one folder that holds everything."""
    found = [name for name in names if name.rpartition("/")[2].lower() == METADATA_FILE]
    for name in found:
        root = name[: -len(METADATA_FILE)]
        if root == "" or (root.count("/") == 1 and all(other.startswith(root) for other in names)):
            if sum(other.startswith(root) and "/" not in other.removeprefix(root) for other in found) > 1:
                raise Fault("dataset.no_metadata", f"{label} has several files called metadata.csv in different spellings")
            return root, name
    if found:
        where = ", ".join(found[:3])
        raise Fault("dataset.no_metadata", f"{label} has {where}; metadata.csv must be at the top, or in the one folder that holds everything")
    tables = [name for name in names if name.lower().endswith((".csv", ".tsv", ".json", ".jsonl", ".txt", ".xlsx"))]
    hint = f"; it has {', '.join(tables[:3])}" if tables else ""
    raise Fault("dataset.no_metadata", f"{label} has no metadata.csv{hint}")


def _open_zip(file: BinaryIO, *, size: int, label: str, limits: Limits) -> zipfile.ZipFile:
    head = file.read(4)
    try:
        # Read before ZipFile does: it would take a table of contents of gigabytes into memory.
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end and end[zipfile._ECD_SIZE] > limits.directory_bytes:  # type: ignore[attr-defined]
            raise Fault("archive.too_many_files", f"{label} has a table of contents over {_size(limits.directory_bytes)}, the limit")
        if end:
            return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError, struct.error, UnicodeDecodeError) as error:
        raise Fault("archive.truncated", f"{label} is cut short or damaged: {error}") from error
    if head.startswith(b"PK\x03\x04"):
        raise Fault("archive.truncated", f"{label} ({_size(size)}) is cut short: the end of the zip is missing")
    if not size:
        raise Fault("dataset.empty", f"{label} is an empty file")
    what = next((words for start, words in KNOWN_HEADS.items() if head.startswith(start)), "something else")
    raise Fault("dataset.not_a_zip", f"{label} is not a zip but {what}")


def _refuse_overlaps(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Entries that share bytes make a small file unpack to a huge one without any high compression ratio."""
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        file.seek(max(info.header_offset, 0))
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04" or info.header_offset < 0:
            raise Fault("archive.truncated", f"{info.filename} is not where the zip says that it is")
        if info.header_offset < end:
            raise Fault("archive.overlapping", f"{info.filename} overlaps with another entry of the zip")
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:])
        end = info.header_offset + 30 + name_bytes + extra_bytes + info.compress_size
    if end > archive.start_dir:
        raise Fault("archive.overlapping", "the last entry of the zip overlaps with its table of contents")


def _decoded_name(info: zipfile.ZipInfo) -> str:
    """The name as its author meant it. Without the UTF-8 flag Python reads cp437, but macOS and others write UTF-8 all the same."""
    if info.flag_bits & UTF8_FLAG:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.orig_filename


def _size(count: int) -> str:
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"
