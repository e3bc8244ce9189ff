"""Last stage: the VAE's decoder learns grain, from noise that travels beside the latents.

A decoder that is trained for the smallest error draws rain and wind as the middle of what could be there: smooth, and a vocoder makes
a buzz of it. What is missing is chance, so the latents get channels that hold nothing else. Their posterior is noise whatever the sound
is; the diffusion model has nothing to learn about them (of unit noise in unit noise the expected velocity is zero, so its new weights are
zero); and the decoder learns to make of them what varies, with a proper score: the energy score (Gneiting and Raftery 2007,
doi:10.1198/016214506000001437, eq. 22) of small patches, whose best answer is the true distribution and not its middle. The encoder and
the meaning of the old channels stay as they are.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AudioLDM2UNet2DConditionModel, AutoencoderKL
from torch import Tensor, nn

from gpu.pretrain.examples import Examples
from gpu.pretrain.recipe import GrainRecipe
from gpu.pretrain.training import Announce, Training, set_learning_rate, trapezoid

PATCHES = (1, 3, 6)
"""Frames and bins of the patches that are judged as a whole."""


def train_grain(
    recipe: GrainRecipe, vae: AutoencoderKL, latents: np.ndarray, examples: Examples, folder: Path, *, seed: int, announce: Announce
) -> AutoencoderKL:
    """The VAE with noise channels, in eval mode.

    Args:
        vae: the finished one; it stays as it is.
        latents: of `examples`, scaled by `vae.config.scaling_factor`: [N, C, T/f, M/f]
    """
    torch.manual_seed(seed)
    wide = with_noise_channels(vae, recipe.noise_channels)
    wide.requires_grad_(False)
    trained = nn.ModuleDict({"decoder": wide.decoder, "post_quant_conv": wide.post_quant_conv}).requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    training = Training(
        folder / "grain.pt",
        parts={"trained": trained, "optimizer": optimizer},
        max_steps=recipe.max_train_steps,
        seed=seed,
        announce=announce,
    )
    factor = examples.mels.shape[1] // latents.shape[2]
    width = recipe.crop_frames // factor

    trained.train()
    for step in training.steps():
        share = trapezoid(step, warmup_steps=recipe.lr_warmup_steps, decay_steps=recipe.lr_decay_steps, max_steps=recipe.max_train_steps)
        set_learning_rate(optimizer, recipe.learning_rate * share)

        rng = np.random.default_rng([seed, step])
        indices = rng.integers(len(examples), size=recipe.train_batch_size)
        starts = rng.integers(latents.shape[2] - width + 1, size=recipe.train_batch_size)
        real = _cuts(examples.mels, indices, starts * factor, recipe.crop_frames)[:, None]  # [B, 1, T, M]
        known = _cuts(latents.swapaxes(1, 2), indices, starts, width).transpose(1, 2).repeat(2, 1, 1, 1)  # [2B, C, T/f, M/f]
        noise = torch.randn(len(known), recipe.noise_channels, *known.shape[2:])
        first, second = wide.decode(torch.cat([known, noise], 1) / wide.config.scaling_factor).sample.chunk(2)
        loss = energy_score(first, second, real)

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        training.report(loss, apart=round(float((first - second).detach().abs().mean()), 3))
    return wide.eval()


def energy_score(first: Tensor, second: Tensor, real: Tensor) -> Tensor:
    """How far two draws lie from the real picture, less half of how far they lie from each other, as a mean over patches of each size.

    All are [B, 1, T, M]. The distance of patches is the root mean square over their points, so that sizes weigh alike.
    """
    scores = []
    for size in PATCHES:
        to_real = (_distance(first, real, size) + _distance(second, real, size)) / 2
        scores.append(to_real - _distance(first, second, size) / 2)
    return torch.stack(scores).mean()


def with_noise_channels(vae: AutoencoderKL, count: int) -> AutoencoderKL:
    """The same VAE with `count` more latent channels: the encoder says of them "unit noise" (after scaling), the decoder hears them faintly."""
    old = vae.config.latent_channels
    wide = AutoencoderKL.from_config({**vae.config, "latent_channels": old + count})
    state = vae.state_dict()
    # Moments are the means of all channels, then their log variances.
    rows = [*range(old), *range(old + count, 2 * old + count)]
    for name in ("encoder.conv_out", "quant_conv"):
        weight, bias = wide.get_parameter(f"{name}.weight").detach(), wide.get_parameter(f"{name}.bias").detach()
        weight.zero_(), bias.zero_()
        columns = rows if name == "quant_conv" else slice(None)
        weight[rows] = _spread(state[f"{name}.weight"], columns, weight.shape[1])
        bias[rows] = state[f"{name}.bias"]
        if name == "quant_conv":
            bias[2 * old + count :] = -2 * math.log(vae.config.scaling_factor)
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
    through = torch.eye(old + count)[:, :, None, None]
    through[:old, :old] = state["post_quant_conv.weight"]
    state["post_quant_conv.weight"] = through
    state["post_quant_conv.bias"] = F.pad(state["post_quant_conv.bias"], (0, count))
    faint = 0.1 * wide.decoder.conv_in.weight.detach().clone()
    faint[:, :old] = state["decoder.conv_in.weight"]
    state["decoder.conv_in.weight"] = faint
    wide.load_state_dict(state)
    return wide


def widened(unet: AudioLDM2UNet2DConditionModel, count: int) -> AudioLDM2UNet2DConditionModel:
    """The same UNet with `count` more channels that it neither hears nor moves. Right for velocity prediction alone."""
    channels = unet.config.in_channels + count
    wide = AudioLDM2UNet2DConditionModel.from_config({**unet.config, "in_channels": channels, "out_channels": channels})
    state = unet.state_dict()
    state["conv_in.weight"] = F.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, count))
    state["conv_out.weight"] = F.pad(state["conv_out.weight"], (0, 0, 0, 0, 0, 0, 0, count))
    state["conv_out.bias"] = F.pad(state["conv_out.bias"], (0, count))
    wide.load_state_dict(state)
    return wide.eval()


def _spread(weight: Tensor, columns: list[int] | slice, width: int) -> Tensor:
    """The input channels of a convolution moved to `columns` of `width`, the others zero."""
    wide = torch.zeros(weight.shape[0], width, *weight.shape[2:])
    wide[:, columns] = weight
    return wide


def _distance(one: Tensor, other: Tensor, size: int) -> Tensor:
    if size == 1:
        return (one - other).abs().mean()
    return (F.avg_pool2d((one - other).square(), size, max(size // 2, 1)) + 1e-6).sqrt().mean()


def _cuts(pictures: np.ndarray, indices: np.ndarray, starts: np.ndarray, length: int) -> Tensor:
    """Rows `start` to `start + length` of each picture: [N, T, ...] -> [B, length, ...]"""
    return torch.from_numpy(np.stack([pictures[i, s : s + length] for i, s in zip(indices, starts, strict=True)]).astype(np.float32))
