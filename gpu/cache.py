"""Tensors that are dear to compute, kept on disk under a hash of everything they depend on, and shared between runs.

An entry is written whole or not at all and carries a checksum; one that does not match (a full disk, a bad sector) counts as
absent and is computed again. Several runs may write the same entry at once: their values are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from gpu.manifest import folder_digest

# Entries stay in memory up to this many bytes, then are read again from the disk (that is, the page cache).
MEMORY_BYTES = 2 * 2**30


class TensorCache:
    """A folder of small safetensors files, by key."""

    def __init__(self, folder: Path, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self.folder = Path(folder)
        self._spare_bytes = memory_bytes
        self._kept: dict[str, dict[str, Tensor]] = {}

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry, or None when it is absent or damaged."""
        if key in self._kept:
            return self._kept[key]
        try:
            with safetensors.safe_open(self._path(key), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
                whole = (file.metadata() or {}).get("sha256") == _checksum(tensors)
        except (OSError, safetensors.SafetensorError):
            return None
        if not whole:
            return None
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size <= self._spare_bytes:
            self._spare_bytes -= size
            self._kept[key] = tensors
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry. Raises OSError when the disk is full."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        try:
            save_file(tensors, temporary, metadata={"sha256": _checksum(tensors)})
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def key_of(**parts: Any) -> str:
    """A hash over named JSON values: equal parts give equal keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def model_digest(folder: Path, *, memo: Path | None = None, digest_of: Callable[[Path], str] = folder_digest) -> str:
    """A folder's digest, computed again only after a file's name, size or modification time has changed.

    Args:
        digest_of: what is computed: `gpu.manifest.folder_digest`, or `gpu.originals.contents.weights_digest`.
        memo: folder where digests are remembered between processes, or None.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stamp = key_of(
        folder=str(folder.resolve()),
        **({} if digest_of is folder_digest else {"digest_of": digest_of.__name__}),
        files=[(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files],
    )
    if stamp in _digests:
        return _digests[stamp]
    note = memo / "digests" / stamp if memo else None
    if note and note.is_file():
        digest, _, checksum = note.read_text(encoding="ascii", errors="replace").partition(" ")
        if checksum == key_of(stamp=stamp, digest=digest):
            _digests[stamp] = digest
            return digest
    digest = _digests[stamp] = digest_of(folder)
    if note:
        with contextlib.suppress(OSError):  # a memo that cannot be kept costs time only
            note.parent.mkdir(parents=True, exist_ok=True)
            temporary = note.with_name(f".tmp-{note.name}-{os.getpid()}")
            temporary.write_text(f"{digest} {key_of(stamp=stamp, digest=digest)}", encoding="ascii")
            temporary.replace(note)
    return digest


_digests: dict[str, str] = {}


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
