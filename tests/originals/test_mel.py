"""The mel front end against the original training code's, written out again in NumPy from its description, in double precision.

Reflect-pad by (n_fft - hop) / 2 on both sides; magnitudes of the transform without centring, periodic Hann window; Slaney's mel bank;
natural logarithm with a floor of 1e-5. Before it: minus the mean, divided by the peak plus 1e-8, times a half, silence behind.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu.mel import PUBLISHED, MelConfig, log_mel, prepare_waveform
from tests.originals.standins import mel_bank

RATES = {16_000: (64, 160, 163_840), 48_000: (256, 480, 491_520)}  # bins, hop, samples of 10.24 s


def mel_config(rate: int) -> MelConfig:
    n_mels, hop, _ = RATES[rate]
    n_fft, f_min_hz, f_max_hz = PUBLISHED[rate, n_mels]
    return MelConfig(
        sample_rate_hz=rate, n_fft=n_fft, win_length=n_fft, hop_length=hop, n_mels=n_mels, f_min_hz=f_min_hz, f_max_hz=f_max_hz
    )


def original_mel(waveform: np.ndarray, rate: int) -> np.ndarray:
    """[S] → [T, M]"""
    n_fft, low, high = {16_000: (1024, 0.0, 8000.0), 48_000: (2048, 20.0, 24_000.0)}[rate]
    n_mels, hop, _ = RATES[rate]
    padded = np.pad(waveform.astype(np.float64), (n_fft - hop) // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    magnitudes = np.abs(np.fft.rfft(frames * window, axis=1))  # [T, n_fft/2+1]
    bank = mel_bank(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=low, fmax=high)
    return np.log(np.maximum(magnitudes @ bank.T.astype(np.float64), 1e-5))


def original_normalisation(segment: np.ndarray, num_samples: int) -> np.ndarray:
    centred = segment - segment.mean()
    return np.pad(centred / (np.abs(centred).max() + 1e-8) * 0.5, (0, num_samples - len(segment)))


@pytest.mark.parametrize("rate", RATES)
def test_the_picture_is_the_original_one(rate: int) -> None:
    n_mels, _, num_samples = RATES[rate]
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, num_samples).astype(np.float32)
    expected = original_mel(waveform, rate)

    found = log_mel(torch.from_numpy(waveform)[None], mel_config(rate))[0, 0].numpy()

    assert found.shape == expected.shape == (1024, n_mels)
    assert np.abs(np.exp(found) - np.exp(expected)).max() < 1e-5
    assert np.abs(found - expected).max() < 1e-4  # the logarithm magnifies single precision where a band is all but silent


@pytest.mark.parametrize("rate", RATES)
def test_silence_lies_at_the_floor(rate: int) -> None:
    picture = log_mel(torch.zeros(1, RATES[rate][2]), mel_config(rate))

    assert torch.all(picture == torch.log(torch.tensor(1e-5)))


@pytest.mark.parametrize("length", [101, 40_000, 163_840])
def test_a_segment_is_prepared_as_the_original_prepares_it(length: int) -> None:
    segment = (0.2 + 0.1 * np.random.default_rng(1).standard_normal(length)).astype(np.float32)

    found = prepare_waveform(segment, 16_000, mel_config(16_000), 163_840)

    assert np.abs(found - original_normalisation(segment, 163_840)).max() < 1e-6
    assert not found[length:].any()


def test_the_picture_of_a_prepared_segment_is_the_original_one() -> None:
    """Both steps, a sound of two seconds with silence behind it. Where it is silent both are at the floor."""
    seconds = np.arange(32_000) / 16_000
    segment = (np.sin(2 * np.pi * 440 * seconds) + 0.1 * np.random.default_rng(2).standard_normal(32_000)).astype(np.float32)
    expected = original_mel(original_normalisation(segment, 163_840), 16_000)

    prepared = prepare_waveform(segment, 16_000, mel_config(16_000), 163_840)
    found = log_mel(torch.from_numpy(prepared)[None], mel_config(16_000))[0, 0].numpy()

    assert np.abs(found[:203] - expected[:203]).max() < 1e-5 * 11.6
    assert np.abs(np.exp(found) - np.exp(expected)).max() < 1e-5 * np.exp(expected).max()
