"""Stage one: the VAE learns to write a mel picture in few numbers and to draw it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from gpu.architectures import Architecture, build_vae
from gpu.pretrain.examples import Examples
from gpu.pretrain.linear import start_linear
from gpu.pretrain.recipe import VaeRecipe
from gpu.pretrain.training import Announce, Obey, Training, cosine, set_learning_rate

STATISTICS = 400
"""Examples that decide the linear code."""


def train_vae(
    recipe: VaeRecipe, architecture: Architecture, examples: Examples, folder: Path,
    *, seed: int, announce: Announce, obey: Obey | None = None,
) -> AutoencoderKL:  # fmt: skip
    """The encoder is the linear code of `start_linear` and stays so; the decoder learns, by the absolute error of the log mel.

    It learns from latents with a little noise, because those that a diffusion model makes are never exact.

    Returns:
        the VAE in eval mode, with its scaling_factor = 1 / std of the latents, as the original sets it (`scale_by_std`).
    """
    torch.manual_seed(seed)
    vae = build_vae(architecture)
    start_linear(vae, examples.batch(np.arange(min(STATISTICS, len(examples)))))
    vae.requires_grad_(False).decoder.requires_grad_(True)
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=1e-5)
    training = Training(
        folder / "vae.pt", parts={"vae": vae, "optimizer": optimizer},
        max_steps=recipe.max_train_steps, batch_size=recipe.train_batch_size, seed=seed, announce=announce, obey=obey,
    )  # fmt: skip

    vae.train()
    for step in training.steps():
        share = cosine(step, warmup_steps=recipe.lr_warmup_steps, max_steps=recipe.max_train_steps)
        set_learning_rate(optimizer, recipe.learning_rate * share)

        mel = examples.crops(np.random.default_rng([seed, step]), recipe.train_batch_size, recipe.crop_frames)  # [B, 1, T, M]
        latents = encode(vae, mel.contiguous(memory_format=torch.channels_last))  # [B, C, T/f, M/f]
        error = (vae.decode(latents + recipe.noise * torch.randn_like(latents)).sample - mel).abs().mean()

        optimizer.zero_grad(set_to_none=True)
        error.backward()
        nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        training.report(error)

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
