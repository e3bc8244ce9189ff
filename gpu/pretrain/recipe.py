"""The recipe of a starter model: every number that its training depends on, in one JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gpu.architectures import Architecture
from gpu.pretrain.stages import ClapRecipe, CorpusRecipe, DiffusionRecipe, SamplesRecipe, Stages, VaeRecipe, VocoderRecipe

__all__ = ["ClapRecipe", "CorpusRecipe", "DiffusionRecipe", "Recipe", "SamplesRecipe", "Stages", "VaeRecipe", "VocoderRecipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe(Stages):
    """`studio` is written beside the finished model, for the program that offers it."""

    architecture: Architecture

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Raises KeyError or TypeError for a missing or an unknown name, ValueError for what is not JSON."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(architecture=Architecture.from_json(raw["architecture"]), **vars(Stages.parse(raw)))

    @property
    def clip_duration_s(self) -> float:
        mel = self.architecture.mel
        return self.corpus.clip_frames * mel.hop_length / mel.sample_rate_hz
