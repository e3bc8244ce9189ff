"""Grain: what a picture's finest structure would be by chance, given its outline.

The fine structure of rain or applause is chance: no caption tells it, and a diffusion model spends most of its training on it. Left out it
is worse: the decoder draws the middle of what could be there, smooth, and a vocoder answers a smooth noise with a buzz. So a
latent code has two kinds of channels. The first ones make the outline. The others carry nothing but unit noise: a picture's posterior in them is the
prior, a UNet that predicts the velocity has nothing to say about them (of unit noise in unit noise the expected velocity is zero), and a sampler
hands its first noise on in them.

What the decoder makes of that noise it learns without a critic, in two halves of every batch. `Spread` tells how strong each component of the grain
is at each place, as far as the outline tells. In the one half the true grain, divided by that strength, stands in the noise's place: the picture is
determined, and its error counts. That alone leaves the grain too faint, since a decoder that enlarges by repeating cannot draw every
component exactly, and of what is uncertain the middle is small. So the other half gets noise, and what counts is whether each
component comes out as strong as it should, besides the outline.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu.pretrain.examples import Examples
from gpu.pretrain.linear import LinearCode
from gpu.pretrain.training import Announce

WIDTH = 96
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
DOUBT = 0.1
"""Noise on the outline's latents while it learns: those that a diffusion model makes are never exact."""
MOST_LOUD = 4.0
"""Whitened grain is cut off here: such a value comes once in 16,000 from unit noise, and a rare louder one would rule the loss."""
FAINTEST = 4e-4
"""A power below this is silence, whatever it is."""


class Spread(nn.Module):
    """The logarithm of the grain's variance at each place: [N, C, T/f, M/f] -> [N, P - C, T/f, M/f]

    Args:
        typical: [P - C], each component's variance over everything.
    """

    def __init__(self, outline_channels: int, typical: Tensor) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(outline_channels, WIDTH, 3, padding=1), nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU(),
            nn.Conv2d(WIDTH, len(typical), 1),
        )  # fmt: skip
        self.register_buffer("typical", typical.log()[:, None, None])

    def forward(self, outline: Tensor) -> Tensor:
        return (self.layers(outline) + self.typical).clamp(-14, 8)

    @torch.no_grad()
    def whitened(self, outline: Tensor, grain: Tensor) -> Tensor:
        """The grain as noise of about unit variance."""
        return (grain * (-0.5 * self(outline)).exp()).clamp(-MOST_LOUD, MOST_LOUD)

    def mismatch(self, outline: Tensor, grain: Tensor) -> Tensor:
        """How far the strength of `grain` is from what `outline` asks for: the mean difference of the logarithms of their powers.

        A power is the mean over 3 x 3 places: of a single one nothing can be said.
        """
        with torch.no_grad():
            wanted = F.avg_pool2d(self(outline).exp(), 3, 1)
        found = F.avg_pool2d(grain.square(), 3, 1)
        return ((found + FAINTEST).log() - (wanted + FAINTEST).log()).abs().mean()


def learn_spread(code: LinearCode, examples: Examples, path: Path, *, steps: int, seed: int, announce: Announce) -> Spread:
    """By the likelihood of normally distributed grain, unless `path` holds it already. A thousand steps take 40 seconds on one core."""
    torch.manual_seed(seed)
    some = examples.batch(np.arange(min(400, len(examples))))
    spread = Spread(len(code.gains), code.grain(some).square().mean((0, 2, 3)).clamp(min=1e-6))
    if path.exists():
        spread.load_state_dict(torch.load(path, weights_only=True))
        return spread.eval()
    optimizer = torch.optim.Adam(spread.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        mel = examples.batch(np.sort(np.random.default_rng([seed, step]).integers(len(examples), size=BATCH_SIZE)))
        outline, grain = code.outline(mel), code.grain(mel)
        log_variance = spread(outline + DOUBT * torch.randn_like(outline))
        surprise = 0.5 * (log_variance + grain.square() * (-log_variance).exp() + math.log(2 * math.pi)).mean()
        optimizer.zero_grad(set_to_none=True)
        surprise.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            announce(stage="grain", step=step + 1, max_steps=steps)
    torch.save(spread.state_dict(), path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    return spread.eval()
