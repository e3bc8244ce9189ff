"""Whether weights are numbers: a run that diverged leaves infinities and NaN, of which a model makes silence. Read in blocks, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from gpu.errors import Fault
from gpu.originals.tensors import Entry, TensorFile, open_tensors

FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


def not_finite(piece: bytes | memoryview, dtype: str) -> int:
    """How many values of a piece are infinite or no numbers; 0 for types that can be neither."""
    if dtype == "BF16":
        return int(((np.frombuffer(piece, "<u2") & 0x7F80) == 0x7F80).sum())
    kind = FLOATS.get(dtype)
    if kind is None:
        return 0
    finite = np.isfinite(np.frombuffer(piece, kind))
    return 0 if finite.all() else int(finite.size - finite.sum())


def watched(pieces: Iterable[bytes | memoryview], *, source: str, name: str, entry: Entry) -> Iterator[bytes | memoryview]:
    """A tensor's values on their way.

    Raises:
        Fault: `checkpoint.not_finite`, behind its last piece, with how many are no numbers.
    """
    bad = 0
    for piece in pieces:
        bad += not_finite(piece, entry.dtype)
        yield piece
    if bad:
        raise _fault(source, name, bad, entry.numel)


def require_finite(paths: Iterable[Path], *, on_bytes: Callable[[int], None] = lambda size: None) -> None:
    """Read weights once, in blocks.

    Args:
        paths: safetensors files, or torch's.
        on_bytes: told the size of every block.
    Raises:
        Fault: `checkpoint.not_finite`, with the first such tensor of a file, how many of its values, and how many other tensors; what
            `gpu.originals.tensors.open_tensors` refuses.
    """
    for path in paths:
        with open_tensors(path) as file:
            require_finite_tensors(file, source=f"{path.parent.name}/{path.name}", on_bytes=on_bytes)


def require_finite_tensors(file: TensorFile, *, source: str = "", names: Iterable[str] | None = None, on_bytes: Callable[[int], None] = lambda size: None) -> None:
    """`require_finite` for a file that is open already, or for some of its tensors."""
    bad = {}
    for name in file.names if names is None else names:
        for piece in file.chunks(name):
            if count := not_finite(piece, file.names[name].dtype):
                bad[name] = bad.get(name, 0) + count
            on_bytes(len(piece))
    if bad:
        name = next(iter(bad))
        raise _fault(source or file.path.name, name, bad[name], file.names[name].numel, others=len(bad) - 1)


def _fault(source: str, name: str, bad: int, numel: int, *, others: int = 0) -> Fault:
    also = f", and so do {others} other tensors of it" if others > 1 else ", and so does 1 other tensor of it" if others else ""
    return Fault("checkpoint.not_finite", f"{source}: {bad} of {numel} values of {name[:120]} are infinite or no numbers{also}")
