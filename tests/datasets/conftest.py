"""Sounds, tables and zips made in code."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datasets_app import services
from datasets_app.models import Dataset, Origin

RATE_HZ = 8_000


def tone(duration_s: float = 0.5, *, pitch_hz: float = 440.0, rate_hz: int = RATE_HZ, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """A sine, [T, C]."""
    moments = np.arange(round(duration_s * rate_hz)) / rate_hz
    return np.repeat(level * np.sin(2 * np.pi * pitch_hz * moments)[:, None], channels, axis=1)


def wav(samples: np.ndarray | None = None, *, rate_hz: int = RATE_HZ, subtype: str = "PCM_16", format: str = "WAV") -> bytes:
    """The bytes of a sound file; a short tone when no samples are given."""
    file = io.BytesIO()
    soundfile.write(file, tone() if samples is None else samples, rate_hz, subtype=subtype, format=format)
    return file.getvalue()


def tones(count: int) -> dict[str, bytes]:
    """Different sounds by name."""
    return {f"tone {index}.wav": wav(tone(pitch_hz=200 + 10 * index)) for index in range(count)}


def table(*rows: tuple[str, str], header: tuple[str, ...] = ("audio", "caption")) -> str:
    """A metadata.csv with every cell quoted."""
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in (header, *rows))


def table_of(names) -> str:
    """A metadata.csv that captions each file with its name."""
    return table(*((name, f"the sound of {name}") for name in names))


def write_zip(path: Path, files: Mapping[str, bytes | str], *, metadata: str | bytes | None = None) -> Path:
    """A zip of `files`; metadata.csv lists all of them unless it is given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.csv", table_of(files) if metadata is None else metadata)
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def codes(dataset: Dataset) -> list[str]:
    return [problem["code"] for problem in dataset.problems]


@pytest.fixture
def make_dataset(db, tmp_path):
    """Imports files as a dataset, and returns it ready or failed."""

    def make(files: Mapping[str, bytes | str] | None = None, *, metadata: str | bytes | None = None, owner=None, name="sounds") -> Dataset:
        source = write_zip(tmp_path / f"{name}.zip", tones(3) if files is None else files, metadata=metadata)
        dataset = services.create_dataset(source=source, name=name, owner=owner, origin=Origin.UPLOADED, enqueue=False)
        return services.import_dataset(dataset)

    return make
