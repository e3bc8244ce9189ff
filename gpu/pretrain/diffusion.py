"""Stage four: the UNet learns to clear noise from latents, and T5, the projection and GPT-2 to tell it from which caption."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AudioLDM2Pipeline
from torch import Tensor, nn

from gpu.conditioning import encode_prompts
from gpu.device import autocast
from gpu.diffusion import answered_channels, denoising_loss, keep_blind, snr, training_target
from gpu.pretrain.examples import Examples
from gpu.pretrain.recipe import DiffusionRecipe
from gpu.pretrain.team import Team, gathered
from gpu.pretrain.training import CPU, Announce, Ema, Obey, Training, set_learning_rate, trapezoid
from gpu.pretrain.vae import encode
from gpu.pretrain.wording import said_anew

LATENTS = "latents.npy"
BEGINNING = "beginning"
"""The untrained pipeline, for the other processes."""
TRAINED_PARTS = ("unet", "text_encoder_2", "projection_model", "language_model")


def train_diffusion(
    recipe: DiffusionRecipe, pipeline: AudioLDM2Pipeline, examples: Examples, folder: Path,
    *, seed: int, announce: Announce, obey: Obey | None = None, processes: int = 1, grain_channels: int = 0,
    device: torch.device = CPU, precision: str = "32-true",
) -> None:  # fmt: skip
    """Error of the scheduler's prediction type, min-SNR weighted if the recipe says so; leaves the averaged weights in `pipeline`.

    The VAE, the vocoder and CLAP must be the finished ones. A caption is left out one time in ten, for each example by
    itself, so that guidance has something to compare with (Ho and Salimans 2022, arXiv:2207.12598). The others are said anew every time.

    Args:
        processes: see `gpu.pretrain.team`; one on a GPU.
        precision: Lightning's word for it.
        grain_channels: of the VAE, see `gpu.pretrain.grain`; the UNet neither sees nor answers them.

    Raises:
        ValueError: a batch cannot be divided evenly among so many processes.
    """
    if recipe.train_batch_size % processes:
        raise ValueError(f"a batch of {recipe.train_batch_size} cannot be divided among {processes} processes evenly")
    if grain_channels:
        _silence(pipeline.unet, grain_channels)
    pipeline.to(device)
    _prepare_latents(folder / LATENTS, pipeline, examples, channels=pipeline.unet.config.in_channels - grain_channels, announce=announce)
    if processes > 1:
        pipeline.save_pretrained(folder / BEGINNING)
    try:
        with gathered(processes, _take_part, recipe, folder, examples.captions, seed) as team:
            _train(team, recipe, pipeline, examples.captions, folder, seed=seed, announce=announce, obey=obey, precision=precision)
    finally:
        shutil.rmtree(folder / BEGINNING, ignore_errors=True)
    pipeline.to("cpu")


def _take_part(team: Team, recipe: DiffusionRecipe, folder: Path, captions: list[str], seed: int) -> None:
    """What another process does: the same steps, silently."""
    pipeline = AudioLDM2Pipeline.from_pretrained(folder / BEGINNING, dtype=torch.float32, local_files_only=True)
    _train(team, recipe, pipeline, captions, folder, seed=seed, announce=lambda **_: None, obey=None)


def _train(
    team: Team, recipe: DiffusionRecipe, pipeline: AudioLDM2Pipeline, captions: list[str], folder: Path,
    *, seed: int, announce: Announce, obey: Obey | None, precision: str = "32-true",
) -> None:  # fmt: skip
    device = pipeline.unet.device
    trained = nn.ModuleDict({name: getattr(pipeline, name) for name in TRAINED_PARTS})
    pipeline.unet.to(memory_format=torch.channels_last)  # what convolutions on a processor prefer
    pipeline.text_encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(trained, decay=recipe.ema_decay)
    training = Training(
        folder / "diffusion.pt", parts={"trained": trained, "optimizer": optimizer, "ema": ema}, keep=team.leads,
        max_steps=recipe.max_train_steps, batch_size=recipe.train_batch_size, seed=seed, announce=announce, obey=obey,
    )  # fmt: skip
    all_latents = np.load(folder / LATENTS, mmap_mode="r")
    scheduler = pipeline.scheduler
    channels = answered_channels(pipeline.unet)
    keep_blind(pipeline.unet)

    trained.train()
    for step in training.steps():
        share = trapezoid(step, warmup_steps=recipe.lr_warmup_steps, decay_steps=recipe.lr_decay_steps, max_steps=recipe.max_train_steps)
        set_learning_rate(optimizer, recipe.learning_rate * share)

        # Every process draws the whole batch, and then takes its share.
        rng = np.random.default_rng([seed, step])
        indices = rng.integers(len(captions), size=recipe.train_batch_size)
        left_out = rng.random(recipe.train_batch_size) < recipe.unconditional_share
        chosen = ["" if out else said_anew(captions[i], rng) for i, out in zip(indices, left_out, strict=True)]
        latents = torch.from_numpy(all_latents[indices].astype(np.float32))
        grain = torch.randn(len(latents), pipeline.unet.config.in_channels - latents.shape[1], *latents.shape[2:])
        latents = torch.cat([latents, grain], dim=1)  # [B, C, T/f, M/f]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),))
        # Drawn on the processor, so that the numbers are the same on every device.
        latents, noise, timesteps = (team.share(part).to(device) for part in (latents, noise, timesteps))

        with autocast(precision, device):
            embeds = encode_prompts(pipeline, team.share(chosen), requires_grad=True)
            prediction = pipeline.unet(
                scheduler.add_noise(latents, noise, timesteps),
                timesteps,
                encoder_hidden_states=embeds.generated_prompt_embeds,
                encoder_hidden_states_1=embeds.prompt_embeds,
                encoder_attention_mask_1=embeds.attention_mask,
            ).sample
        loss = denoising_loss(
            prediction,
            training_target(scheduler, latents, noise, timesteps),
            channels=channels,
            snr=snr(scheduler, timesteps),
            snr_gamma=recipe.snr_gamma,
            prediction_type=scheduler.config.prediction_type,
        )

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = team.average(trained, loss)
        nn.utils.clip_grad_norm_(trained.parameters(), recipe.max_grad_norm)
        optimizer.step()
        ema.update(trained, step)
        training.report(loss)

    trained.load_state_dict(ema.weights)
    trained.eval()


@torch.no_grad()
def _silence(unet: nn.Module, count: int) -> None:
    """The last `count` channels do not reach the UNet, and it answers zero in them."""
    unet.conv_in.weight[:, -count:] = 0
    unet.conv_out.weight[-count:] = 0
    unet.conv_out.bias[-count:] = 0


def _prepare_latents(
    path: Path, pipeline: AudioLDM2Pipeline, examples: Examples, *, channels: int, announce: Announce, batch_size: int = 16
) -> None:
    """Write the first channels of every example's latents, scaled to unit spread, unless they are there: [N, channels, T/f, M/f]"""
    if not path.exists():
        parts: list[Tensor] = []
        for start in range(0, len(examples), batch_size):
            indices = np.arange(start, min(start + batch_size, len(examples)))
            parts.append((encode(pipeline.vae, examples.batch(indices))[:, :channels] * pipeline.vae.config.scaling_factor).half().cpu())
            announce(stage="latents", step=start, max_steps=len(examples))
        with path.with_suffix(".tmp").open("wb") as file:
            np.save(file, torch.cat(parts).numpy())
        path.with_suffix(".tmp").replace(path)
