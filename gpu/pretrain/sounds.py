"""Sounds on the way through the diffusion stage, from the averaged weights, so that one hears the model learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AudioLDM2Pipeline

from gpu.announcer import Announcer
from gpu.config import GenerateConfig
from gpu.events import SAMPLE
from gpu.finetune.checkpoints import checkpoint_name
from gpu.finetune.validation import SAMPLES
from gpu.generate import recipe_of, write_candidate
from gpu.models import ModelFacts
from gpu.pipelines import LoadedPipeline, Parts
from gpu.pretrain.recipe import Recipe
from gpu.sampling import Stopped, sample_sounds


class Sounds:
    """One sound for each prompt of the recipe, always with the same seeds.

    Raises:
        ConfigError: the studio part recommends what no sound can be made with.
    """

    def __init__(self, recipe: Recipe, folder: Path, announcer: Announcer, *, should_stop: Callable[[], bool]) -> None:
        self.recipe = recipe
        self.folder = folder
        self.announcer = announcer
        self.should_stop = should_stop
        advice = {"audio_length_in_s": recipe.clip_duration_s, **GenerateConfig.known(recipe.studio.get("defaults") or {})}
        prompts = recipe.samples.prompts if recipe.samples else []
        self.jobs = [
            GenerateConfig.parse({**advice, "prompt": prompt, "seed": recipe.seed, "num_waveforms_per_prompt": 1}) for prompt in prompts
        ]

    def are_due(self, stage_step: int) -> bool:
        """Every so many steps of the stage, and at its end."""
        samples = self.recipe.samples
        return samples is not None and (stage_step % samples.every_steps == 0 or stage_step == self.recipe.diffusion.max_train_steps)

    def make(self, pipeline: AudioLDM2Pipeline, parts: Mapping[str, Any], *, step: int) -> None:
        """Write and announce them; fewer when asked to stop. The weights and their mode are afterwards what they were.

        Args:
            parts: `trained` and `ema` of the diffusion stage.
            step: of the whole run.
        """
        loaded = _in_memory(pipeline, self.recipe)
        name = checkpoint_name(step)
        (self.folder / SAMPLES / name).mkdir(parents=True, exist_ok=True)
        with _averaged(parts):
            for index, job in enumerate(self.jobs):

                def on_step(done: int, total: int, index: int = index) -> None:
                    self.announcer.waiting("sampling", done=index * total + done, total=len(self.jobs) * total)

                try:
                    best = sample_sounds(loaded, job, on_step=on_step, should_stop=self.should_stop)[0]
                except Stopped:
                    return
                recipe = recipe_of(loaded, job, best, provenance={"checkpoint_step": step})
                said = write_candidate(self.folder / SAMPLES / name, f"prompt={index}.wav", best, loaded, recipe)
                audio = f"{SAMPLES}/{name}/prompt={index}.wav"
                self.announcer.say(SAMPLE, **{"step": step, "index": index, "prompt": job.prompt, **said, "audio": audio})


@contextmanager
def _averaged(parts: Mapping[str, Any]) -> Iterator[None]:
    """Within it the trained parts hold the averaged weights and are in eval mode."""
    trained = parts["trained"]
    own = {name: value.detach().clone() for name, value in trained.state_dict().items()}
    trained.load_state_dict(parts["ema"].weights)
    trained.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        trained.load_state_dict(own)
        trained.train()


def _in_memory(pipeline: AudioLDM2Pipeline, recipe: Recipe) -> LoadedPipeline:
    """The pipeline as generation knows it, without a folder: nothing of it has been written yet."""
    mel = recipe.architecture.mel
    facts = ModelFacts(
        name=str(recipe.studio.get("name") or "unfinished"),
        family="audioldm2",
        pipeline_class=type(pipeline).__name__,
        sample_rate_hz=mel.sample_rate_hz,
        n_mels=mel.n_mels,
        latent_scale=2 ** (len(pipeline.vae.config.block_out_channels) - 1),
        prediction_type=pipeline.scheduler.config.prediction_type,
        parameters={},
        size_bytes=0,
        ranks_by_clap=True,
        licence=str(recipe.studio.get("licence") or ""),
    )
    return LoadedPipeline(
        pipeline=Parts(pipeline.components, name_or_path=""), family=facts.family, mel=mel, facts=facts, checkpoint=None, base_sha256=""
    )
