"""The recipe of a starter model: every number that its training depends on, in one JSON file.

Nothing here has a second default: what the file does not say is an error, and so is what it says in excess.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.architectures import Architecture


@dataclass(frozen=True, kw_only=True)
class CorpusRecipe:
    """Shares are relative weights by category; see `gpu.pretrain.corpus`."""

    num_examples: int
    clip_frames: int
    shares: dict[str, float]
    mixture_share: float
    held_out_every: int


@dataclass(frozen=True, kw_only=True)
class VaeRecipe:
    """`noise`: how much of it the latents get while the decoder learns, as its standard deviation; theirs is about 1."""

    train_batch_size: int
    crop_frames: int
    learning_rate: float
    lr_warmup_steps: int
    max_train_steps: int
    noise: float


@dataclass(frozen=True, kw_only=True)
class VocoderRecipe:
    """Converted, not trained. `package` is the Python package whose `weights` file holds a HiFi-GAN generator."""

    package: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class ClapRecipe:
    num_examples: int
    train_batch_size: int
    learning_rate: float
    lr_warmup_steps: int
    max_train_steps: int


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe:
    """`lr_decay_steps`: the learning rate falls to zero over so many last steps."""

    train_batch_size: int
    learning_rate: float
    lr_warmup_steps: int
    lr_decay_steps: int
    max_train_steps: int
    max_grad_norm: float
    snr_gamma: float | None
    unconditional_share: float
    ema_decay: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`studio` is written beside the finished model, for the program that offers it."""

    seed: int
    architecture: Architecture
    corpus: CorpusRecipe
    vae: VaeRecipe
    vocoder: VocoderRecipe
    clap: ClapRecipe
    diffusion: DiffusionRecipe
    studio: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Raises TypeError for a missing or an unknown name, ValueError for what is not JSON."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            seed=raw.pop("seed"),
            architecture=Architecture.from_json(raw.pop("architecture")),
            corpus=CorpusRecipe(**raw.pop("corpus")),
            vae=VaeRecipe(**raw.pop("vae")),
            vocoder=VocoderRecipe(**raw.pop("vocoder")),
            clap=ClapRecipe(**raw.pop("clap")),
            diffusion=DiffusionRecipe(**raw.pop("diffusion")),
            studio=raw.pop("studio"),
            **raw,
        )

    @property
    def clip_duration_s(self) -> float:
        mel = self.architecture.mel
        return self.corpus.clip_frames * mel.hop_length / mel.sample_rate_hz
