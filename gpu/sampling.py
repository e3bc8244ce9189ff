"""From a prompt to ranked waveforms. Training's validation and generation both come here: same seed, same weights, same sound.

The loop is that of diffusers' AudioLDM2Pipeline, opened so that every step can be counted and stopped. Noise is drawn on the
processor, so that one seed means one noise on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from gpu.config import MAX_SEED, GenerateConfig
from gpu.device import autocast, candidates_at_once, sampling_precision
from gpu.pipelines import Embeds, LoadedPipeline, collate, encode_guided, unet_inputs

SCHEDULERS = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


class Stopped(Exception):
    """Sampling was asked to stop. Says how many sampler steps were done."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at sampler step {step}")
        self.step = step


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One sound.

    Attributes:
        index: its place in the order of making, from 0.
        seed: with which alone it can be made again.
        samples: [S], float32, |x| <= 1.
        gain: what it was multiplied by to stay within full scale, 1 as a rule.
        clap_score: cosine between prompt and sound, None where the model's CLAP cannot hear.
    """

    index: int
    seed: int
    samples: np.ndarray
    gain: float = 1.0
    clap_score: float | None = None


def sample_sounds(
    loaded: LoadedPipeline,
    config: GenerateConfig,
    *,
    embeds: tuple[Embeds, Embeds] | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Candidate]:
    """Make `num_waveforms_per_prompt` sounds and rank them, best first.

    Args:
        embeds: of the prompt and of the negative prompt (`encode_guided`), when known already.
        on_step: told (done, total) after every sampler step; total counts every group of candidates.
        should_stop: asked before every sampler step.
    Raises:
        Stopped: `should_stop` said so.
    """
    with torch.no_grad():
        embeds = embeds or encode_guided(loaded, config.prompt, config.negative_prompt)
        shape = loaded.latent_shape(config.audio_length_in_s)
        seeds = [candidate_seed(config.seed, index) for index in range(config.num_waveforms_per_prompt)]
        group = candidates_at_once(int(np.prod(shape[1:])), loaded.device)
        groups = [seeds[start : start + group] for start in range(0, len(seeds), group)]

        waveforms: list[np.ndarray] = []
        for number, members in enumerate(groups):
            done, total = number * config.num_inference_steps, len(groups) * config.num_inference_steps
            latents = denoise(
                loaded,
                initial_noise(members, shape).to(loaded.device, loaded.unet.dtype),
                embeds,
                config,
                on_step=lambda step, done=done, total=total: on_step(done + step, total),
                should_stop=should_stop,
                done=done,
            )
            waveforms.extend(decode(loaded, latents, duration_s=config.audio_length_in_s))

        candidates = [
            _within_full_scale(Candidate(index=index, seed=seed, samples=samples))
            for index, (seed, samples) in enumerate(zip(seeds, waveforms, strict=True))
        ]
        return ranked(candidates, clap_scores(loaded, config.prompt, [candidate.samples for candidate in candidates]))


def candidate_seed(seed: int, index: int) -> int:
    """The seed of one of several candidates; the first has the seed itself, so each can be made again alone."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:4]) & MAX_SEED


def initial_noise(seeds: list[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal, [len(seeds), *shape], each row from its own seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def denoise(
    loaded: LoadedPipeline,
    noise: Tensor,
    embeds: tuple[Embeds, Embeds],
    config: GenerateConfig,
    *,
    on_step: Callable[[int], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    done: int = 0,
) -> Tensor:
    """The sampler's loop: latents [B, C, T/4, M/4] from noise of that shape (4 being the model's latent scale)."""
    unet, scheduler = loaded.unet, make_scheduler(loaded.pipeline.scheduler, config)
    guided = config.guidance_scale > 1.0
    conditional, unconditional = embeds
    both = collate([unconditional] * len(noise) + [conditional] * len(noise)) if guided else collate([conditional] * len(noise))
    inputs = unet_inputs(both.to(noise.device, noise.dtype), unet)
    precision = sampling_precision(config.mixed_precision, noise.device)

    latents = noise * scheduler.init_noise_sigma
    for step, t in enumerate(scheduler.timesteps, start=1):
        if should_stop():
            raise Stopped(done + step - 1)
        model_input = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        with autocast(precision, noise.device):
            prediction = unet(model_input, t.to(noise.device), **inputs, return_dict=False)[0].to(noise.dtype)
        if guided:
            # Classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598, eq. 6.
            without, with_prompt = prediction.chunk(2)
            prediction = without + config.guidance_scale * (with_prompt - without)
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
        on_step(step)
    return latents


def make_scheduler(trained: Any, config: GenerateConfig) -> Any:
    """A fresh sampler with the noise schedule and the prediction type that the model was trained with."""
    changes: dict[str, Any] = {}
    if "clip_sample" not in trained.config:
        # Another sampler's configuration has no such word, and DDIM's default would cut latents off at one.
        changes["clip_sample"] = False
    if config.sampler != "ddim":
        # The checkpoints' own "leading" spacing starts short of the last timestep (at 941 of 999 with 20 steps, at 600 with 600).
        changes["timestep_spacing"] = "linspace"
    elif config.num_inference_steps >= trained.config.num_train_timesteps:
        # With every timestep in use there is none left to be offset to.
        changes["steps_offset"] = 0
    scheduler = SCHEDULERS[config.sampler].from_config(trained.config, **changes)
    # Spread over 1000 timesteps, 1000 steps of a solver would visit one of them twice, and it stumbles over that.
    most = trained.config.num_train_timesteps - (config.sampler != "ddim")
    scheduler.set_timesteps(min(config.num_inference_steps, most))
    return scheduler


def decode(loaded: LoadedPipeline, latents: Tensor, *, duration_s: float) -> list[np.ndarray]:
    """Latents to sounds of exactly `int(duration_s * rate)` samples, [S] float32 each."""
    parts = loaded.pipeline
    mel = parts.vae.decode(latents / parts.vae.config.scaling_factor, return_dict=False)[0]  # [B, 1, T, M]
    waveforms = parts.vocoder(mel.squeeze(1)).float().cpu()  # [B, S], a little longer than asked for
    num_samples = int(duration_s * loaded.mel.sample_rate_hz)
    return list(waveforms[:, :num_samples].numpy())


def clap_scores(loaded: LoadedPipeline, prompt: str, sounds: list[np.ndarray]) -> list[float] | None:
    """Cosine between the prompt and each sound in CLAP's joint space; None for a model without ears."""
    clap = loaded.ranker
    if clap is None:
        return None
    text = clap.text_embeds([prompt]).float()  # [1, D], of length 1
    rate = loaded.mel.sample_rate_hz
    return [float((clap.audio_embeds(samples, sample_rate_hz=rate).float() * text).sum()) for samples in sounds]


def ranked(candidates: list[Candidate], scores: list[float] | None) -> list[Candidate]:
    """Best first; in the order of making where nothing can be scored."""
    if scores is None:
        return candidates
    scored = [replace(candidate, clap_score=score) for candidate, score in zip(candidates, scores, strict=True)]
    return sorted(scored, key=lambda candidate: (not np.isfinite(candidate.clap_score), -candidate.clap_score))


def _within_full_scale(candidate: Candidate) -> Candidate:
    """Turned down where it would clip, never turned up."""
    peak = float(np.abs(np.nan_to_num(candidate.samples)).max(initial=0.0))
    if peak <= 1.0:
        return candidate
    return replace(candidate, samples=(candidate.samples / peak).astype(np.float32), gain=1.0 / peak)
