"""Small real things: sounds made in code, a zip of them, the tiny model, and rows that stand on them."""

from __future__ import annotations

import csv
import io
import zipfile
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import soundfile

RATE_HZ = 16_000


def tone(frequency_hz: float, duration_s: float = 1.0, *, rate_hz: int = RATE_HZ, level: float = 0.4) -> np.ndarray:
    """A sine with a short fade at both ends, [S] float32."""
    time = np.arange(int(duration_s * rate_hz)) / rate_hz
    fade = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.01)
    return (level * fade * np.sin(2 * np.pi * frequency_hz * time)).astype(np.float32)


def wav_bytes(samples: np.ndarray, *, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", subtype=subtype)
    return buffer.getvalue()


def write_dataset_zip(path: Path, *, clips: int = 10, duration_s: float = 1.0) -> Path:
    """A well-formed dataset: tones of rising pitch, each with a caption of its own."""
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["audio", "caption"])
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(clips):
            archive.writestr(f"audio/tone{number}.wav", wav_bytes(tone(200 + 100 * number, duration_s)))
            rows.writerow([f"audio/tone{number}.wav", f"a steady tone of {200 + 100 * number} hertz"])
        archive.writestr("metadata.csv", table.getvalue())
    return path


@lru_cache(maxsize=1)
def tiny_model() -> Path:
    """A minimal AudioLDM 2 with random weights, made once per test session."""
    from gpu.tiny import write_tiny_audioldm2

    return write_tiny_audioldm2(Path(mkdtemp(prefix="studio-tiny-")) / "tiny")
