"""The mel front end: the one way a waveform becomes the picture that the VAE sees.

Every AudioLDM checkpoint was trained behind one exact front end, and a fine-tune must sit behind the same one. It follows
`mel_spectrogram_train` of haoheliu/AudioLDM-training-finetuning, and its numbers follow from the checkpoint's vocoder,
which turns such a picture back into sound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

LOG_FLOOR = 1e-5
PEAK = 0.5
# Below this share of the loudest channel's power (-40 dB) a mean of the channels is what was left of them.
CANCELLED = 1e-4
EXTRA_KEYS = ("mel_n_fft", "mel_win_length", "mel_f_min_hz", "mel_f_max_hz")
# (sample rate, bins) -> (n_fft, f_min_hz, f_max_hz) of the published 16 kHz and 48 kHz checkpoints.
PUBLISHED = {(16_000, 64): (1024, 0.0, 8000.0), (48_000, 256): (2048, 20.0, 24_000.0)}


@dataclass(frozen=True)
class MelConfig:
    """The numbers of one front end; equal configs give equal pictures."""

    sample_rate_hz: int
    n_fft: int
    win_length: int
    hop_length: int
    n_mels: int
    f_min_hz: float
    f_max_hz: float

    @classmethod
    def for_vocoder(cls, config: Any) -> MelConfig:
        """The front end that a vocoder inverts.

        The rate, the bins and the hop are in the vocoder's own configuration. The transform's size and the band are not:
        checkpoints made here carry them as extra keys (`as_vocoder_keys`), the published ones are known by rate and bins.

        Args:
            config: a `SpeechT5HifiGanConfig`, a diffusers config, or the dict of either.
        Raises:
            ValueError: a key is missing, or nothing says which transform the rate and bins belong to.
        """
        values = dict(config) if isinstance(config, Mapping) else config.to_dict()
        missing = [key for key in ("sampling_rate", "model_in_dim", "upsample_rates") if values.get(key) is None]
        if missing:
            raise ValueError(f"the vocoder's configuration lacks {', '.join(missing)}")

        rate, n_mels = int(values["sampling_rate"]), int(values["model_in_dim"])
        given = [values[key] for key in EXTRA_KEYS if values.get(key) is not None]
        if len(given) == len(EXTRA_KEYS):
            n_fft, win_length, f_min_hz, f_max_hz = given
        elif given:
            absent = [key for key in EXTRA_KEYS if values.get(key) is None]
            raise ValueError(f"the vocoder's configuration names only part of its mel front end: {', '.join(absent)} missing")
        elif (rate, n_mels) in PUBLISHED:
            n_fft, f_min_hz, f_max_hz = PUBLISHED[rate, n_mels]
            win_length = n_fft
        else:
            known = " or ".join(f"{r} Hz with {bins} bins" for r, bins in PUBLISHED)
            raise ValueError(
                f"no mel front end is known for a vocoder of {rate} Hz with {n_mels} bins: known are {known}; "
                f"others must name {', '.join(EXTRA_KEYS)} in the vocoder's configuration"
            )
        return cls(
            sample_rate_hz=rate,
            n_fft=int(n_fft),
            win_length=int(win_length),
            hop_length=math.prod(values["upsample_rates"]),
            n_mels=n_mels,
            f_min_hz=float(f_min_hz),
            f_max_hz=float(f_max_hz),
        )

    def as_vocoder_keys(self) -> dict[str, float]:
        """The extra keys of a vocoder configuration from which `for_vocoder` reads this front end back."""
        return dict(zip(EXTRA_KEYS, (self.n_fft, self.win_length, self.f_min_hz, self.f_max_hz), strict=True))

    def num_frames(self, duration_s: float) -> int:
        """Mel frames in `duration_s` seconds, rounded down as the pipeline does."""
        return int(duration_s * self.sample_rate_hz / self.hop_length)


def log_mel(waveform: Tensor, config: MelConfig) -> Tensor:
    """Natural-log mel spectrogram, floor log(1e-5).

    Args:
        waveform: [B, S] at `config.sample_rate_hz`, |x| <= 1.
    Returns:
        [B, 1, T, M] with T = S // hop frames of M bins, in the dtype of `waveform`.
    """
    # In float64: near the floor the logarithm makes a rounding of float32 (1e-8 of a magnitude) an error of 2.5e-5 at 48 kHz.
    dtype, waveform = waveform.dtype, waveform.double()
    # Half a hop less on each side than a centred transform, so S samples give exactly S / hop frames.
    pad = (config.n_fft - config.hop_length) // 2
    padded = F.pad(waveform[:, None], (pad, pad), mode="reflect")[:, 0]
    window = torch.hann_window(config.win_length, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(
        padded, config.n_fft, config.hop_length, config.win_length, window, center=False, return_complex=True
    ).abs()  # [B, n_fft/2+1, T], magnitudes, not powers
    mel = _mel_bank(config).to(spectrum) @ spectrum  # [B, M, T]
    return torch.log(mel.clamp(min=LOG_FLOOR)).transpose(1, 2)[:, None].to(dtype)


def prepare_waveform(
    samples: np.ndarray, rate: int, config: MelConfig, num_samples: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """One training crop: resampled, mono, centred, peak at 0.5, exactly `num_samples` long.

    A longer sound is cut at a place drawn from `rng`, or at its start without one; a shorter one gets silence at its end.
    The crop is normalised before it is padded, as the original does, so the padding stays exact silence.

    Args:
        samples: [S] or [S, C], float.
    Returns:
        [num_samples], float32.
    """
    mono = _mono(np.asarray(samples, dtype=np.float32))
    if rate != config.sample_rate_hz:
        mono = soxr.resample(mono, rate, config.sample_rate_hz)

    spare = len(mono) - num_samples
    start = int(rng.integers(spare + 1)) if rng is not None and spare > 0 else 0
    crop = mono[start : start + num_samples]
    if crop.size:
        crop = crop - crop.mean()
        crop = crop / (np.abs(crop).max() + 1e-8) * PEAK
    return np.pad(crop, (0, num_samples - len(crop))).astype(np.float32)


def _mono(samples: np.ndarray) -> np.ndarray:
    """The channels' mean, [S]; of channels that cancel each other out (one is the other upside down), the loudest.

    The original takes the first channel, and what only the others hold is lost.
    """
    if samples.ndim == 1:
        return samples
    mono = samples.mean(axis=1)
    levels = np.square(samples).mean(axis=0) if len(samples) else np.zeros(samples.shape[1])  # [C]
    if len(samples) and np.square(mono).mean() < CANCELLED * levels.max():
        return samples[:, int(levels.argmax())]
    return mono


@lru_cache
def _mel_bank(config: MelConfig) -> Tensor:
    """Slaney filters, area-normalised: equal to librosa's within 1e-8.  [M, n_fft/2+1]"""
    bank = mel_filter_bank(
        num_frequency_bins=config.n_fft // 2 + 1,
        num_mel_filters=config.n_mels,
        min_frequency=config.f_min_hz,
        max_frequency=config.f_max_hz,
        sampling_rate=config.sample_rate_hz,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(bank.T)
