"""One step of a fine-tune from inside: what it sees, what it changes, and that all of it follows from the seed."""

from __future__ import annotations

import copy
import math
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from gpu.announcer import Announcer
from gpu.config import FinetuneConfig, ModelRef
from gpu.events import EventWriter, read_events
from gpu.finetune.data import Batch, Clips, TrainingBatches, cache_clips, encode_window, window_starts_s
from gpu.finetune.module import Denoiser, update_ema
from gpu.finetune.run import quiet_trainer
from gpu.finetune.schedule import Plateau, learning_rate
from gpu.finetune.validation import ValidationLoss
from gpu.lora import inject_lora
from gpu.manifest import ManifestClip, sha256_of
from gpu.pipelines import LoadedPipeline, encode, load_pipeline, unet_inputs
from tests.gpu.conftest import QUICK, tones


def config(**values) -> FinetuneConfig:
    return FinetuneConfig.parse({**QUICK, **values})


@pytest.fixture
def loaded(tiny) -> LoadedPipeline:
    return load_pipeline(ModelRef(base=str(tiny)), device="cpu")


@pytest.fixture
def clips(loaded, tmp_path, cache_dir) -> Clips:
    return cache_clips(tones(tmp_path), loaded, cache_dir, duration_s=0.5, report=lambda *_: None)


def batches_of(clips: Clips, loaded: LoadedPipeline, **values) -> TrainingBatches:
    return TrainingBatches(
        clips, config(**values), scaling_factor=loaded.pipeline.vae.config.scaling_factor, num_train_timesteps=1000, stop=10
    )


def train(module: Denoiser, batches: TrainingBatches, folder, *, steps: int) -> None:
    quiet_trainer(folder, accelerator="cpu", max_steps=steps).fit(module, DataLoader(batches, batch_size=None))


def copies(loaded: LoadedPipeline) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {key: value.clone() for key, value in part.state_dict().items()}
        for name, part in loaded.pipeline.components.items()
        if isinstance(part, nn.Module)
    }


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_changes_what_it_should_and_nothing_else(loaded, clips, tmp_path, method):
    if method == "lora":
        inject_lora(loaded.unet, rank=2)
    else:
        loaded.unet.requires_grad_(True)
    before = copies(loaded)
    module = Denoiser(loaded.unet, loaded.pipeline.scheduler, config(method=method))
    train(module, batches_of(clips, loaded, method=method), tmp_path, steps=3)
    changed = {
        (part, name)
        for part, state in copies(loaded).items()
        for name, value in state.items()
        if not torch.equal(value, before[part][name])
    }
    assert {part for part, _ in changed} == {"unet"}
    assert {name for _, name in changed} <= module.trained().keys()
    if method == "lora":
        # B starts at zero, so nothing reaches A in the first step; after three both have moved.
        assert {name.split(".")[-3] for _, name in changed} == {"lora_A", "lora_B"}
    else:
        assert len(changed) > 0.95 * len(module.trained())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_the_error_of_what_the_model_predicts(loaded, clips, prediction_type):
    scheduler = loaded.pipeline.scheduler
    scheduler.register_to_config(prediction_type=prediction_type)
    module = Denoiser(loaded.unet, scheduler, config())
    batch = batches_of(clips, loaded).batch(0)
    with torch.no_grad():
        loss = module.training_step(batch, 0)
        a = scheduler.alphas_cumprod[batch.timesteps][:, None, None, None]
        noisy = a.sqrt() * batch.latents + (1 - a).sqrt() * batch.noise
        target = batch.noise if prediction_type == "epsilon" else a.sqrt() * batch.noise - (1 - a).sqrt() * batch.latents
        expected = F.mse_loss(loaded.unet(noisy, batch.timesteps, **unet_inputs(batch.embeds, loaded.unet)).sample, target)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_min_snr_holds_easy_timesteps_back(loaded, clips):
    batch = batches_of(clips, loaded).batch(0)
    easy = Batch(latents=batch.latents, noise=batch.noise, timesteps=torch.tensor([1, 2]), embeds=batch.embeds, captions=batch.captions)
    with torch.no_grad():
        plain = Denoiser(loaded.unet, loaded.pipeline.scheduler, config()).training_step(easy, 0)
        weighted = Denoiser(loaded.unet, loaded.pipeline.scheduler, config(snr_gamma=5.0)).training_step(easy, 0)
    assert weighted < 0.1 * plain


def test_cached_and_computed_data_give_the_same_loss(loaded, clips, tmp_path):
    module = Denoiser(loaded.unet, loaded.pipeline.scheduler, config())
    clip = next(clip for clip in clips.train if clips.num_windows(clip) == 1)
    computed = encode_window(loaded, clip.audio, start_s=0.0, num_samples=loaded.num_frames(0.5) * 160)
    cached = clips.latents(clip)
    assert torch.equal(cached.mean, computed["mean"])
    assert torch.equal(cached.std, computed["std"])
    noise, timesteps = torch.ones(1, *cached.mean.shape), torch.tensor([500])
    with torch.no_grad():
        losses = [
            module.training_step(Batch(latents=mean[None], noise=noise, timesteps=timesteps, embeds=embeds, captions=("",)), 0)
            for mean, embeds in ((cached.mean, clips.embeds(clip.caption)), (computed["mean"], encode(loaded, [clip.caption])))
        ]
    assert losses[0] == losses[1]


def test_a_cache_that_is_there_is_not_computed_again(loaded, tmp_path, monkeypatch):
    sounds = tones(tmp_path)
    first = cache_clips(sounds, loaded, tmp_path / "cache", duration_s=0.5, report=lambda *_: None)
    monkeypatch.setattr(loaded.pipeline.vae, "encode", lambda *_: pytest.fail("encoded again"))
    monkeypatch.setattr(loaded.pipeline.text_encoder_2, "forward", lambda *_, **__: pytest.fail("encoded again"))
    second = cache_clips(sounds, loaded, tmp_path / "cache", duration_s=0.5, report=lambda *_: None)
    assert torch.equal(first.latents(sounds[0]).mean, second.latents(sounds[0]).mean)


def test_another_model_or_duration_does_not_share_latents(loaded, tiny_v, tmp_path):
    sounds = tones(tmp_path, train=1, validation=0)
    other = load_pipeline(ModelRef(base=str(tiny_v)), device="cpu")
    shapes = {
        tuple(cache_clips(sounds, model, tmp_path / "cache", duration_s=seconds, report=lambda *_: None).latents(sounds[0]).mean.shape)
        for model in (loaded, other)
        for seconds in (0.5, 0.8)
    }
    assert len(shapes) == 4


@pytest.mark.parametrize("share, dropped", [(0.0, 0), (1.0, 20)])
def test_all_or_no_captions_are_dropped(loaded, clips, share, dropped):
    batches = batches_of(clips, loaded, caption_dropout=share)
    assert sum(caption == "" for batch in batches for caption in batch.captions) == dropped


def test_the_share_of_dropped_captions_is_the_one_asked_for_and_each_sound_has_its_own_draw(loaded, clips):
    batches = batches_of(clips, loaded, caption_dropout=0.3)
    drawn = [[caption == "" for caption in batches.batch(step).captions] for step in range(300)]
    assert sum(map(sum, drawn)) / 600 == pytest.approx(0.3, abs=0.06)
    assert any(a != b for a, b in drawn)


def test_a_dropped_caption_is_what_the_empty_prompt_is(loaded, clips):
    batch = batches_of(clips, loaded, caption_dropout=1.0, train_batch_size=1).batch(0)
    assert torch.equal(batch.embeds.generated_prompt_embeds, encode(loaded, [""]).generated_prompt_embeds)


def test_every_clip_is_seen_once_an_epoch_and_each_epoch_has_its_own_order(loaded, clips):
    batches = batches_of(clips, loaded, caption_dropout=0.0)
    stream = [caption for step in range(50) for caption in batches.batch(step).captions]
    epochs = [tuple(stream[start : start + 5]) for start in range(0, 100, 5)]
    assert all(sorted(epoch) == sorted(clip.caption for clip in clips.train) for epoch in epochs)
    assert len(set(epochs)) > 10


def test_a_batch_depends_on_seed_and_place_alone(loaded, clips):
    batches = batches_of(clips, loaded)
    third = batches.batch(3)
    list(batches)
    again = batches_of(clips, loaded).batch(3)
    other = batches_of(clips, loaded, seed=1).batch(3)
    assert torch.equal(third.noise, again.noise)
    assert torch.equal(third.latents, again.latents)
    assert torch.equal(third.timesteps, again.timesteps)
    assert not torch.equal(third.noise, other.noise)


def test_the_posterior_is_drawn_anew_at_each_visit(loaded, clips):
    batches = batches_of(clips, loaded, caption_dropout=0.0)
    visits = {}
    for step in range(6):
        batch = batches.batch(step)
        for caption, latents in zip(batch.captions, batch.latents, strict=True):
            visits.setdefault(caption, []).append(latents)
    first, second = next(seen for seen in visits.values() if len(seen) > 1)[:2]
    assert not torch.equal(first, second)


def test_windows_reach_from_the_start_to_the_end_of_a_long_clip():
    assert window_starts_s(0.4, 1.0) == [0.0]
    assert window_starts_s(1.0, 1.0) == [0.0]
    assert window_starts_s(1.2, 1.0) == pytest.approx([0.0, 0.2])
    assert window_starts_s(3.0, 1.0) == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    hour = window_starts_s(3600, 1.0)
    assert (len(hour), hour[0], hour[-1]) == (32, 0.0, 3599.0)


def test_silent_stretches_of_a_clip_are_not_trained_on(loaded, tmp_path):
    path = tmp_path / "half.wav"
    sound = np.concatenate([np.sin(np.arange(16_000)), np.zeros(32_000)]) * 0.5
    soundfile.write(path, sound, 16_000)
    clip = ManifestClip(audio=str(path), caption="", sha256=sha256_of(path), duration_s=3.0, split="train")
    clips = cache_clips([clip], loaded, tmp_path / "cache", duration_s=0.5, report=lambda *_: None)
    # Windows of 0.52 s (whole latent frames) start every 0.248 s; the sound ends after 1 s.
    assert clips.num_windows(clip) == 5


def test_a_clip_of_nothing_but_silence_is_still_a_clip(loaded, tmp_path):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(8_000), 16_000)
    clip = ManifestClip(audio=str(path), caption="Silence", sha256=sha256_of(path), duration_s=0.5, split="train")
    clips = cache_clips([clip], loaded, tmp_path / "cache", duration_s=0.5, report=lambda *_: None)
    assert torch.isfinite(clips.latents(clip).mean).all()


def test_a_gradient_that_is_no_number_is_not_applied(loaded, clips, tmp_path):
    loaded.unet.requires_grad_(True)
    module = Denoiser(loaded.unet, loaded.pipeline.scheduler, config(method="full", use_ema=True))
    good = batches_of(clips, loaded).batch(0)
    bad = Batch(latents=good.latents * math.inf, noise=good.noise, timesteps=good.timesteps, embeds=good.embeds, captions=good.captions)
    trainer = quiet_trainer(tmp_path, accelerator="cpu", max_steps=2)
    trainer.fit(module, DataLoader([good, bad], batch_size=None))
    after_bad = {name: weight.detach().clone() for name, weight in module.trained().items()}

    alone = Denoiser(
        load_pipeline(ModelRef(base=loaded.pipeline.name_or_path), device="cpu").unet, loaded.pipeline.scheduler, config(method="full")
    )
    alone.unet.requires_grad_(True)
    quiet_trainer(tmp_path, accelerator="cpu", max_steps=1).fit(alone, DataLoader([good], batch_size=None))
    assert all(torch.equal(weight, after_bad[name]) for name, weight in alone.trained().items())
    assert module.step == 2
    assert math.isfinite(module.loss_smooth)


def test_gradient_checkpointing_changes_no_gradient(loaded, clips):
    batch = batches_of(clips, loaded).batch(0)
    gradients = []
    for checkpointing in (False, True):
        unet = copy.deepcopy(loaded.unet).requires_grad_(True).train()
        module = Denoiser(unet, loaded.pipeline.scheduler, config(method="full", gradient_checkpointing=checkpointing))
        module.training_step(batch, 0).backward()
        gradients.append([weight.grad for weight in unet.parameters() if weight.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 100
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_clipping_shortens_a_long_gradient(loaded, clips, tmp_path):
    loaded.unet.requires_grad_(True)
    module = Denoiser(loaded.unet, loaded.pipeline.scheduler, config(method="full", max_grad_norm=1e-3))
    train(module, batches_of(clips, loaded), tmp_path, steps=1)
    length = math.sqrt(sum(float(weight.grad.square().sum()) for weight in module.trained().values() if weight.grad is not None))
    assert length == pytest.approx(1e-3, rel=1e-3)
    assert module.grad_norm > 1e-3


def test_the_moving_average_follows_slowly_and_faster_at_first():
    ema, weights = {"w": torch.zeros(1)}, {"w": nn.Parameter(torch.ones(1))}
    update_ema(ema, weights, decay=0.9, step=1)  # min(0.9, 2/11)
    assert float(ema["w"]) == pytest.approx(9 / 11)
    ema = {"w": torch.zeros(1)}
    update_ema(ema, weights, decay=0.9, step=1000)
    assert float(ema["w"]) == pytest.approx(0.1)


def test_the_moving_average_is_lent_to_the_unet_and_taken_back(loaded):
    inject_lora(loaded.unet, rank=2)
    module = Denoiser(loaded.unet, loaded.pipeline.scheduler, config(use_ema=True))
    before = {name: weight.detach().clone() for name, weight in module.trained().items()}
    module.ema = {name: weight + 1 for name, weight in before.items()}
    module.unet.train()
    with module.as_result():
        assert all(torch.equal(weight, before[name] + 1) for name, weight in module.trained().items())
        assert not module.unet.training
    assert all(torch.equal(weight, before[name]) for name, weight in module.trained().items())
    assert module.unet.training


@pytest.mark.parametrize("schedule, expected", [
    ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
    ("cosine", [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]),
    ("plateau", [0.5, 1.0, 0.1, 0.1, 0.1, 0.1]),
])  # fmt: skip
def test_the_learning_rate_warms_up_and_then_takes_its_shape(schedule, expected):
    values = config(max_train_steps=6, lr_warmup_steps=2, learning_rate=1.0, lr_scheduler=schedule)
    assert [learning_rate(step, values, plateau_scale=0.1) for step in range(1, 7)] == pytest.approx(expected)


def test_the_plateau_agrees_with_torch():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2, factor=0.5, threshold=1e-4)
    ours = Plateau(patience=2, factor=0.5)
    for loss in [1.0, 0.9, 0.9, 0.95, 0.9, 0.89999, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.7]:
        theirs.step(loss)
        ours.update(loss)
        assert ours.scale == optimizer.param_groups[0]["lr"]


def test_the_validation_loss_depends_on_nothing_but_the_weights(loaded, clips):
    measures = {"scaling_factor": 0.9, "num_train_timesteps": 1000}
    module = Denoiser(loaded.unet, loaded.pipeline.scheduler, config())
    first = ValidationLoss(clips, config(), **measures).measure(module)
    torch.rand(7)
    assert ValidationLoss(clips, config(seed=5), **measures).measure(module) == first
    # The same pairs in other groups: only rounding differs.
    assert ValidationLoss(clips, config(train_batch_size=5), **measures).measure(module)["loss"] == pytest.approx(first["loss"], rel=1e-5)
    with torch.no_grad():
        loaded.unet.conv_out.bias += 1
    assert ValidationLoss(clips, config(), **measures).measure(module)["loss"] > first["loss"]


def test_the_timesteps_of_the_validation_are_spread_evenly(loaded, clips):
    loss = ValidationLoss(clips, config(), scaling_factor=0.9, num_train_timesteps=1000)
    timesteps = sorted(int(t) for batch in loss.batches for t in batch.timesteps)
    assert timesteps == [int(1000 * (number + 0.5) / 16) for number in range(16)]
    assert set(Counter(caption for batch in loss.batches for caption in batch.captions).values()) == {8}


def test_progress_is_said_at_most_twice_a_second_and_its_last_before_anything_else(tmp_path):
    with EventWriter(tmp_path) as events:
        announcer = Announcer(events, interval_s=1000)
        for step in range(1, 100):
            announcer.progress(step=step)
        announcer.waiting("sampling", done=1, total=3)
        announcer.waiting("sampling", done=2, total=3)
        announcer.say("sample", step=99)
    said = [(event.type, event.data.get("step", event.data.get("done"))) for event in read_events(tmp_path)]
    assert said == [("progress", 1), ("progress", 99), ("waiting", 1), ("sample", 99)]
