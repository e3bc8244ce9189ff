"""The equations of training a denoiser, each as short as on paper.

A noisy latent is x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, with a_t the scheduler's `alphas_cumprod[t]` (Ho et al. 2020,
arXiv:2006.11239, eq. 4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def training_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet should answer at `timesteps` [B]: the noise, the velocity, or the clean latents, [B, C, H, W].

    The velocity is sqrt(a) eps - sqrt(1 - a) x_0 (Salimans and Ho 2022, arXiv:2202.00512, appendix D).

    Raises:
        ValueError: the scheduler's prediction_type is unknown.
    """
    prediction_type = _known(scheduler.config.prediction_type)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    alphas_cumprod = _at(scheduler, timesteps).to(latents)[:, None, None, None]
    return alphas_cumprod.sqrt() * noise - (1 - alphas_cumprod).sqrt() * latents


def snr(scheduler: Any, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio a / (1 - a) at each timestep, [B]."""
    alphas_cumprod = _at(scheduler, timesteps)
    return alphas_cumprod / (1 - alphas_cumprod)


def answered_channels(unet: nn.Module) -> Tensor | None:
    """Latent channels that a UNet says anything about, as indices [K]; None for all.

    About a channel that is noise and nothing else a UNet that predicts the velocity has nothing to say: its output there is zero by its weights
    (`gpu.pretrain.grain`). The error that remains in such a channel is the noise itself, and would hide what is learned in the others.
    """
    answered = unet.conv_out.weight.detach().flatten(1).any(1)
    return None if answered.all() or not answered.any() else answered.nonzero()[:, 0]


def keep_blind(unet: nn.Module) -> None:
    """Weights that see only channels of which the UNet says nothing, and are zero, stay zero while the UNet is trained.

    Their gradient is the noise in those channels and nothing else, and an optimiser that scales gradients to one size would make steps of it.
    """
    channels, weight = answered_channels(unet), unet.conv_in.weight
    if channels is None or not weight.requires_grad:
        return
    seen = weight.detach().any(0).flatten(1).any(1).index_fill(0, channels, True)[None, :, None, None]  # [1, C, 1, 1]
    weight.register_hook(lambda gradient: gradient * seen.to(gradient))


def denoising_loss(
    pred: Tensor,
    target: Tensor,
    *,
    channels: Tensor | None = None,
    snr: Tensor | None = None,
    snr_gamma: float | None = None,
    prediction_type: str,
) -> Tensor:
    """Mean squared error of the prediction, easy timesteps held back.

    Min-SNR weighting (Hang et al. 2023, arXiv:2303.09556, section 3.4) counts each example's clean-latent error
    min(snr, gamma) times; in the error of the noise that is min(snr, gamma) / snr, in that of the velocity
    min(snr, gamma) / (snr + 1). `snr_gamma=None` weighs all alike.

    Args:
        pred: UNet output, [B, C, H, W].
        channels: those that count, from `answered_channels`.
        snr: at each example's timestep, [B], > 0; needed with `snr_gamma`.
    Raises:
        ValueError: the two shapes differ (they would broadcast), `snr` is missing, or the prediction type is unknown.
    """
    if pred.shape != target.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
    if channels is not None:
        pred, target = pred[:, channels], target[:, channels]
    per_example = (pred.float() - target.float()).square().flatten(1).mean(1)  # [B]
    if snr_gamma is None:
        return per_example.mean()
    if snr is None:
        raise ValueError(f"snr_gamma ({snr_gamma}) needs the signal-to-noise ratio of each example")

    weight = snr.clamp(max=snr_gamma).to(per_example)
    scale = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[_known(prediction_type)]
    return (per_example * weight / scale.to(per_example)).mean()


def _at(scheduler: Any, timesteps: Tensor) -> Tensor:
    return scheduler.alphas_cumprod.to(timesteps.device)[timesteps]


def _known(prediction_type: str) -> str:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type is {prediction_type!r}, must be one of {', '.join(PREDICTION_TYPES)}")
    return prediction_type
