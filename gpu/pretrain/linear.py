"""A VAE that starts as a linear transform instead of as noise.

The best linear code of 4 x 4 squares of a log-mel picture, their principal components, keeps more with twelve numbers than a VAE of this size
learns in hours on a processor. So the weights are set such that the encoder computes exactly that code, and the decoder the best linear
answer to it that its layers allow; training then only has to mend what is left. The construction uses what the layers are made of:

- a ResNet block whose second convolution is zero is the identity;
- a convolution of stride two can hand each pixel of a 2 x 2 square to a channel of its own;
- x and -x side by side pass SiLU unharmed: silu(x) - silu(-x) = x;
- large constants beside them make GroupNorm divide by nearly the same number for every picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

TYPICAL_LOG_MEL = -6.0
CONSTANT = 20.0
"""Beside values of about 1 in the encoder and 3 in the decoder."""
LOG_VARIANCE = -6.0
WHITENING = 0.5
"""0 leaves the components their variances, which differ a thousandfold; 1 makes them equal. Between: the outline is louder than the grain,
so that a diffusion model sees it first, and the grain is not lost."""


@dataclass(frozen=True, kw_only=True)
class LinearCode:
    """What the components of a square are: the first make the outline, the next its grain.

    Attributes:
        mean: [P], of a square's P pixels, above TYPICAL_LOG_MEL.
        components: [P, P], one a column, by falling variance.
        gains: [C], what the first C are multiplied with to be latents of unit spread as a whole.
    """

    mean: Tensor
    components: Tensor
    gains: Tensor

    def to(self, device: torch.device) -> LinearCode:
        return LinearCode(mean=self.mean.to(device), components=self.components.to(device), gains=self.gains.to(device))

    def outline(self, mel: Tensor) -> Tensor:
        """The latents: [N, 1, T, M] -> [N, C, T/f, M/f]"""
        return self._project(mel, self.components[:, : len(self.gains)] * self.gains)

    def grain(self, mel: Tensor) -> Tensor:
        """All other components, by falling variance: [N, 1, T, M] -> [N, P - C, T/f, M/f]"""
        return self._project(mel, self.components[:, len(self.gains) :])

    def _project(self, mel: Tensor, columns: Tensor) -> Tensor:
        pixels = squares(mel - TYPICAL_LOG_MEL, round(math.log(len(self.mean), 4)))
        return ((pixels.permute(0, 2, 3, 1) - self.mean) @ columns).permute(0, 3, 1, 2)


def start_linear(vae: AutoencoderKL, mel: Tensor) -> None:
    """Set all weights of `vae`; see `start_encoder`."""
    start_decoder(vae, start_encoder(vae, mel).outline(mel), mel)


@torch.no_grad()
def start_encoder(vae: AutoencoderKL, mel: Tensor, *, grain_channels: int = 0) -> LinearCode:
    """Make the encoder a linear code, and every block the identity.

    Args:
        vae: with one ResNet block a level and levels of different widths; the last has at least four channels for each channel of the
            outline, the one before it one for each pixel of a square, the first four for each group of the GroupNorm.
        mel: log-mel pictures whose statistics decide the code: [N, 1, T, M], natural log.
        grain_channels: how many of the latent channels, the last ones, say nothing about a picture: their mean is 0, their variance 1.

    Raises:
        ValueError: the architecture has no room for the construction.
    """
    widths, config = vae.config.block_out_channels, vae.config
    count = config.latent_channels - grain_channels
    if widths[-1] < max(4 * count, config.latent_channels) or widths[-2] < 4 ** (len(widths) - 1) or widths[0] < 4 * config.norm_num_groups:
        raise ValueError(f"a linear start needs wider levels than {tuple(widths)} for {config.latent_channels} latent channels")
    if config.layers_per_block != 1 or count < 1 or count % config.norm_num_groups or len(set(widths)) < len(widths):
        raise ValueError("a linear start needs one block a level, levels of different widths, and latent channels that fill the groups")
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            _clear(module.conv2)
            if module.conv_shortcut is not None:
                _pass_on(module.conv_shortcut)
        elif isinstance(module, Attention):
            _clear(module.to_out[0])
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        _pass_on(convolution)
    return _start_encoder(vae, mel, count)


def squares(picture: Tensor, halvings: int) -> Tensor:
    """Each 2 x 2 square becomes four channels, `halvings` times: [N, C, T, M] -> [N, C * 4^h, T / 2^h, M / 2^h]"""
    for _ in range(halvings):
        n, c, t, m = picture.shape
        picture = picture.reshape(n, c, t // 2, 2, m // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, c * 4, t // 2, m // 2)
    return picture


def _start_encoder(vae: AutoencoderKL, mel: Tensor, latent_channels: int) -> LinearCode:
    encoder = vae.encoder
    _clear(encoder.conv_in)
    encoder.conv_in.weight[0, 0, 1, 1] = 1
    encoder.conv_in.bias[0] = -TYPICAL_LOG_MEL
    count = 1
    for block in encoder.down_blocks[:-1]:
        halve = block.downsamplers[0].conv
        _clear(halve)
        for channel in range(count):
            for dy in (0, 1):
                for dx in (0, 1):
                    halve.weight[channel * 4 + dy * 2 + dx, channel, dy, dx] = 1
        count *= 4

    pixels = squares(mel - TYPICAL_LOG_MEL, len(encoder.down_blocks) - 1)
    flat = pixels.permute(1, 0, 2, 3).reshape(count, -1)
    mean = flat.mean(1)
    variances, components = torch.linalg.eigh(torch.cov(flat))
    variances, components = variances.flip(0)[:latent_channels].clamp(min=1e-6), components.flip(1)
    gains = variances.sqrt() ** -WHITENING
    gains /= (gains.square() * variances).mean().sqrt()
    code = (components[:, :latent_channels] * gains).T  # [C, pixels of a square]

    # Each latent as a pair, x and -x, in a group of the last normalisation that is filled up with constants.
    project = encoder.down_blocks[-1].resnets[0].conv_shortcut
    _clear(project)
    groups = vae.config.norm_num_groups
    width, pairs = encoder.conv_norm_out.num_channels // groups, latent_channels // groups
    _clear(encoder.conv_out)
    spread = (CONSTANT**2 * (width - 2 * pairs) / width + 2 * pairs / width) ** 0.5
    for latent in range(latent_channels):
        group, place = divmod(latent, pairs)
        plus = group * width + place
        minus = plus + pairs
        for channel, sign in ((plus, 1), (minus, -1)):
            project.weight[channel, :count, 0, 0] = sign * code[latent]
            project.bias[channel] = -sign * (code[latent] @ mean)
            encoder.conv_out.weight[latent, channel, 1, 1] = sign * spread
    for group in range(groups):
        _fill(project, range(group * width + 2 * pairs, (group + 1) * width))
    log_variances = encoder.conv_out.bias[vae.config.latent_channels :]
    log_variances[:latent_channels] = LOG_VARIANCE
    log_variances[latent_channels:] = 0
    return LinearCode(mean=mean, components=components, gains=gains)


@torch.no_grad()
def start_decoder(vae: AutoencoderKL, latents: Tensor, mel: Tensor) -> None:
    """Make the decoder the best linear answer to `latents` [N, C, T/f, M/f] that its layers allow, after `start_encoder`."""
    decoder = vae.decoder
    count = latents.shape[1]
    decoder.conv_in.weight.mul_(0.3)
    decoder.conv_in.bias.zero_()
    decoder.conv_in.weight[:count] = 0
    decoder.conv_in.weight[range(count), range(count), 1, 1] = 1
    halvings = len(decoder.up_blocks) - 1
    for block in decoder.up_blocks[:-1]:
        halvings -= 1
        target = squares(mel - TYPICAL_LOG_MEL, halvings)
        enlarged = F.interpolate(latents, scale_factor=2.0, mode="nearest")
        weight, bias = _least_squares(enlarged, target)
        convolution = block.upsamplers[0].conv
        n_out, n_in = weight.shape[:2]
        convolution.weight[n_out:].mul_(0.3)
        convolution.weight[:n_out] = 0
        convolution.bias.zero_()
        convolution.weight[:n_out, :n_in] = weight
        convolution.bias[:n_out] = bias
        latents = F.conv2d(enlarged, weight, bias, padding=1)

    shortcut = decoder.up_blocks[-1].resnets[0].conv_shortcut
    _clear(shortcut)
    groups = vae.config.norm_num_groups
    width = decoder.conv_norm_out.num_channels // groups
    _clear(decoder.conv_out)
    spread = float((CONSTANT**2 * (width - 2) + 2 * latents.square().mean()) / width) ** 0.5
    for group in range(groups):
        for channel, sign in ((group * width, 1), (group * width + 1, -1)):
            shortcut.weight[channel, 0, 0, 0] = sign
            decoder.conv_out.weight[0, channel, 1, 1] = sign * spread / groups
        _fill(shortcut, range(group * width + 2, (group + 1) * width))
    decoder.conv_out.bias[0] = TYPICAL_LOG_MEL


def _least_squares(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The 3 x 3 convolution that comes nearest to `targets` [N, D, T, M] from `inputs` [N, C, T, M]: weight [D, C, 3, 3], bias [D]."""
    size = inputs.shape[1] * 9 + 1
    gram = torch.zeros(size, size, dtype=torch.float64)
    moments = torch.zeros(size, targets.shape[1], dtype=torch.float64)
    for one, wanted in zip(inputs, targets, strict=True):
        columns = F.unfold(one[None], 3, padding=1)[0].T.double()
        columns = torch.cat([columns, torch.ones(len(columns), 1, dtype=torch.float64)], dim=1)
        gram += columns.T @ columns
        moments += columns.T @ wanted.flatten(1).T.double()
    # Enlarged pictures repeat themselves, so that the columns depend on each other.
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    solution = torch.linalg.solve(gram + ridge, moments).float()
    return solution[:-1].T.reshape(targets.shape[1], inputs.shape[1], 3, 3), solution[-1]


def _clear(layer: nn.Module) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _pass_on(convolution: nn.Conv2d) -> None:
    """Make a 1 x 1 convolution hand its channels on, as many as there is room for."""
    _clear(convolution)
    count = range(min(convolution.weight.shape[:2]))
    convolution.weight[count, count, 0, 0] = 1


def _fill(convolution: nn.Conv2d, channels: range) -> None:
    for number, channel in enumerate(channels):
        convolution.bias[channel] = CONSTANT if number % 2 else -CONSTANT
