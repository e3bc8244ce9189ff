"""Stage one: the VAE learns to write a mel picture in few numbers and to draw it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from gpu.architectures import Architecture, build_vae
from gpu.pretrain.examples import Examples
from gpu.pretrain.recipe import VaeRecipe
from gpu.pretrain.training import Announce, Training, cosine, set_learning_rate

TYPICAL_LOG_MEL = -6.0


def train_vae(
    recipe: VaeRecipe, architecture: Architecture, examples: Examples, folder: Path, *, seed: int, announce: Announce
) -> AutoencoderKL:
    """Absolute error of the log mel, plus a touch of KL divergence that keeps the latents smooth.

    Returns:
        the VAE in eval mode, with its scaling_factor = 1 / std of the latents, as the original sets it (`scale_by_std`).
    """
    torch.manual_seed(seed)
    vae = build_vae(architecture).to(memory_format=torch.channels_last)
    nn.init.constant_(vae.decoder.conv_out.bias, TYPICAL_LOG_MEL)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    training = Training(
        folder / "vae.pt", parts={"vae": vae, "optimizer": optimizer}, max_steps=recipe.max_train_steps, seed=seed, announce=announce
    )

    vae.train()
    for step in training.steps():
        share = cosine(step, warmup_steps=recipe.lr_warmup_steps, max_steps=recipe.max_train_steps)
        set_learning_rate(optimizer, recipe.learning_rate * share)

        mel = examples.crops(np.random.default_rng([seed, step]), recipe.train_batch_size, recipe.crop_frames)  # [B, 1, T, M]
        posterior = vae.encode(mel.contiguous(memory_format=torch.channels_last)).latent_dist
        latents = posterior.sample()  # [B, C, T/f, M/f]
        error = (vae.decode(latents).sample - mel).abs().mean()
        divergence = posterior.kl().mean() / latents[0].numel()
        loss = error + recipe.kl_weight * divergence

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        training.report(error, kl=round(float(divergence.detach()), 2))

    vae.eval()
    vae.register_to_config(scaling_factor=1 / float(encode(vae, examples.held_out).std()))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, mel: Tensor) -> Tensor:
    """The latents' means, unscaled: [B, 1, T, M] -> [B, C, T/f, M/f]"""
    return vae.encode(mel).latent_dist.mode()


@torch.no_grad()
def round_trip_error(vae: AutoencoderKL, mel: Tensor) -> float:
    """Mean absolute error of the log mel after encoding and decoding."""
    return float((vae.decode(encode(vae, mel)).sample - mel).abs().mean())
