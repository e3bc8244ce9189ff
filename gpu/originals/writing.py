"""Writes large results piece by piece: safetensors, torch files, folders that appear whole or not at all. No torch, no copy in memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from gpu.errors import Fault
from gpu.originals.tensors import Entry

FREE_SPACE_MARGIN_BYTES = 64 * 2**20
ALIGNMENT = 64
STORAGE_NAMES = {
    "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "F64": "DoubleStorage", "I64": "LongStorage",
    "I32": "IntStorage", "I16": "ShortStorage", "I8": "CharStorage", "U8": "ByteStorage", "BOOL": "BoolStorage",
}  # fmt: skip
OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: its values are asked for when their turn comes, as bytes in order."""

    name: str
    entry: Entry
    values: Callable[[], Iterable[bytes | memoryview]]


def require_space(folder: Path, size_bytes: int) -> None:
    """Raises Fault `disk.full` when a result of that size does not fit under `folder`; `file.unusable` when that cannot be a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise Fault("file.unusable", f"{folder} is no folder, or lies below a file: nothing can be written there") from None
    free = shutil.disk_usage(folder).free
    if size_bytes + FREE_SPACE_MARGIN_BYTES > free:
        raise Fault(
            "disk.full",
            f"the result has {size_bytes / 2**20:.0f} MB: {free / 2**20:.0f} MB are free under {folder}, "
            f"of which {FREE_SPACE_MARGIN_BYTES / 2**20:.0f} MB stay free",
            operator=True,
        )


@contextmanager
def appearing(destination: Path, *, size_bytes: int = 0) -> Iterator[Path]:
    """A temporary path beside `destination`, renamed to it when the block ends well and removed when it does not.

    Raises:
        Fault: `file.unusable`, there is something at the destination already; `disk.full`.
    """
    destination = Path(destination)
    if os.path.lexists(destination):
        raise Fault("file.unusable", f"{destination} exists already: choose another place, or remove it")
    try:
        require_space(destination.parent, size_bytes)
        temporary = destination.with_name(f".tmp-{os.getpid()}-{destination.name}")
        _remove(temporary)
        _remove_abandoned(destination)
        try:
            yield temporary
            _sync(temporary)
            temporary.rename(destination)
        except BaseException:
            _remove(temporary)
            raise
    except OSError as error:
        if error.errno == 28:
            raise Fault("disk.full", f"the disk filled up while {destination.name} was written: {error}", operator=True) from error
        raise Fault("file.unusable", f"{destination}: {error.strerror or error}", operator=True) from error


def write_safetensors(path: Path, tensors: Sequence[Planned], *, metadata: Mapping[str, str], on_bytes: OnBytes) -> None:
    """Write a safetensors file: eight bytes with the header's length, the header, the values in the header's order.

    Args:
        on_bytes: told the size of every piece that was written.
    """
    # The widest types first, so that every value lies at a multiple of its size, as the library itself does it.
    ordered = sorted(tensors, key=lambda tensor: -tensor.entry.size_bytes // max(1, tensor.entry.numel))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    reached = 0
    for tensor in ordered:
        end = reached + tensor.entry.size_bytes
        header[tensor.name] = {"dtype": tensor.entry.dtype, "shape": list(tensor.entry.shape), "data_offsets": [reached, end]}
        reached = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in ordered:
            _write_values(file, tensor, on_bytes)


def write_torch(path: Path, tensors: Sequence[Planned], *, extras: Mapping[str, Any], on_bytes: OnBytes) -> None:
    """Write a file as `torch.save({**extras, "state_dict": {...}})` does, without having the values in memory.

    Args:
        extras: plain values only.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, "archive/data.pkl", [_state_dict_pickle(tensors, extras)])
        _write_member(archive, "archive/byteorder", [b"little"])
        for number, tensor in enumerate(tensors):
            with _member(archive, f"archive/data/{number}", tensor.entry.size_bytes) as member:
                _write_values(member, tensor, on_bytes)
        _write_member(archive, "archive/version", [b"3\n"])


def size_of(tensors: Iterable[Planned]) -> int:
    return sum(tensor.entry.size_bytes for tensor in tensors)


class _Storage:
    def __init__(self, dtype: str, key: str, numel: int) -> None:
        self.dtype, self.key, self.numel = dtype, key, numel


class _Tensor:
    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape


class _Global:
    """A name of torch's, written into the pickle without importing torch."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _StatePickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python lets `save_global` be replaced
    """Writes what torch's own pickler writes for tensors."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", _Global("torch", STORAGE_NAMES[obj.dtype]), obj.key, "cpu", obj.numel)
        return None

    def save_named(self, obj: _Global) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    def save_tensor(self, obj: _Tensor) -> None:
        strides = [1]
        for extent in reversed(obj.shape[1:]):
            strides.append(strides[-1] * extent)
        stride = tuple(reversed(strides)) if obj.shape else ()
        self.save(_REBUILD)
        self.save((obj.storage, 0, obj.shape, stride, False, _HOOKS))
        self.write(pickle.REDUCE)

    def save_hooks(self, obj: _Hooks) -> None:
        self.save(_ORDERED_DICT)
        self.write(pickle.EMPTY_TUPLE + pickle.REDUCE)

    dispatch[_Global] = save_named
    dispatch[_Tensor] = save_tensor


class _Hooks:
    pass


_StatePickler.dispatch[_Hooks] = _StatePickler.save_hooks
_REBUILD, _ORDERED_DICT, _HOOKS = _Global("torch._utils", "_rebuild_tensor_v2"), _Global("collections", "OrderedDict"), _Hooks()


def _state_dict_pickle(tensors: Sequence[Planned], extras: Mapping[str, Any]) -> bytes:
    state = {
        tensor.name: _Tensor(_Storage(tensor.entry.dtype, str(number), tensor.entry.numel), tensor.entry.shape)
        for number, tensor in enumerate(tensors)
    }
    buffer = io.BytesIO()
    _StatePickler(buffer, protocol=2).dump({**extras, "state_dict": state})
    return buffer.getvalue()


def _member(archive: zipfile.ZipFile, name: str, size: int) -> Any:
    info = zipfile.ZipInfo(name)
    info.file_size = size
    # torch maps values straight from the file: each begins at a multiple of 64, padded with an extra field of its own.
    start = archive.fp.tell() + 30 + len(name) + 4  # type: ignore[union-attr]
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    return archive.open(info, "w", force_zip64=size >= 2**31)


def _write_member(archive: zipfile.ZipFile, name: str, pieces: list[bytes]) -> None:
    with _member(archive, name, sum(map(len, pieces))) as member:
        for piece in pieces:
            member.write(piece)


def _write_values(file: Any, tensor: Planned, on_bytes: OnBytes) -> None:
    written = 0
    for piece in tensor.values():
        file.write(piece)
        written += len(piece)
        on_bytes(len(piece))
    if written != tensor.entry.size_bytes:
        raise RuntimeError(f"{tensor.name} gave {written} bytes, {tensor.entry.size_bytes} were announced")


def _remove_abandoned(destination: Path) -> None:
    """What processes that were killed have left half-written of the same result."""
    for path in destination.parent.glob(f".tmp-*-{escape(destination.name)}"):
        owner = path.name.removeprefix(".tmp-").removesuffix(f"-{destination.name}")
        if owner.isdigit() and not _is_alive(int(owner)):
            _remove(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return pid > 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for item in path.rglob("*") if path.is_dir() else [path]:
        if item.is_file():
            descriptor = os.open(item, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
