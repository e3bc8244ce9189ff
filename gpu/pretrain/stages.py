"""The numbers of a recipe's stages, which can be checked without torch.

Nothing here has a second default: what the file does not say is an error, and so is what it says in excess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    """`noise`: how much of it the latents get while the decoder learns, as its standard deviation; theirs is about 1.

    `grain_channels`: how many of the latent channels are chance (`gpu.pretrain.grain`); 0 for a VAE that keeps what it can. `grain_steps`: how
    long it is learnt how strong the grain is.
    """

    train_batch_size: int
    crop_frames: int
    learning_rate: float
    lr_warmup_steps: int
    max_train_steps: int
    noise: float
    grain_channels: int
    grain_steps: int


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
class SamplesRecipe:
    """Sounds that are made on the way through the diffusion stage, every so many of its steps, so that one hears it learn."""

    prompts: list[str]
    every_steps: int


@dataclass(frozen=True, kw_only=True)
class Stages:
    """A recipe without its architecture, which only torch can judge: the numbers of every stage.

    Attributes:
        samples: None makes no sounds on the way.
    """

    seed: int
    corpus: CorpusRecipe
    vae: VaeRecipe
    vocoder: VocoderRecipe
    clap: ClapRecipe
    diffusion: DiffusionRecipe
    studio: dict[str, Any]
    samples: SamplesRecipe | None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Stages:
        """Raises KeyError or TypeError for a missing or an unknown name, ValueError for steps that are no counts."""
        parts = {"corpus": CorpusRecipe, "vae": VaeRecipe, "vocoder": VocoderRecipe, "clap": ClapRecipe, "diffusion": DiffusionRecipe}
        raw = {name: value for name, value in raw.items() if name != "architecture"}
        made = {name: kind(**raw.pop(name)) for name, kind in parts.items()}
        samples = raw.pop("samples", None)
        stages = cls(seed=raw.pop("seed"), studio=raw.pop("studio"), samples=SamplesRecipe(**samples) if samples else None, **made, **raw)
        counts = {f"{name}.max_train_steps": count for name, count in stages.steps.items()}
        counts["corpus.num_examples"] = stages.corpus.num_examples
        if stages.samples:
            counts["samples.every_steps"] = stages.samples.every_steps
        for name, count in counts.items():
            if type(count) is not int or count < 1:
                raise ValueError(f"{name} ({count!r}) must be a whole number from 1")
        return stages

    @property
    def steps(self) -> dict[str, int]:
        """Steps of each stage that trains, in order."""
        return {name: getattr(self, name).max_train_steps for name in ("vae", "clap", "diffusion")}
