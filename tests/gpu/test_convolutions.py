"""Faster convolutions are the same convolutions."""

import pytest
import torch
from torch import nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from gpu.convolutions import ChannelsLastConv1d, ChannelsLastConvTranspose1d, channels_last_1d


@pytest.mark.parametrize(
    ("layer", "length"),
    [
        (nn.Conv1d(6, 10, 7, padding=3), 33), (nn.Conv1d(6, 10, 3, padding=5, dilation=5), 20), (nn.Conv1d(6, 12, 4, stride=2, groups=3), 21),
        (nn.Conv1d(1, 4, 3), 9), (nn.Conv1d(4, 1, 3, bias=False), 9), (nn.ConvTranspose1d(6, 3, 16, stride=8, padding=4), 5),
        (nn.ConvTranspose1d(6, 4, 5, stride=3, padding=1, output_padding=2, groups=2), 7),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3])
def test_a_layer_computes_what_it_did(layer, length, batch):
    torch.manual_seed(0)
    holder = nn.Sequential(layer)
    sound = torch.randn(batch, layer.in_channels, length)
    before, weights = holder(sound), {name: value.clone() for name, value in holder.state_dict().items()}

    channels_last_1d(holder)

    assert isinstance(layer, (ChannelsLastConv1d, ChannelsLastConvTranspose1d))
    torch.testing.assert_close(holder(sound), before, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, weights[name]) for name, value in holder.state_dict().items())


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 4, 3, padding="same"), nn.Conv1d(4, 4, 3, padding=1, padding_mode="reflect")])
def test_what_it_does_not_know_stays_as_it_is(layer):
    kind = type(layer)
    channels_last_1d(layer)
    assert type(layer) is kind


def test_a_vocoder_sounds_the_same_and_takes_new_weights():
    torch.manual_seed(0)
    config = SpeechT5HifiGanConfig(model_in_dim=16, upsample_initial_channel=32, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4])
    plain, other = SpeechT5HifiGan(config).eval(), SpeechT5HifiGan(config).eval()
    mel = torch.randn(2, 20, 16)
    channels_last_1d(other)
    other.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(other(mel), plain(mel), rtol=0, atol=1e-6)
