"""One reader for the files that weights come in: torch zip files, torch files from before 1.6, safetensors.

Only names, shapes and places are read; values stay on the disk until somebody asks, and then come through a memory map. Nothing is
unpickled, and every number in the file is checked against the file's own size before it is believed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from gpu.errors import Fault
from gpu.originals.pickles import MAX_PICKLE_BYTES, PickleContent, PickleDamage, StorageRef, TensorRef, read_pickle

TORCH_ZIP, TORCH_LEGACY, SAFETENSORS = "torch zip", "torch legacy", "safetensors"
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "|b1",
}  # fmt: skip
MAX_TENSORS = 100_000
MAX_NAME_CHARACTERS = 512
MAX_DIRECTORY_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 100 * 2**20
MAX_SHARING = 4
"""All tensors together may be this many times larger than the file: tied weights share their bytes, bombs share them thousands of times."""
CHUNK_BYTES = 8 * 2**20
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
EXTRAS_KEPT, EXTRA_CHARACTERS = 32, 4096
MAX_WAY = 3
STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "weights", "params", "ema")
"""Under which a file may hold its weights by name; the first that is there is read."""
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.")
"""What DistributedDataParallel, torch.compile, FSDP and DeepSpeed put before every name."""
FOLDED = tuple(f"{key}." for key in STATE_KEYS)
MODEL_PREFIX, EMA_PREFIX, COMPILED = "model.diffusion_model.", "model_ema.", "_orig_mod"


@dataclass(frozen=True)
class Entry:
    """Shape and type of one tensor; types are safetensors' words (F32, I64, BOOL …)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Block:
    """A range of the file that holds one storage, with the CRC-32 that the zip promises for it, or None."""

    offset: int
    size_bytes: int
    crc: int | None = None


@dataclass(frozen=True)
class _Place:
    offset: int
    stride: tuple[int, ...]
    contiguous: bool


@dataclass
class TensorFile:
    """A file of tensors. Use it as a context manager; arrays are valid only within.

    Attributes:
        names: every tensor, in the file's order.
        format: `torch zip`, `torch legacy` or `safetensors`.
        extras: plain values beside the tensors: `global_step`, `epoch`, `pytorch-lightning_version`; a safetensors file's metadata.
        foreign: names of classes and functions that the file's pickle wanted to use. None was.
        blocks: the storages that the tensors lie in.
        stored: how the file itself spells a name, where what a trainer wraps a model in was taken off it.
        wrapped: what was taken off, in words.
    """

    path: Path
    format: str
    names: dict[str, Entry]
    extras: dict[str, Any]
    size_bytes: int
    foreign: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    stored: dict[str, str] = field(default_factory=dict)
    wrapped: tuple[str, ...] = ()
    _places: dict[str, _Place] = field(default_factory=dict, repr=False)
    _file: BinaryIO | None = field(default=None, repr=False)
    _map: mmap.mmap | None = field(default=None, repr=False)
    _stamp: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self._stamp = _stamp_of(self.path)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        # The map itself goes with the last array that lies in it.
        self._map = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def array(self, name: str) -> np.ndarray:
        """A read-only view of the values on the disk; BF16 comes as uint16."""
        entry, place = self.names[name], self._places[name]
        kind = np.dtype(NUMPY[entry.dtype])
        if entry.numel == 0:
            return np.zeros(entry.shape, kind)
        if self._map is None:
            self._map = mmap.mmap(self._handle().fileno(), 0, access=mmap.ACCESS_READ)
        strides = tuple(step * kind.itemsize for step in place.stride)
        return np.ndarray(entry.shape, kind, buffer=self._map, offset=place.offset, strides=strides)

    def chunks(self, name: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes | memoryview]:
        """The values in order, as bytes, a piece at a time.

        Read and not mapped: mapped pages count as this process's memory, and a file that shrinks meanwhile would kill it.

        Raises:
            Fault: `checkpoint.incomplete`, the file ends before the tensor does.
        """
        entry, place = self.names[name], self._places[name]
        if not place.contiguous:
            yield memoryview(np.ascontiguousarray(self.array(name)).reshape(-1).view(np.uint8))
            return
        yield from self._range(place.offset, entry.size_bytes, chunk_bytes)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors have the same shape, type and bits."""
        if self.names[one] != self.names[other]:
            return False
        if self._places[one] == self._places[other]:
            return True
        return all(left == right for left, right in zip(self.chunks(one), self.chunks(other), strict=True))

    def verify(self, on_bytes: Callable[[int], None] = lambda done: None) -> str:
        """Read the whole file once; compare every storage with its CRC-32, where the format has one.

        Args:
            on_bytes: told how many bytes have been read so far.
        Returns:
            The file's SHA-256.
        Raises:
            Fault: `checkpoint.corrupt`, some storages are not what was written.
        """
        total = hashlib.sha256()
        done, damaged = 0, []

        def read(size: int) -> int:
            nonlocal done
            crc = 0
            for piece in self._range(done, size, CHUNK_BYTES):
                total.update(piece)
                crc = zlib.crc32(piece, crc)
                done += len(piece)
                on_bytes(done)
            return crc

        checked = [block for block in self.blocks if block.crc is not None]
        for block in self.blocks:
            read(block.offset - done)
            if read(block.size_bytes) != block.crc and block.crc is not None:
                damaged.append(block)
        read(self.size_bytes - done)
        # torch can be told to leave the sums out; then none of them is right.
        if damaged and (len(damaged) < len(checked) or len(checked) < 2):
            raise Fault(
                "checkpoint.corrupt",
                f"{self.path.name}: {len(damaged)} of {len(checked)} tensors' values are not what was written (CRC-32), the first at byte {damaged[0].offset}",
            )
        return total.hexdigest()

    def require_unchanged(self) -> None:
        """Raises Fault `checkpoint.changed` when somebody has written to the file, or put another in its place, since it was opened."""
        if _stamp_of(self.path) != self._stamp:
            raise Fault("checkpoint.changed", f"{self.path.name} was changed while it was read: wait until it is whole, then begin again")

    def _range(self, offset: int, size: int, chunk_bytes: int) -> Iterator[bytes]:
        handle = self._handle().fileno()
        while size:
            piece = os.pread(handle, min(chunk_bytes, size), offset)
            while len(piece) < min(chunk_bytes, size):
                more = os.pread(handle, min(chunk_bytes, size) - len(piece), offset + len(piece))
                if not more:
                    raise Fault("checkpoint.incomplete", f"{self.path.name} ends {size - len(piece)} bytes before it should: has it changed meanwhile?")
                piece += more
            yield piece
            offset += len(piece)
            size -= len(piece)

    def _handle(self) -> BinaryIO:
        if self._file is None:
            self._file = open(self.path, "rb")  # noqa: SIM115  (open for the object's life)
        return self._file


def _stamp_of(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def open_tensors(path: Path) -> TensorFile:
    """Read what a file of tensors holds; no values.

    Raises:
        Fault: `file.unusable`, it cannot be opened; `checkpoint.unrecognised`, it is something else, which is named;
            `checkpoint.incomplete`, it is cut short; `checkpoint.malformed`, its own numbers contradict each other.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise Fault("checkpoint.unrecognised", f"{path.name} is no ordinary file; expected a checkpoint file (.ckpt, .pth, .safetensors)")
        with open(path, "rb") as file:
            start = file.read(512)
            if start.startswith(b"PK"):
                return _open_torch_zip(path, file, size)
            if start.startswith(LEGACY_MAGIC):
                return _open_legacy(path, file, size)
            if _looks_like_safetensors(start, size):
                return _open_safetensors(path, file, size)
    except OSError as error:
        raise Fault("file.unusable", f"{path}: {error.strerror or error}") from error
    _refuse(path, start, size)


def _open_torch_zip(path: Path, file: BinaryIO, size: int) -> TensorFile:
    try:
        archive = zipfile.ZipFile(_Sparing(file))  # type: ignore[arg-type]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise Fault(
            "checkpoint.incomplete",
            f"{path.name} begins as a torch or zip file and has no whole directory at its end ({error}): {size} bytes are not all of it",
        ) from error
    entries = {info.filename: info for info in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise Fault("checkpoint.malformed", f"{path.name}: its archive names the same member twice, so that it is unclear which one is meant")
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1 or "constants.pkl" in {name.rpartition("/")[2] for name in entries}:
        found = ", ".join(sorted(entries)[:6]) or "nothing"
        kind = "a TorchScript program" if pickles else "a zip archive but no torch file"
        raise Fault("checkpoint.unrecognised", f"{path.name} is {kind}: it holds {found}; expected a checkpoint written by torch.save")
    prefix = pickles[0].removesuffix("data.pkl")
    order = _small_entry(path, archive, entries.get(f"{prefix}byteorder"))
    if order and order != b"little":
        raise Fault("checkpoint.unrecognised", f"{path.name} was written on a machine of {order[:16]!r} byte order; little is what is read here")

    content = _read_pickle(path, _small_entry(path, archive, entries[pickles[0]]))
    blocks = {}
    for name, info in entries.items():
        if name.startswith(f"{prefix}data/"):
            blocks[name.removeprefix(f"{prefix}data/")] = info
    located: dict[str, Block] = {}

    def locate(storage: StorageRef) -> Block:
        if storage.key not in located:
            if storage.key not in blocks:
                raise Fault("checkpoint.incomplete", f"{path.name}: the values of storage {storage.key[:40]!r} are missing from the archive")
            located[storage.key] = _stored_range(path, file, blocks[storage.key], size)
        return located[storage.key]

    return _collect(path, TORCH_ZIP, content, locate, size)


class _Sparing:
    """A file that refuses to read more at once than any honest zip directory needs; its length comes out of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, lambda: None

    def read(self, count: int = -1) -> bytes:
        most = MAX_DIRECTORY_BYTES + MAX_PICKLE_BYTES
        content = self._file.read(most + 1 if count < 0 else min(count, most + 1))
        if len(content) > most:
            raise zipfile.BadZipFile(f"its directory would have more than {most} bytes")
        return content


def _small_entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo | None) -> bytes:
    """The content of a small archive member, unpacked where it is deflated."""
    if info is None:
        return b""
    if info.file_size > MAX_PICKLE_BYTES:
        raise Fault("checkpoint.malformed", f"{path.name}: {info.filename} would have {info.file_size} bytes, {MAX_PICKLE_BYTES} are the most")
    try:
        with archive.open(info) as member:
            content = member.read(MAX_PICKLE_BYTES + 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError, zlib.error, struct.error) as error:
        raise Fault("checkpoint.corrupt", f"{path.name}: {info.filename} cannot be read: {error}") from error
    if len(content) != info.file_size:
        raise Fault("checkpoint.malformed", f"{path.name}: {info.filename} has not the size that the archive names")
    return content


def _stored_range(path: Path, file: BinaryIO, info: zipfile.ZipInfo, size: int) -> Block:
    """Where the bytes of an archive member lie in the file."""
    if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED:
        raise Fault(
            "checkpoint.compressed",
            f"{path.name}: {info.filename} is {'encrypted' if info.flag_bits & 1 else 'compressed'}; torch stores values as they are",
        )
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) != 30 or not header.startswith(b"PK\x03\x04"):
        raise Fault("checkpoint.malformed", f"{path.name}: there is no archive member where {info.filename} should be")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = info.header_offset + 30 + name_length + extra_length
    if info.compress_size != info.file_size or offset + info.file_size > size:
        raise Fault("checkpoint.incomplete", f"{path.name}: {info.filename} would end at byte {offset + info.file_size}, the file has {size}")
    return Block(offset, info.file_size, info.CRC)


def _open_legacy(path: Path, file: BinaryIO, size: int) -> TensorFile:
    """torch's format before 1.6: five pickles (magic, version, system, content, storage keys), then each storage with its length."""
    file.seek(0)
    data = file.read(MAX_PICKLE_BYTES + 2**20)
    at = read_pickle(data).end
    version = _read_pickle(path, data, at)
    if version.value != 1001:
        raise Fault("checkpoint.unrecognised", f"{path.name} has the old torch format in version {str(version.value)[:20]}; 1001 is what is read here")
    system = _read_pickle(path, data, version.end)
    if not isinstance(system.value, dict) or system.value.get("little_endian") is not True:
        raise Fault("checkpoint.unrecognised", f"{path.name} was not written on a little-endian machine, which is what is read here")
    content = _read_pickle(path, data, system.end)
    keys = _read_pickle(path, data, content.end)
    if not isinstance(keys.value, list) or not all(isinstance(key, str) for key in keys.value) or len(keys.value) > MAX_TENSORS:
        raise Fault("checkpoint.malformed", f"{path.name} does not list its storages")

    item_bytes = {ref.key: ITEM_BYTES.get(ref.dtype, 1) for ref in _storages(content.value)}
    blocks: dict[str, Block] = {}
    at = keys.end
    for key in keys.value:
        file.seek(at)
        length = file.read(8)
        if len(length) < 8:
            raise Fault("checkpoint.incomplete", f"{path.name} ends at byte {size}, before storage {key[:40]!r} of {len(keys.value)}")
        count = struct.unpack("<q", length)[0]
        if key not in item_bytes or count < 0:
            raise Fault("checkpoint.malformed", f"{path.name}: storage {key[:40]!r} of {count} values belongs to nothing")
        blocks[key] = Block(at + 8, count * item_bytes[key])
        at += 8 + count * item_bytes[key]
        if at > size:
            raise Fault("checkpoint.incomplete", f"{path.name}: storage {key[:40]!r} would end at byte {at}, the file has {size}")

    def locate(storage: StorageRef) -> Block:
        if storage.key not in blocks:
            raise Fault("checkpoint.incomplete", f"{path.name}: the values of storage {storage.key[:40]!r} are missing")
        return blocks[storage.key]

    return _collect(path, TORCH_LEGACY, content, locate, size)


def _storages(value: Any) -> Iterator[StorageRef]:
    """Every storage anywhere in a pickle's value; without recursion, since nothing bounds its depth."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, TensorRef):
            yield item.storage
        elif isinstance(item, StorageRef):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _read_pickle(path: Path, data: bytes, start: int = 0) -> PickleContent:
    try:
        return read_pickle(data, start)
    except PickleDamage as damage:
        raise Fault("checkpoint.malformed", f"{path.name}: its table of contents (a pickle) cannot be read: {damage}") from damage


def _collect(path: Path, format: str, content: PickleContent, locate: Any, size: int) -> TensorFile:
    """The tensors of a state dict, with their places in the file."""
    state, extras, wrapped = _state_dict(path, content.value)
    names: dict[str, Entry] = {}
    places: dict[str, _Place] = {}
    blocks: dict[int, Block] = {}
    for name, ref in state.items():
        if not isinstance(ref, TensorRef):
            continue
        if ref.dtype not in ITEM_BYTES:
            raise Fault("checkpoint.unrecognised", f"{path.name}: {name[:120]} has a type of numbers that no such model uses")
        entry = Entry(ref.shape, ref.dtype)
        block = locate(ref.storage)
        places[name] = _place(path, name, ref, entry, block)
        names[name] = entry
        blocks[block.offset] = block
    _require_sane(path, names, size)
    ordered = [blocks[offset] for offset in sorted(blocks)]
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.size_bytes > after.offset:
            raise Fault("checkpoint.malformed", f"{path.name}: two storages claim the bytes from {after.offset} on")
    return _unwrapped(TensorFile(path, format, names, extras, size, foreign=content.foreign, blocks=ordered, wrapped=wrapped, _places=places))


def _unwrapped(file: TensorFile) -> TensorFile:
    """The file under its model's own names: what every name begins with and no model is called is taken off."""
    if not file.names:
        return file
    spelt, taken = {name: name for name in file.names}, []
    while True:
        first = next(iter(spelt)).partition(".")[0] + "."
        bare = {name.removeprefix(first): stored for name, stored in spelt.items()}
        known = first in WRAPPERS or (first in FOLDED and any(name.startswith(MODEL_PREFIX) for name in bare))
        if not known or not all(name.startswith(first) and len(name) > len(first) for name in spelt):
            break
        spelt = bare
        taken.append(first)
    whole = {_compiled(name): stored for name, stored in spelt.items()}
    if len(whole) == len(spelt) and whole.keys() != spelt.keys():
        spelt = whole
        taken.append(f"{COMPILED}.")
    if not taken:
        return file
    words = f"its names carry {', '.join(f'`{prefix}`' for prefix in dict.fromkeys(taken))}, which a trainer wraps a model in: it was taken off to read them"
    return replace(
        file,
        names={name: file.names[stored] for name, stored in spelt.items()},
        stored=spelt,
        wrapped=(*file.wrapped, words),
        _places={name: file._places[stored] for name, stored in spelt.items()},
    )


def _compiled(name: str) -> str:
    """A name without the mark that torch.compile leaves on a part of a model; an average's names have lost their dots."""
    if name.startswith(EMA_PREFIX):
        return name.replace(COMPILED, "")
    return ".".join(piece for piece in name.split(".") if piece != COMPILED)


def _place(path: Path, name: str, ref: TensorRef, entry: Entry, block: Block) -> _Place:
    """Raises Fault `checkpoint.malformed` when a tensor does not lie inside its storage, each value in a place of its own."""
    item = ITEM_BYTES[entry.dtype]
    start = ref.offset * ITEM_BYTES.get(ref.storage.dtype, 1) if ref.storage.dtype != ref.dtype else ref.offset * item
    last = sum((extent - 1) * step for extent, step in zip(ref.shape, ref.stride, strict=True)) if len(ref.shape) == len(ref.stride) else -1
    if last < 0 and entry.numel:
        raise Fault("checkpoint.malformed", f"{path.name}: {name[:120]} has {len(ref.shape)} dimensions and {len(ref.stride)} strides")
    if entry.numel and (start + (last + 1) * item > block.size_bytes or entry.size_bytes > block.size_bytes):
        raise Fault(
            "checkpoint.malformed",
            f"{path.name}: {name[:120]} of shape {_short(entry.shape)} does not fit into its {block.size_bytes} bytes",
        )
    return _Place(block.offset + start, ref.stride, entry.numel == 0 or ref.stride == _contiguous(entry.shape, ref.stride))


def _contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of values that lie one behind the other; a dimension of one may have any."""
    expected, step = [], 1
    for extent, found in zip(reversed(shape), reversed(stride), strict=True):
        expected.append(found if extent == 1 else step)
        step *= extent
    return tuple(reversed(expected))


def _require_sane(path: Path, names: Mapping[str, Entry], size: int) -> None:
    total = sum(entry.size_bytes for entry in names.values())
    if any(len(name) > MAX_NAME_CHARACTERS for name in names):
        raise Fault("checkpoint.malformed", f"{path.name} names a tensor with more than {MAX_NAME_CHARACTERS} characters")
    if len(names) > MAX_TENSORS:
        raise Fault("checkpoint.malformed", f"{path.name} names {len(names)} tensors; {MAX_TENSORS} are the most")
    if total > MAX_SHARING * size:
        raise Fault("checkpoint.malformed", f"{path.name} has {size} bytes and names tensors of {total} bytes in all")


def _state_dict(path: Path, value: Any) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """The state dict, the plain values beside it, and in words where it lay when that is not where most have it."""
    if not isinstance(value, dict):
        what = getattr(value, "what", None) or f"a {type(value).__name__}"
        raise Fault("checkpoint.unrecognised", f"{path.name} holds {what[:120]}; expected a state dict (weights by name)")
    if isinstance(value.get("state_dict"), dict) and not _nested(value["state_dict"]):
        return value["state_dict"], _plain(value), ()
    inner, way = value, []
    while not any(isinstance(item, TensorRef) for item in inner.values()) and len(way) < MAX_WAY:
        key = _nested(inner)
        if key is None:
            break
        way.append(key)
        inner = inner[key]
    if any(isinstance(item, TensorRef) for item in inner.values()):
        return inner, _plain(value) if way else {}, _way_in_words(value, way)
    keys = [str(key)[:40] for key in value][:8]
    if {"state", "param_groups"} <= value.keys():
        raise Fault("checkpoint.unrecognised", f"{path.name} holds the state of an optimizer ({', '.join(keys)}) and no weights")
    raise Fault(
        "checkpoint.unrecognised",
        f"{path.name} holds {', '.join(keys) or 'nothing'}; expected weights by name, at the top or under {', '.join(STATE_KEYS)}",
    )


def _nested(value: dict[str, Any]) -> str | None:
    """The key under which a dict has what may be the weights; None where it holds tensors itself, or nothing of the kind."""
    if any(isinstance(item, TensorRef) for item in value.values()):
        return None
    return next((key for key in STATE_KEYS if isinstance(value.get(key), dict) and value[key]), None)


def _way_in_words(value: dict[str, Any], way: list[str]) -> tuple[str, ...]:
    if not way or way == ["state_dict"]:
        return ()
    others = [key for key in STATE_KEYS if key != way[0] and isinstance(value.get(key), dict) and any(isinstance(item, TensorRef) for item in value[key].values())]
    told = f"its weights lie under `{'.'.join(way)}`"
    return (f"{told}; those under {', '.join(f'`{key}`' for key in others)} were not read" if others else told,)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, item in value.items():
        if len(kept) < EXTRAS_KEPT and len(key) <= 120 and isinstance(item, str | int | float | bool):
            kept[key] = item[:EXTRA_CHARACTERS] if isinstance(item, str) else item
    return kept


def _looks_like_safetensors(start: bytes, size: int) -> bool:
    if len(start) < 9:
        return False
    (length,) = struct.unpack("<Q", start[:8])
    return start[8:9] == b"{" and length <= max(size, MAX_HEADER_BYTES)


def _open_safetensors(path: Path, file: BinaryIO, size: int) -> TensorFile:
    """Eight bytes with the header's length, the header (JSON), the values without holes."""
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES:
        raise Fault("checkpoint.malformed", f"{path.name} would have a header of {length} bytes; {MAX_HEADER_BYTES} are the most")
    header_bytes = file.read(length)
    if len(header_bytes) < length:
        raise Fault("checkpoint.incomplete", f"{path.name} has {size} bytes, its header alone would have {length}")
    try:
        header = json.loads(header_bytes)
        metadata = header.pop("__metadata__", {})
        tensors = {name: (Entry(_shape(about["shape"]), str(about["dtype"])), *_span(about["data_offsets"])) for name, about in header.items()}
        extras = {str(key): value for key, value in metadata.items() if isinstance(value, str)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise Fault("checkpoint.malformed", f"{path.name}: its header cannot be read ({type(error).__name__})") from error

    names: dict[str, Entry] = {}
    places: dict[str, _Place] = {}
    reached = 0
    for name, (entry, begin, end) in sorted(tensors.items(), key=lambda item: item[1][1:]):
        if entry.dtype not in ITEM_BYTES:
            raise Fault("checkpoint.unrecognised", f"{path.name}: {name[:120]} has numbers of type {entry.dtype[:20]!r}, which no such model uses")
        if begin != reached or end - begin != entry.size_bytes:
            raise Fault("checkpoint.malformed", f"{path.name}: {name[:120]} of shape {_short(entry.shape)} would lie at bytes {begin} to {end}")
        reached = end
        places[name] = _Place(8 + length + begin, _contiguous(entry.shape, (0,) * len(entry.shape)), True)
    if 8 + length + reached != size:
        raise Fault("checkpoint.incomplete", f"{path.name} has {size} bytes, its header promises {8 + length + reached}")
    names = {name: about[0] for name, about in tensors.items()}
    _require_sane(path, names, size)
    return _unwrapped(TensorFile(path, SAFETENSORS, names, extras, size, blocks=[Block(8 + length, reached)], _places=places))


def _shape(values: Any) -> tuple[int, ...]:
    shape = tuple(values)
    if len(shape) > 8 or not all(isinstance(extent, int) and not isinstance(extent, bool) and extent >= 0 for extent in shape):
        raise ValueError(values)
    return shape


def _span(values: Any) -> tuple[int, int]:
    begin, end = map(int, values)
    return begin, end


def _short(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"[:80]


def _refuse(path: Path, start: bytes, size: int) -> NoReturn:
    """Say what a file is instead, as far as its first bytes tell."""
    lowered = start[:64].lstrip().lower()
    if not start:
        what = "is empty"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer and not the file that it points to: fetch that one (git lfs pull)"
    elif lowered.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "is a web page, as a download that needed a login leaves it"
    elif not start.strip(b"\0"):
        what = "begins with nothing but zeros, as an interrupted download leaves it"
    elif start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        what = "is a pickle, but none of torch's"
    else:
        kinds = {
            b"\x1f\x8b": "is packed with gzip: unpack it first", b"7z\xbc\xaf": "is a 7z archive: unpack it first",
            b"Rar!": "is a RAR archive: unpack it first", b"RIFF": "is a sound or a picture (RIFF)", b"GGUF": "is a GGUF language model",
            b"\x89HDF": "is an HDF5 file", b"%PDF": "is a PDF", b"\x93NUMPY": "is a NumPy array", b"OggS": "is a sound (Ogg)",
            b"fLaC": "is a sound (FLAC)", b"\x89PNG": "is a picture (PNG)",
        }  # fmt: skip
        what = next((words for magic, words in kinds.items() if start.startswith(magic)), "")
        if not what:
            what = "is a tar archive: unpack it first" if start[257:262] == b"ustar" else f"begins with {start[:8]!r}, which is no checkpoint"
    raise Fault("checkpoint.unrecognised", f"{path.name} ({size} bytes) {what}; expected a torch file or .safetensors")
