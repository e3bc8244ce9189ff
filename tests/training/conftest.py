"""Small things that come in: zips of the tiny model, LoRAs in several spellings, and a conversion carried out as the worker does."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from audioldm_site.jobs import lifecycle
from tests.factories import tiny_model
from training_app import loras, tasks
from training_app.models import Conversion

RANK = 2


@pytest.fixture
def carry_out() -> Callable[[Conversion], Conversion]:
    """Do the whole work of a conversion, as the datasets worker does."""

    def run(conversion: Conversion) -> Conversion:
        assert lifecycle.claim(conversion, worker_name="w")
        tasks.execute_conversion(conversion, worker_name="w")
        conversion.refresh_from_db()
        return conversion

    return run


def zip_of(folder: Path, path: Path, *, below: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, below + file.relative_to(folder).as_posix())
    return path


@pytest.fixture
def tiny_zip(tmp_path) -> Path:
    return zip_of(tiny_model(), tmp_path / "a tiny one.zip", below="tiny/")


@pytest.fixture
def write_lora(checkpoint, tmp_path) -> Callable[..., Path]:
    """A LoRA of rank 2 for the tiny model whose factors are all ones, under the names that `spell(layer, factor)` gives."""

    def write(spell: Callable[[str, str], str], *, name: str = "sparkle.safetensors", extra: dict | None = None, metadata: dict | None = None) -> Path:
        tensors = {}
        for layer, shape in attention(checkpoint).items():
            tensors[spell(layer, "A")] = np.ones((RANK, shape[1]), np.float32)
            tensors[spell(layer, "B")] = np.ones((shape[0], RANK), np.float32)
        path = tmp_path / name
        save_file({**tensors, **(extra or {})}, path, metadata=metadata)
        return path

    return write


def attention(checkpoint) -> dict[str, tuple[int, int]]:
    shapes = loras._unet_shapes(checkpoint)
    return {match[1]: shape for name, shape in shapes.items() if (match := loras.TARGETS.fullmatch(name))}
