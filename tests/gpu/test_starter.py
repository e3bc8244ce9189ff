"""The checkpoint that ships with the project: opened, heard and weighed as a user would."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AudioLDM2Pipeline, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from gpu.mel import MelConfig
from gpu.pretrain.recipe import Recipe

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "training_app/builtin/starter"
RECIPE = ROOT / "gpu/recipes/starter.json"
STUDIO = json.loads((STARTER / "studio.json").read_text())
CALL = {name: value for name, value in STUDIO["defaults"].items() if name != "sampler"}


@pytest.fixture(scope="module")
def pipeline() -> AudioLDM2Pipeline:
    pipeline = AudioLDM2Pipeline.from_pretrained(STARTER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sound(pipeline: AudioLDM2Pipeline, prompt: str, *, scheduler: type = DPMSolverMultistepScheduler, seed: int = 0) -> np.ndarray:
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    return pipeline(prompt, generator=torch.Generator().manual_seed(seed), **CALL).audios[0]


def test_it_is_small_enough_to_ship():
    files = [path for path in STARTER.rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) <= 60_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt")]


def test_it_makes_a_sound_of_the_length_asked_for(pipeline):
    audio = sound(pipeline, "heavy rain falling")

    assert audio.shape == (int(STUDIO["defaults"]["audio_length_in_s"] * 22_050),)
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() > 0.05 and audio.std() > 0.005


def test_prompts_give_clearly_different_sounds(pipeline):
    rain, bell = sound(pipeline, "heavy rain falling"), sound(pipeline, "a large church bell ringing")

    flatness = [spectral_flatness(audio) for audio in (rain, bell)]
    assert flatness[0] > 3 * flatness[1]  # noise against a tone, from the same starting noise


def test_another_sampler_works_too(pipeline):
    audio = sound(pipeline, "a police siren wailing", scheduler=UniPCMultistepScheduler)

    assert np.isfinite(audio).all() and audio.std() > 0.005


def test_without_a_length_it_makes_the_length_it_was_trained_on(pipeline):
    audio = pipeline("applause", num_inference_steps=2).audios[0]

    assert abs(len(audio) - 224 * 256) <= 1  # the pipeline computes in floating-point seconds


def test_it_is_the_model_that_the_recipe_describes(pipeline):
    recipe = Recipe.read(RECIPE)
    if recipe.studio["version"] != STUDIO["version"]:
        pytest.skip(f"the recipe is of version {recipe.studio['version']}, and version {STUDIO['version']} ships until that one is trained")

    assert MelConfig.for_vocoder(pipeline.vocoder.config) == recipe.architecture.mel
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert list(pipeline.unet.config.block_out_channels) == recipe.architecture.unet["block_out_channels"]
    assert pipeline.vae.config.latent_channels == recipe.architecture.vae["latent_channels"]
    assert not pipeline.unet.conv_in.weight[:, -recipe.vae.grain_channels :].any()
    assert recipe.studio == STUDIO


def spectral_flatness(audio: np.ndarray) -> float:
    """Geometric over arithmetic mean of the power spectrum below 8 kHz: near 1 for noise, near 0 for a tone."""
    power = np.abs(np.fft.rfft(audio))[: int(8000 / 22_050 * len(audio))] ** 2 + 1e-12
    return float(np.exp(np.log(power).mean()) / power.mean())
