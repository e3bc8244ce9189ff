"""The training equations, on numbers small enough to work out by hand."""

import pytest
import torch
from diffusers import DDIMScheduler

from gpu.diffusion import answered_channels, denoising_loss, keep_blind, snr, training_target


def scheduler(prediction_type: str) -> DDIMScheduler:
    """Two steps whose alphas_cumprod are 0.8 and 0.8 * 0.2 = 0.16."""
    return DDIMScheduler(num_train_timesteps=2, trained_betas=[0.2, 0.8], prediction_type=prediction_type)


LATENTS = torch.full((2, 1, 1, 1), 3.0)
NOISE = torch.full((2, 1, 1, 1), 2.0)
TIMESTEPS = torch.tensor([0, 1])


def test_targets():
    assert torch.equal(training_target(scheduler("epsilon"), LATENTS, NOISE, TIMESTEPS), NOISE)
    assert torch.equal(training_target(scheduler("sample"), LATENTS, NOISE, TIMESTEPS), LATENTS)
    velocity = training_target(scheduler("v_prediction"), LATENTS, NOISE, TIMESTEPS).flatten().tolist()
    # sqrt(.8) 2 - sqrt(.2) 3 and sqrt(.16) 2 - sqrt(.84) 3
    assert velocity == pytest.approx([1.78885 - 1.34164, 0.8 - 2.74955], abs=1e-4)


def test_velocity_equals_the_schedulers_own():
    latents, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    s = scheduler("v_prediction")

    torch.testing.assert_close(training_target(s, latents, noise, TIMESTEPS), s.get_velocity(latents, noise, TIMESTEPS))


def test_an_unknown_prediction_type_is_refused():
    s = scheduler("epsilon")
    s.register_to_config(prediction_type="flow")

    with pytest.raises(ValueError, match="flow"):
        training_target(s, LATENTS, NOISE, TIMESTEPS)


def test_snr():
    assert snr(scheduler("epsilon"), TIMESTEPS).tolist() == pytest.approx([0.8 / 0.2, 0.16 / 0.84])


def test_loss_without_weights_is_the_mean_square():
    pred = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    assert denoising_loss(pred, torch.zeros(2, 2), prediction_type="epsilon") == pytest.approx((1 + 4 + 9 + 16) / 4)


@pytest.mark.parametrize(
    ("prediction_type", "weights"),
    [("epsilon", (2 / 4, 1.0)), ("v_prediction", (2 / 5, 0.5 / 1.5)), ("sample", (2.0, 0.5))],
)
def test_min_snr_weights(prediction_type, weights):
    pred, target = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)

    loss = denoising_loss(pred, target, snr=torch.tensor([4.0, 0.5]), snr_gamma=2.0, prediction_type=prediction_type)

    assert loss == pytest.approx((weights[0] * 1 + weights[1] * 4) / 2)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        denoising_loss(torch.zeros(2, 1), torch.zeros(2, 3), prediction_type="epsilon")


def test_a_gamma_without_snr_is_refused():
    with pytest.raises(ValueError, match="snr_gamma"):
        denoising_loss(torch.zeros(2, 1), torch.zeros(2, 1), snr_gamma=5.0, prediction_type="epsilon")


def test_a_channel_that_the_unet_never_answers_does_not_count():
    unet = torch.nn.Module()
    unet.conv_out = torch.nn.Conv2d(3, 4, 3)
    assert answered_channels(unet) is None  # all of them

    with torch.no_grad():
        unet.conv_out.weight[[1, 3]] = 0
    channels = answered_channels(unet)
    pred, target = torch.zeros(2, 4, 5, 5), torch.tensor([1.0, 100.0, 2.0, 100.0])[None, :, None, None].expand(2, 4, 5, 5)

    assert channels.tolist() == [0, 2]
    assert denoising_loss(pred, target, channels=channels, prediction_type="epsilon") == pytest.approx((1 + 4) / 2)


def test_weights_that_see_nothing_but_chance_stay_blind():
    unet = torch.nn.Module()
    unet.conv_in, unet.conv_out = torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.Conv2d(2, 3, 3, padding=1)
    with torch.no_grad():
        unet.conv_in.weight[:, [0, 2]] = 0  # the first is answered, and may begin to be seen
        unet.conv_out.weight[2], unet.conv_out.bias[2] = 0, 0
    before = unet.conv_in.weight.detach().clone()
    keep_blind(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=0.1)

    for _ in range(3):
        pred = unet.conv_out(unet.conv_in(torch.randn(4, 3, 8, 8)))
        denoising_loss(pred, torch.randn_like(pred), channels=answered_channels(unet), prediction_type="v_prediction").backward()
        optimizer.step()

    assert not unet.conv_in.weight[:, 2].any()
    assert unet.conv_in.weight[:, 0].all() and (unet.conv_in.weight[:, 1] != before[:, 1]).all()

    keep_blind(unet.requires_grad_(False))  # LoRA leaves them alone anyway


def test_a_unet_that_has_not_learnt_anything_answers_all_channels():
    unet = torch.nn.Module()
    unet.conv_out = torch.nn.Conv2d(3, 4, 3)
    torch.nn.init.zeros_(unet.conv_out.weight)

    assert answered_channels(unet) is None
