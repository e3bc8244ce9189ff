"""AudioLDM 1: a sound can stand in for its caption, since CLAP has one space for both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from transformers import ClapFeatureExtractor, ClapModel

from gpu.config import FinetuneConfig, ModelRef
from gpu.events import read_events
from gpu.finetune import main
from gpu.finetune.data import TrainingBatches, cache_clips, read_window
from gpu.pipelines import encode, encode_sound, load_pipeline
from tests.gpu.conftest import QUICK, events_of, tones


@pytest.fixture
def loaded(tiny_of):
    return load_pipeline(ModelRef(base=str(tiny_of("audioldm"))), device="cpu")


@pytest.fixture
def clips(loaded, tmp_path):
    return cache_clips(tones(tmp_path), loaded, tmp_path / "cache", duration_s=0.5, report=lambda *_: None, listen=True)


def batches(clips, **values) -> TrainingBatches:
    return TrainingBatches(clips, FinetuneConfig.parse({**QUICK, **values}), scaling_factor=0.9, num_train_timesteps=1000, stop=300)


def noise(seconds: float, rate: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)


@pytest.mark.parametrize("variant", ["audioldm", "audioldm_ranker", "audioldm_48k", "audioldm_t5", "audioldm2"])
def test_what_clap_hears_is_what_the_folders_extractor_makes_of_the_first_ten_seconds(tiny_of, variant):
    loaded = load_pipeline(ModelRef(base=str(tiny_of(variant))), device="cpu")
    extractor = ClapFeatureExtractor.from_pretrained(tiny_of(variant) / "feature_extractor")
    rate = loaded.mel.sample_rate_hz
    sound = noise(10.24, rate)

    heard = loaded.ranker.features(sound, sample_rate_hz=rate)

    expected = extractor(soxr.resample(sound, rate, 48_000)[:480_000], sampling_rate=48_000, return_tensors="pt").input_features
    assert heard.shape == (1, 1, 1001, 64)
    torch.testing.assert_close(heard, expected.reshape(heard.shape), atol=1e-6, rtol=0)


def test_a_short_sound_is_filled_up_as_the_folders_extractor_says(loaded, tiny_of):
    extractor = ClapFeatureExtractor.from_pretrained(tiny_of("audioldm") / "feature_extractor")
    sound = noise(3.0, 48_000)
    repeated = np.pad(np.tile(sound, 3), (0, 48_000))  # "repeatpad": whole repetitions, then silence
    expected = extractor(repeated, sampling_rate=48_000, return_tensors="pt").input_features
    torch.testing.assert_close(loaded.ranker.features(sound, sample_rate_hz=48_000), expected.reshape(1, 1, 1001, 64), atol=1e-6, rtol=0)


def test_the_two_halves_give_the_vectors_of_the_whole_clap(tiny_of):
    loaded = load_pipeline(ModelRef(base=str(tiny_of("audioldm_ranker"))), device="cpu")
    whole: ClapModel = loaded.pipeline.ranker
    for half, name in ((loaded.pipeline.text_encoder, "text"), (loaded.pipeline.audio_encoder, "audio")):
        state = {key: value for key, value in half.state_dict().items() if key.startswith(name)}
        whole.load_state_dict(state, strict=False)
    sound = noise(1.0, 16_000)
    torch.testing.assert_close(
        loaded.listener.audio_embeds(sound, sample_rate_hz=16_000), loaded.ranker.audio_embeds(sound, sample_rate_hz=16_000)
    )
    torch.testing.assert_close(loaded.listener.text_embeds(["Rain"]), loaded.ranker.text_embeds(["Rain"]))


def test_a_sound_as_condition_has_length_one_and_is_the_same_each_time(loaded):
    once, again = (encode_sound(loaded, noise(0.5, 16_000)).class_labels for _ in range(2))
    assert torch.equal(once, again)
    assert float(once.norm()) == pytest.approx(1.0, abs=1e-6)


def test_clap_stays_in_eval_mode_whatever_is_trained(make_run, tiny_of, monkeypatch):
    seen = []
    import gpu.finetune.data as data

    monkeypatch.setattr(data, "encode_sound", lambda loaded, samples: (seen.append(loaded), encode_sound(loaded, samples))[1])
    run = make_run(model=tiny_of("audioldm"), audio_conditioning=1.0, max_train_steps=1, audio_length_in_s=0.52)
    assert main([str(run)]) == 0
    assert seen
    assert not any(module.training for part in ("text_encoder", "audio_encoder") for module in getattr(seen[0].pipeline, part).modules())


def test_the_condition_is_the_normalised_window_that_the_latents_come_from(loaded, clips):
    batch = batches(clips, audio_conditioning=1.0, caption_dropout=0.0, train_batch_size=1).batch(0)
    assert batch.heard == (True,)
    clip = next(clip for clip in clips.train if clip.caption == batch.captions[0])
    if clips.num_windows(clip) == 1:
        waveform, _ = read_window(loaded, Path(clip.audio), start_s=0.0, num_samples=loaded.num_frames(0.5) * 160)
        assert torch.equal(batch.embeds.class_labels, encode_sound(loaded, waveform).class_labels)


def test_by_default_every_condition_is_text_and_every_draw_is_what_it_was(clips, loaded):
    plain, heard = batches(clips).batch(3), batches(clips, audio_conditioning=1.0).batch(3)
    assert not any(plain.heard)
    assert torch.equal(plain.noise, heard.noise) and torch.equal(plain.latents, heard.latents)
    assert plain.captions == heard.captions
    for place, caption in enumerate(plain.captions):
        assert torch.equal(plain.embeds.class_labels[place], encode(loaded, [caption]).class_labels[0])


def test_the_share_of_sounds_is_the_one_asked_for_and_a_dropped_caption_stays_dropped(clips):
    drawn = [batches(clips, audio_conditioning=0.3, caption_dropout=0.5).batch(step) for step in range(300)]
    pairs = [(caption == "", heard) for batch in drawn for caption, heard in zip(batch.captions, batch.heard, strict=True)]
    assert not any(dropped and heard for dropped, heard in pairs)
    kept = [heard for dropped, heard in pairs if not dropped]
    assert np.mean(kept) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_conditioned_on_sounds_ends_and_validates_on_text(make_run, tiny_of, method):
    run = make_run(model=tiny_of("audioldm"), method=method, audio_conditioning=0.5)
    assert main([str(run)]) == 0
    assert "caching sounds" in {event.data.get("stage") for event in events_of(run, "waiting")}
    assert events_of(run, "sample")[-1].data["clap_score"] is not None


def test_a_run_that_asks_a_deaf_model_to_listen_is_refused_before_anything_is_loaded(make_run, tiny_of):
    run = make_run(model=tiny_of("audioldm_deaf"), audio_conditioning=0.5)
    assert main([str(run)]) == 1
    events = list(read_events(run))
    assert events[-1].data["code"] == "config.audio_conditioning"
    assert [event.type for event in events] == ["failed"]
