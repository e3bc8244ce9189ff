"""Tiny whole models, and run folders with sounds made in code. Nothing here knows Django."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from gpu.config import FinetuneConfig, FinetuneJob, ModelRef
from gpu.events import Event, read_events
from gpu.manifest import TRAIN, VALIDATION, ManifestClip, sha256_of, write_manifest
from gpu.tiny import write_tiny, write_tiny_audioldm2

# Small enough that a test takes a second: two sounds of half a second, one sampler step, one candidate.
QUICK = {
    "max_train_steps": 4, "train_batch_size": 2, "lr_warmup_steps": 0, "learning_rate": 1e-3, "lora_rank": 2,
    "checkpointing_steps": 1000, "validation_epochs": 1000, "validation_prompts": ["A high beep"],
    "num_inference_steps": 1, "num_waveforms_per_prompt": 1, "audio_length_in_s": 0.5,
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As in the child processes of these tests: sums are split among threads, and rounding depends on the split."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """16 kHz, 64 bins, predicts the noise."""
    return write_tiny_audioldm2(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_v(tmp_path_factory) -> Path:
    """Unlike `tiny` in everything that code may not take for granted: 22.05 kHz, 80 bins, two VAE levels, predicts the velocity."""
    return write_tiny_audioldm2(
        tmp_path_factory.mktemp("models") / "tiny_v",
        seed=1, sample_rate_hz=22_050, n_mels=80, hop_length=256, vae_levels=2, prediction_type="v_prediction", sample_length_s=2.6,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory) -> Callable[[str], Path]:
    """A function that gives the tiny model of a variant (`gpu.tiny.VARIANTS`), written once."""
    home = tmp_path_factory.mktemp("families")

    def write(variant: str) -> Path:
        return home / variant if (home / variant).is_dir() else write_tiny(home / variant, variant)

    return write


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_run(tmp_path, tiny, cache_dir) -> Callable[..., Path]:
    """A function that writes a run's folder: `make_run("name", model=..., use_ema=True)`, the rest as in `QUICK`."""

    def make(
        name: str = "run", *, model: Path = tiny, weights: Path | None = None, resume_from: Path | None = None,
        clips: list[ManifestClip] | None = None, **values: Any,
    ) -> Path:  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        digest = write_manifest(folder, tones(folder) if clips is None else clips)
        FinetuneJob(
            config=FinetuneConfig.parse({**QUICK, **values}),
            model=ModelRef(base=str(model), weights=str(weights) if weights else None),
            manifest_digest=digest,
            resume_from=str(resume_from) if resume_from else None,
            cache_dir=str(cache_dir),
        ).write(folder)
        return folder

    return make


def tones(folder: Path, *, train: int = 5, validation: int = 2) -> list[ManifestClip]:
    """Tones of several lengths, rates and channel counts, each with its own caption."""
    splits = [TRAIN] * train + [VALIDATION] * validation
    return [
        tone(folder / f"{number}.wav", split=split, hertz=220 * (number + 1), rate=(16_000, 22_050, 44_100)[number % 3],
             seconds=(0.3, 0.5, 1.3)[number % 3], channels=1 + number % 2)
        for number, split in enumerate(splits)
    ]  # fmt: skip


def tone(
    path: Path, *, hertz: float = 440.0, rate: int = 16_000, seconds: float = 0.5, channels: int = 1, split: str = TRAIN
) -> ManifestClip:
    moments = np.arange(int(rate * seconds)) / rate
    samples = 0.4 * np.sin(2 * np.pi * hertz * moments) * np.exp(-moments)
    soundfile.write(path, np.stack([samples] * channels, axis=1), rate)
    return ManifestClip(
        audio=str(path), caption=f"A tone of {hertz:g} hertz", sha256=sha256_of(path), duration_s=len(moments) / rate, split=split
    )


def start(command: str, folder: Path, **environment: str) -> subprocess.Popen:
    """`python -m gpu COMMAND FOLDER` as a real process."""
    return subprocess.Popen(
        [sys.executable, "-m", "gpu", command, str(folder)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
    )


def events_of(folder: Path, type: str) -> list[Event]:
    return [event for event in read_events(folder) if event.type == type]
