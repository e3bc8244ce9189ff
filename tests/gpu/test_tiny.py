"""The tiny model that the other tests stand on."""

import json
import time
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import AudioLDM2Pipeline
from transformers import GPT2LMHeadModel

from gpu.mel import MelConfig
from gpu.models import describe
from gpu.originals.cards import how_to_open
from gpu.tiny import write_tiny, write_tiny_audioldm2

UNUSUAL = {"sample_rate_hz": 22_050, "n_mels": 80, "hop_length": 256, "vae_levels": 4, "prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_audioldm2(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> AudioLDM2Pipeline:
    return opened(folder)


def opened(folder: Path) -> AudioLDM2Pipeline:
    pipeline = AudioLDM2Pipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sound(pipeline: AudioLDM2Pipeline, prompt: str = "A dog barking", **options) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    return pipeline(prompt, audio_length_in_s=1.0, num_inference_steps=3, generator=generator, **options).audios


def test_it_is_small_and_has_the_class_that_the_pipeline_needs(folder, pipeline):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 3_000_000
    assert isinstance(pipeline.language_model, GPT2LMHeadModel)


def test_it_makes_a_second_of_sound_at_once(pipeline):
    sound(pipeline)
    begun_at = time.process_time()
    audio = sound(pipeline)[0]

    assert audio.shape == (16_000,) and np.isfinite(audio).all() and audio.std() > 0.01
    assert time.process_time() - begun_at < 5  # far less on an idle machine


def test_the_same_seed_gives_the_same_model(folder, tmp_path):
    same = opened(write_tiny_audioldm2(tmp_path / "same"))
    other = opened(write_tiny_audioldm2(tmp_path / "other", seed=1))

    np.testing.assert_array_equal(sound(opened(folder)), sound(same))
    assert not np.allclose(sound(same), sound(other))


def test_saved_and_opened_again_it_sounds_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)

    np.testing.assert_array_equal(sound(opened(tmp_path)), sound(pipeline))


def test_three_candidates_for_one_prompt(pipeline):
    assert sound(pipeline, num_waveforms_per_prompt=3).shape == (3, 16_000)


def test_clap_scores_sounds_against_texts(pipeline):
    features = pipeline.feature_extractor([np.zeros(48_000, np.float32)] * 2, sampling_rate=48_000, return_tensors="pt")
    text = pipeline.tokenizer(["A dog", "rain", "wind"], padding=True, return_tensors="pt")

    with torch.no_grad():
        scores = pipeline.text_encoder(**text, input_features=features.input_features).logits_per_text

    assert scores.shape == (3, 2) and scores.isfinite().all()


def test_rate_bins_hop_factor_and_prediction_type_can_be_others(tmp_path):
    pipeline = opened(write_tiny_audioldm2(tmp_path, **UNUSUAL))

    assert MelConfig.for_vocoder(pipeline.vocoder.config) == MelConfig(22_050, 1024, 1024, 256, 80, 0.0, 8000.0)
    assert pipeline.vae_scale_factor == 8
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    audio = sound(pipeline)[0]
    assert audio.shape == (22_050,) and audio.std() > 0.01


@pytest.mark.parametrize("variant", ["audioldm2", "audioldm", "audioldm_t5"])
def test_what_a_model_card_says_about_diffusers_is_true(variant, tmp_path):
    folder = write_tiny(tmp_path / variant, variant)
    said = how_to_open(describe(folder).pipeline_class)
    if variant == "audioldm_t5":
        assert said.startswith("diffusers has no pipeline for this model, but each of its parts opens")
        with pytest.raises(AttributeError, match="has no attribute AudioLDMT5Pipeline"):
            diffusers.DiffusionPipeline.from_pretrained(folder)
        index = json.loads((folder / "model_index.json").read_text())
        libraries = {"diffusers": diffusers, "transformers": transformers}
        for part, (library, name) in ((part, value) for part, value in index.items() if isinstance(value, list)):
            assert getattr(libraries[library], name).from_pretrained(folder / part) is not None
    else:
        assert said.startswith(f"Open it with `{type(diffusers.DiffusionPipeline.from_pretrained(folder)).__name__}.from_pretrained(")
