"""The command line of pretraining: the stages in order, each going on from where it stood."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AudioLDM2Pipeline

from gpu.architectures import build_audioldm2
from gpu.errors import Fault
from gpu.events import CHECKPOINT, FAILED, FINISHED, PROGRESS, STARTED, EventWriter
from gpu.pretrain.clap import train_clap
from gpu.pretrain.corpus import Corpus
from gpu.pretrain.diffusion import train_diffusion
from gpu.pretrain.examples import prepare_examples
from gpu.pretrain.export import export
from gpu.pretrain.recipe import Recipe
from gpu.pretrain.training import Announce
from gpu.pretrain.vae import round_trip_error, train_vae
from gpu.pretrain.vocoder import convert_vocoder

STAGES = ("vae", "vocoder", "clap", "diffusion")


def run(argv: list[str]) -> int:
    """Exit code 0: finished; 1: failed, and the last event says why; 2: wrong arguments or recipe."""
    parser = argparse.ArgumentParser(prog="python -m gpu pretrain", description=__doc__)
    parser.add_argument("recipe", type=Path, help="JSON, as gpu/recipes/starter.json")
    parser.add_argument("run_dir", type=Path, help="where states, events and the finished model go; run again to go on")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="zips of recordings")
    parser.add_argument("--registry", type=Path, nargs="+", help="CSV of each zip's recordings; beside the zips when not given")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to run")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    arguments = parser.parse_args(argv)
    try:
        recipe = Recipe.read(arguments.recipe)
    except (OSError, TypeError, ValueError, KeyError) as error:
        parser.error(f"{arguments.recipe}: {error}")

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    arguments.run_dir.mkdir(parents=True, exist_ok=True)
    events = EventWriter(arguments.run_dir)

    def announce(**data: object) -> None:
        print(" ".join(f"{name}={value}" for name, value in data.items()), flush=True)
        events.write(PROGRESS, **data)

    events.write(STARTED, recipe=arguments.recipe.name)
    try:
        registries = arguments.registry or map(_beside, arguments.data)
        sources = list(zip(arguments.data, registries, strict=True))
        pipeline = pretrain(recipe, arguments.run_dir, sources=sources, until=arguments.until, announce=announce)
        if pipeline is not None:
            folder = export(pipeline, arguments.run_dir / "model", studio=recipe.studio)
            events.write(CHECKPOINT, path=str(folder))
    except Fault as fault:
        events.write(FAILED, **fault.as_data())
        print(fault.message)
        return 1
    events.write(FINISHED)
    return 0


def pretrain(
    recipe: Recipe, run_dir: Path, *, sources: Sequence[tuple[Path, Path]], until: str = STAGES[-1], announce: Announce
) -> AudioLDM2Pipeline | None:
    """All stages up to `until`; the finished pipeline, or None when `until` is not the last.

    Raises:
        Fault: the vocoder's package is missing.
    """
    corpus = Corpus(
        sources,
        mel=recipe.architecture.mel,
        duration_s=recipe.clip_duration_s,
        seed=recipe.seed,
        shares=recipe.corpus.shares,
        mixture_share=recipe.corpus.mixture_share,
        held_out_every=recipe.corpus.held_out_every,
    )
    examples = prepare_examples(run_dir / "examples", corpus, num_examples=recipe.corpus.num_examples, announce=announce)
    pipeline = build_audioldm2(recipe.architecture, captions=examples.captions, seed=recipe.seed)

    vae = train_vae(recipe.vae, recipe.architecture, examples, run_dir, seed=recipe.seed, announce=announce)
    announce(stage="vae", held_out_error=round(round_trip_error(vae, examples.held_out), 4), scaling_factor=vae.config.scaling_factor)
    if until == "vae":
        return None
    vocoder = convert_vocoder(recipe.vocoder, recipe.architecture)
    if until == "vocoder":
        return None
    clap = train_clap(
        recipe.clap, recipe.architecture, pipeline.tokenizer, corpus, examples.captions, run_dir, seed=recipe.seed, announce=announce
    )
    pipeline.register_modules(vae=vae, vocoder=vocoder, text_encoder=clap)
    if until == "clap":
        return None
    train_diffusion(recipe.diffusion, pipeline, examples, run_dir, seed=recipe.seed, announce=announce)
    return pipeline


def _beside(archive: Path) -> Path:
    """The registry that goes with an archive: NAME.csv for NAME.zip or NAME_ogg.zip."""
    return archive.with_name(archive.stem.removesuffix("_ogg") + ".csv")
