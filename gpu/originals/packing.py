"""A folder as one file: an uncompressed zip, since weights do not shrink and a browser takes no folder."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

CHUNK_BYTES = 8 * 2**20


def pack(folder: Path, target: Path, *, top: str, report: Callable[[str, int, int], None]) -> None:
    """Write every file of the folder below `top/`. Equal content gives equal bytes: no times are kept.

    Args:
        report: told (stage, bytes done, bytes in all); what it raises ends the work.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total, done = sum(path.stat().st_size for path in files), 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            info = zipfile.ZipInfo(f"{top}/{path.relative_to(folder).as_posix()}")
            info.external_attr = 0o644 << 16
            with open(path, "rb") as reader, archive.open(info, "w", force_zip64=True) as writer:
                while piece := reader.read(CHUNK_BYTES):
                    writer.write(piece)
                    done += len(piece)
                    report("packing", done, total)
