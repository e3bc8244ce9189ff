"""What the starter learns from: captioned recordings, sounds made in code, and mixtures of the two.

Example number i is a function of the recipe's seed and i alone, so that a stage that goes on after a stop sees exactly
what it would have seen.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from gpu.mel import MelConfig, prepare_waveform
from gpu.pretrain.synthesis import SAMPLE_RATE_HZ as SYNTHESIS_RATE_HZ
from gpu.pretrain.synthesis import synthesise
from gpu.pretrain.wording import reworded


@dataclass(frozen=True)
class Clip:
    """One recording of the corpus."""

    archive: int
    path: str
    caption: str
    category: str


@dataclass(frozen=True)
class Example:
    """One training example: `waveform` [S] is what `prepare_waveform` gives."""

    waveform: np.ndarray
    caption: str
    kind: str


def read_registry(path: Path, *, archive: int = 0) -> list[Clip]:
    """The clips of the archive of that number that may be trained on.

    Left out: the demo dataset (`in_demo` is 1) and any clip cut from the same recording as one of it, known by its address.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    demo_urls = {row["url"] for row in rows if row["in_demo"] == "1" and row["url"].startswith("http")}
    return [Clip(archive, row["audio"], row["caption"], row["category"]) for row in rows if row["in_demo"] == "0" and row["url"] not in demo_urls]


class Corpus:
    """Numbered training examples.

    Args:
        sources: zips of recordings, each with its registry: a CSV with the columns audio, caption, category, url, in_demo;
            `audio` is a path in the archive.
        shares: how often each category is drawn, `synthetic` being the sounds made in code. A category of the registry
            that is not named shares in `other`.
        mixture_share: how many examples are two sounds at once.
        held_out_every: each so many-th recording is kept for validation.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Path, Path]],
        *,
        mel: MelConfig,
        duration_s: float,
        seed: int,
        shares: dict[str, float],
        mixture_share: float,
        held_out_every: int,
    ) -> None:
        self.mel = mel
        self.num_samples = round(duration_s * mel.sample_rate_hz)
        self.seed = seed
        self.shares = shares
        self.mixture_share = mixture_share
        self._archives = [zipfile.ZipFile(archive) for archive, _ in sources]
        self._decoded: dict[Clip, np.ndarray] = {}
        clips = [clip for number, (_, registry) in enumerate(sources) for clip in read_registry(registry, archive=number)]
        self.held_out = clips[::held_out_every]
        self._by_category: dict[str, list[Clip]] = defaultdict(list)
        for i, clip in enumerate(clips):
            if i % held_out_every:
                self._by_category[clip.category if clip.category in shares else "other"].append(clip)

    def empty_categories(self) -> list[str]:
        """Those that the shares ask for and no recording belongs to."""
        return [name for name, share in self.shares.items() if share > 0 and name != "synthetic" and not self._by_category.get(name)]

    def example(self, index: int) -> Example:
        """Training example `index`, the same at every call."""
        rng = np.random.default_rng([self.seed, index])
        if rng.random() >= self.mixture_share:
            samples, caption, kind = self._draw(rng)
            return Example(self._prepare(samples, rng), reworded(caption, rng), kind)

        (first, caption, kind), (second, other_caption, other_kind) = self._draw(rng), self._draw(rng)
        level = 10 ** (rng.uniform(-8, 8) / 20)
        mixture = self._prepare(first, rng) + level * self._prepare(second, rng)
        return Example(self._prepare(mixture, rng), reworded(f"{caption} and {other_caption}", rng), f"{kind}+{other_kind}")

    def held_out_example(self, index: int) -> Example:
        """A recording that no training example contains, as it is."""
        clip = self.held_out[index % len(self.held_out)]
        return Example(self._prepare(self._recording(clip), None), clip.caption, clip.category)

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, str, str]:
        weights = np.array(list(self.shares.values()))
        category = list(self.shares)[int(rng.choice(len(weights), p=weights / weights.sum()))]
        if category == "synthetic":
            return synthesise(rng, self.num_samples / SYNTHESIS_RATE_HZ)
        clips = self._by_category[category]
        clip = clips[int(rng.integers(len(clips)))]
        # Slower and lower or faster and higher, less than a quarter tone: captions name notes.
        speed = 2 ** (rng.uniform(-0.3, 0.3) / 12)
        return soxr.resample(self._recording(clip), speed * SYNTHESIS_RATE_HZ, SYNTHESIS_RATE_HZ), clip.caption, clip.category

    def _recording(self, clip: Clip) -> np.ndarray:
        """Decoded once, kept at half precision: the whole corpus takes a few hundred megabytes."""
        if clip not in self._decoded:
            samples, rate = sf.read(io.BytesIO(self._archives[clip.archive].read(clip.path)), dtype="float32", always_2d=True)
            mono = soxr.resample(samples.mean(1), rate, SYNTHESIS_RATE_HZ)
            self._decoded[clip] = mono.astype(np.float16)
        return self._decoded[clip].astype(np.float32)

    def _prepare(self, samples: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        # Mostly from the start: a sound begins when it is struck, and a generated one should too.
        anywhere = rng if rng is not None and rng.random() < 0.2 else None
        return prepare_waveform(samples, SYNTHESIS_RATE_HZ, self.mel, self.num_samples, anywhere)
