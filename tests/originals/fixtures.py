"""`original(family)`: a checkpoint written by the original code, and what that code computed from it. Loaded by tests/conftest.py."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".venv" / "originals"
MISSING = f"the original code is not in {PACKAGES}: make test installs it (tests/originals/packages.txt)"
FAMILIES = ("audioldm-s", "audioldm-m", "audioldm-l", "audioldm-ft", "audioldm-48k", "audioldm-t5", "audioldm2", "audioldm2-large",
            "audioldm2-speech")  # fmt: skip


class OriginalCode:
    """A child process in which the original packages run; it answers one request at a time."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "tests.originals.writer", str(PACKAGES), *options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({key: str(value) for key, value in request.items()}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            raise RuntimeError(f"the original code failed at {request}:\n{answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


@dataclass(frozen=True, kw_only=True)
class Original:
    """One family's checkpoint as its makers write it.

    Attributes:
        references: inputs (`in_…`) and outputs of the original code; see `writer.references`.
        tokenizers: folder with roberta-base/ and flan-t5-large/, small ones that fit the weights.
    """

    family: str
    path: Path
    references: dict[str, np.ndarray]
    tokenizers: Path


@pytest.fixture(scope="session")
def original_code() -> Iterator[OriginalCode]:
    if not (PACKAGES / "audioldm2").is_dir():
        pytest.skip(MISSING)
    code = OriginalCode()
    yield code
    code.close()


@pytest.fixture(scope="session")
def original(original_code: OriginalCode) -> Iterator[Callable[[str], Original]]:
    """The checkpoint of a family, written at its first use in a session. Read it; never change the file."""
    written: dict[str, Original] = {}
    # pytest's own folders outlive three sessions: 6 GB would stay.
    home = tempfile.TemporaryDirectory(prefix="originals-")

    def of(family: str) -> Original:
        if family not in written:
            folder = Path(home.name) / family
            path = Path(original_code.ask(do="write", family=family, folder=folder)["path"])
            with np.load(folder / "references.npz") as references:
                written[family] = Original(family=family, path=path, references=dict(references), tokenizers=folder / "tokenizers")
        return written[family]

    yield of
    home.cleanup()
