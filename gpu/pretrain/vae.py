"""Stage one: the VAE learns to write a mel picture in few numbers and to draw it again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from gpu.architectures import Architecture, build_vae
from gpu.pretrain.examples import Examples
from gpu.pretrain.grain import learn_spread
from gpu.pretrain.linear import start_decoder, start_encoder
from gpu.pretrain.recipe import VaeRecipe
from gpu.pretrain.training import CPU, Announce, Obey, Training, cosine, set_learning_rate

STATISTICS = 400
"""Examples that decide the linear code."""
GRAIN_WEIGHT = 0.3
"""Of the mismatch, about 0.5 when learnt, beside an error of about 0.2."""


def train_vae(
    recipe: VaeRecipe, architecture: Architecture, examples: Examples, folder: Path,
    *, seed: int, announce: Announce, obey: Obey | None = None, device: torch.device = CPU,
) -> AutoencoderKL:  # fmt: skip
    """The encoder is the linear code of `start_encoder` and stays so; the decoder learns, by the absolute error of the log mel.

    It learns from latents with a little noise, because those that a diffusion model makes are never exact. With `recipe.grain_channels` half of
    each batch brings its own grain and half gets noise instead (`gpu.pretrain.grain`).

    Returns:
        the VAE in eval mode, on the processor, with its scaling_factor = 1 / std of the outline's latents, as the original sets it (`scale_by_std`); the other
        channels are unit noise after scaling.
    """
    torch.manual_seed(seed)
    vae = build_vae(architecture)
    some = examples.batch(np.arange(min(STATISTICS, len(examples))))
    code = start_encoder(vae, some, grain_channels=recipe.grain_channels)
    spread = None
    if recipe.grain_channels:
        spread = learn_spread(code, examples, folder / "grain.pt", steps=recipe.grain_steps, seed=seed, announce=announce)

    def latents_of(mel: Tensor) -> Tensor:
        outline = code.outline(mel)
        grain = [spread.whitened(outline, code.grain(mel))[:, : recipe.grain_channels]] if spread else []
        return torch.cat([outline, *grain], dim=1)

    torch.manual_seed(seed)
    start_decoder(vae, latents_of(some), some)
    vae.requires_grad_(False).decoder.requires_grad_(True)
    vae.to(device, memory_format=torch.channels_last)
    code, spread = code.to(device), spread and spread.to(device)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=1e-5)
    training = Training(
        folder / "vae.pt", parts={"vae": vae, "optimizer": optimizer},
        max_steps=recipe.max_train_steps, batch_size=recipe.train_batch_size, seed=seed, announce=announce, obey=obey,
    )  # fmt: skip
    known = recipe.train_batch_size - recipe.train_batch_size // 2 if spread else recipe.train_batch_size

    vae.train()
    for step in training.steps():
        share = cosine(step, warmup_steps=recipe.lr_warmup_steps, max_steps=recipe.max_train_steps)
        set_learning_rate(optimizer, recipe.learning_rate * share)

        mel = examples.crops(np.random.default_rng([seed, step]), recipe.train_batch_size, recipe.crop_frames).to(device)  # [B, 1, T, M]
        latents = latents_of(mel)  # [B, C, T/f, M/f]
        outline = latents[:, : len(code.gains)].clone()
        latents += recipe.noise * torch.randn_like(latents)
        if spread:
            latents[known:, len(code.gains) :] = torch.randn_like(latents[known:, len(code.gains) :])
        drawn = vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample
        loss = error = (drawn[:known] - mel[:known]).abs().mean()
        if spread and known < len(mel):
            by_chance, asked = drawn[known:], outline[known:]
            loss = error + (code.outline(by_chance) - asked).abs().mean() + GRAIN_WEIGHT * spread.mismatch(asked, code.grain(by_chance))

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        training.report(error)

    vae.to("cpu").eval()
    count = vae.config.latent_channels - recipe.grain_channels
    spread_of_latents = float(encode(vae, examples.held_out)[:, :count].std())
    vae.register_to_config(scaling_factor=1 / spread_of_latents)
    with torch.no_grad():
        vae.encoder.conv_out.bias[vae.config.latent_channels + count :] = 2 * math.log(spread_of_latents)
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, mel: Tensor) -> Tensor:
    """The latents' means, unscaled; 0 in channels that only carry grain: [B, 1, T, M] -> [B, C, T/f, M/f]"""
    return vae.encode(mel.to(vae.device)).latent_dist.mode()


@torch.no_grad()
def round_trip_error(vae: AutoencoderKL, mel: Tensor) -> float:
    """Mean absolute error of the log mel after encoding and decoding; without grain, where the VAE leaves that to chance."""
    return float((vae.decode(encode(vae, mel)).sample - mel).abs().mean())
