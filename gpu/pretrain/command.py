"""The command line of pretraining: the stages in order, each going on from where it stood."""

from __future__ import annotations

import argparse
import csv
import logging
import os
import sys
import time
import traceback
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AudioLDM2Pipeline

from gpu.announcer import Announcer
from gpu.architectures import build_audioldm2
from gpu.device import choose_device, device_name, fault_of, precision_words, prepare_device, training_precision, usage, versions
from gpu.errors import Fault
from gpu.events import CHECKPOINT, FAILED, FINISHED, STARTED, STOPPED, VALIDATED, EventWriter
from gpu.finetune.control import NOW, Control
from gpu.finetune.run import FAILED_CODE, FINISHED_CODE, STOPPED_CODE, attempt_number
from gpu.originals.contents import digests
from gpu.pretrain.clap import train_clap
from gpu.pretrain.corpus import Corpus
from gpu.pretrain.diffusion import train_diffusion
from gpu.pretrain.examples import prepare_examples
from gpu.pretrain.export import export
from gpu.pretrain.recipe import Recipe
from gpu.pretrain.sounds import Sounds
from gpu.pretrain.training import Training, saved_step
from gpu.pretrain.vae import round_trip_error, train_vae
from gpu.pretrain.vocoder import convert_vocoder, weights_file

STAGES = ("vae", "vocoder", "clap", "diffusion")
PRINT_EVERY_S = 10.0


class StopRequested(Exception):
    """Asked to stop. `saved`: whether every step that was done is kept."""

    def __init__(self, *, step: int, saved: bool) -> None:
        super().__init__(f"stopped at step {step}")
        self.step, self.saved = step, saved


def run(argv: list[str]) -> int:
    """Exit code 0: finished; 1: failed, and the last event says why; 2: wrong arguments or recipe; 3: stopped on request."""
    parser = argparse.ArgumentParser(prog="python -m gpu pretrain", description=__doc__)
    parser.add_argument("recipe", type=Path, help="JSON, as gpu/recipes/starter.json")
    parser.add_argument("run_dir", type=Path, help="where states, events and the finished model go; run again to go on")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="zips of recordings")
    parser.add_argument("--registry", type=Path, nargs="+", help="CSV of each zip's recordings; beside the zips when not given")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to run")
    parser.add_argument("--model", type=Path, help="folder of the finished model; RUN_DIR/model when not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the GPU where there is one, when not given")
    parser.add_argument("--processes", type=int, help="of the diffusion stage on a processor; two where there are two threads and an even batch, when not given")
    parser.add_argument("--threads", type=int, help="processor threads; as many as there are cores when not given")
    arguments = parser.parse_args(argv)

    if arguments.processes is not None and arguments.processes < 1:
        parser.error(f"--processes ({arguments.processes}) must be 1 or more")
    device = torch.device(arguments.device) if arguments.device else choose_device()
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no GPU on this machine")
        if arguments.processes not in (None, 1):
            parser.error(f"--processes ({arguments.processes}) must be 1 on a GPU")
        prepare_device(device)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder: Path = arguments.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    control = Control(folder)
    with control.listening(), EventWriter(folder, attempt=attempt_number(folder)) as events:
        announcer = Announcer(events)
        try:
            recipe = Recipe.read(arguments.recipe)
            batch_size = recipe.diffusion.train_batch_size
            several = device.type == "cpu" and torch.get_num_threads() > 1 and batch_size % 2 == 0
            processes = arguments.processes or (2 if several else 1)
            if batch_size % processes:
                raise ValueError(f"diffusion.train_batch_size ({batch_size}) must be a multiple of --processes")
            sounds = Sounds(recipe, folder, announcer, should_stop=lambda: bool(control.stop()))
        except (OSError, TypeError, ValueError, KeyError, AttributeError, Fault) as error:
            announcer.say(FAILED, code="pretrain.recipe_invalid", detail=f"{arguments.recipe.name}: {error}")
            parser.error(f"{arguments.recipe}: {error}")
        course = Course(recipe, folder, announcer, control, sounds, processes=processes, device=device)
        try:
            registries = arguments.registry or map(beside, arguments.data)
            course.follow(list(zip(arguments.data, registries, strict=True)), until=arguments.until, model=arguments.model)
        except StopRequested as stop:
            if control.orphaned:
                # No ending: whoever finds the run goes on from its last state.
                announcer.waiting("stopping", message="the worker that started this run is gone")
            else:
                announcer.say(STOPPED, step=stop.step, saved=stop.saved)
            return STOPPED_CODE
        except Exception as error:  # the process's boundary: whatever went wrong becomes the run's last event
            fault = Fault("training.diverged", str(error)) if isinstance(error, FloatingPointError) else fault_of(error)
            if fault.code == "internal":
                traceback.print_exc()
            print(f"{fault.code}: {fault.message}", file=sys.stderr)
            announcer.say(FAILED, **fault.as_data())
            return FAILED_CODE
    return FINISHED_CODE


class Course:
    """A pretraining from its first event to its last.

    A step of the run is a step of a stage, counted on through the stages: events, curves and sounds have one number line.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, announcer: Announcer, control: Control, sounds: Sounds, *, device: torch.device, processes: int = 1
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.announcer = announcer
        self.control = control
        self.sounds = sounds
        self.processes = processes
        self.device = device
        self.precision = training_precision("auto", device)
        self.max_steps = sum(recipe.steps.values())
        self.pipeline: AudioLDM2Pipeline | None = None
        self._printed: tuple[str, float] = ("", 0.0)
        self._reached = 0

    def follow(self, sources: Sequence[tuple[Path, Path]], *, until: str = STAGES[-1], model: Path | None = None) -> None:
        """All stages up to `until`, and after the last one the model.

        Raises:
            Fault: the vocoder's package is missing, or the recordings cannot be used.
            StopRequested: between two steps, or two examples of what is prepared.
        """
        began = time.monotonic()
        self._reached = sum(saved_step(self.folder / f"{name}.pt") for name in self.recipe.steps)
        weights_file(self.recipe.vocoder)  # now, not after hours of the stage before
        corpus = open_corpus(self.recipe, sources)
        self.announcer.say(
            STARTED, step=self._reached, max_steps=self.max_steps, stages=self.recipe.steps, recipe=self.recipe.studio.get("name"),
            device=device_name(self.device), precision=precision_words(self.precision), clips=self.recipe.corpus.num_examples, validation_clips=len(corpus.held_out),
            prompts=[job.prompt for job in self.sounds.jobs], versions=versions(), pid=os.getpid(),
        )  # fmt: skip
        pipeline = self._train(corpus, until=until)
        if pipeline is not None:
            self.announcer.waiting("saving")
            self._hand_over(export(pipeline, model or self.folder / "model", studio=self.recipe.studio))
        self.announcer.say(FINISHED, step=self._reached, elapsed_s=round(time.monotonic() - began, 3))

    def _train(self, corpus: Corpus, *, until: str) -> AudioLDM2Pipeline | None:
        """The finished pipeline, or None when `until` is not the last stage."""
        recipe, folder, seed = self.recipe, self.folder, self.recipe.seed
        examples = prepare_examples(folder / "examples", corpus, num_examples=recipe.corpus.num_examples, announce=self.announce)
        self.pipeline = pipeline = build_audioldm2(recipe.architecture, captions=examples.captions, seed=seed)

        vae = train_vae(recipe.vae, recipe.architecture, examples, folder, seed=seed, announce=self.announce, obey=self.obey, device=self.device)
        error = round(round_trip_error(vae, examples.held_out), 4)
        self.announcer.say(VALIDATED, step=self._overall("vae", recipe.vae.max_train_steps), stage="vae", held_out_error=error)
        if until == "vae":
            return None
        vocoder = convert_vocoder(recipe.vocoder, recipe.architecture)
        if until == "vocoder":
            return None
        clap = train_clap(
            recipe.clap, recipe.architecture, pipeline.tokenizer, corpus, examples.captions, folder,
            seed=seed, announce=self.announce, obey=self.obey, device=self.device,
        )  # fmt: skip
        pipeline.register_modules(vae=vae, vocoder=vocoder, text_encoder=clap)
        if until == "clap":
            return None
        train_diffusion(
            recipe.diffusion, pipeline, examples, folder, seed=seed, announce=self.announce, obey=self.obey, processes=self.processes,
            grain_channels=recipe.vae.grain_channels, device=self.device, precision=self.precision,
        )  # fmt: skip
        return pipeline

    def announce(self, *, stage: str, step: int, max_steps: int, **more: float) -> None:
        """Progress of a stage that trains (it has a loss), or how far one is that prepares: that may be stopped here.

        Raises:
            StopRequested: while something is prepared; what was prepared by halves is begun anew.
        """
        if "loss" not in more:
            if self.control.stop():
                raise StopRequested(step=self._reached, saved=True)
            self.announcer.waiting(stage, done=step, total=max_steps)
        else:
            self._reached = self._overall(stage, step)
            self.announcer.progress(
                step=self._reached, max_steps=self.max_steps, stage=stage, stage_step=step, stage_max_steps=max_steps, **more, **usage(self.device)
            )
        name, at = self._printed
        if stage != name or step == max_steps or time.monotonic() - at > PRINT_EVERY_S:
            self._printed = (stage, time.monotonic())
            print(" ".join(f"{key}={value}" for key, value in {"stage": stage, "step": step, "max_steps": max_steps, **more}.items()), flush=True)

    def obey(self, training: Training) -> None:
        """Between two steps: what is asked for from outside, and the sounds that are due.

        Raises:
            StopRequested: the state is saved, unless it was to be at once.
        """
        stage = training.path.stem
        self._reached = self._overall(stage, training.step)
        self._stop_here(training)
        if self.control.wants("save"):
            training.save()
            self.control.obeyed("save")
        asked = stage == "diffusion" and self.control.wants("sample")
        if self.sounds.jobs and (asked or (stage == "diffusion" and self.sounds.are_due(training.step))):
            if training.saved_step != training.step:
                training.save()  # making them takes a while
            self.sounds.make(self.pipeline, training.parts, step=self._reached)
            self._stop_here(training)
        if asked:
            self.control.obeyed("sample")

    def _stop_here(self, training: Training) -> None:
        wish = self.control.stop()
        if wish is None:
            return
        if wish != NOW and training.saved_step != training.step:
            self.announcer.waiting("saving")
            training.save()
        raise StopRequested(step=self._reached, saved=training.saved_step == training.step)

    def _overall(self, stage: str, step: int) -> int:
        """The run's number of a stage's step."""
        names = list(self.recipe.steps)
        return sum(self.recipe.steps[name] for name in names[: names.index(stage)]) + step

    def _hand_over(self, folder: Path) -> None:
        found = digests(folder)
        is_inside = folder.resolve().is_relative_to(self.folder.resolve())
        self.announcer.say(
            CHECKPOINT, step=self.max_steps, path=folder.relative_to(self.folder).as_posix() if is_inside else str(folder.resolve()),
            size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), sha256=found.whole,
            content_sha256=found.content, weights_sha256=found.weights, method="pretrain", metrics={}, best=False, has_resume_state=False,
            reason="final", removed=[],
        )  # fmt: skip


def open_corpus(recipe: Recipe, sources: Sequence[tuple[Path, Path]]) -> Corpus:
    """The recordings, as far as their registries tell; none is decoded yet.

    Raises:
        Fault: `pretrain.data_unusable`.
    """
    try:
        corpus = Corpus(
            sources,
            mel=recipe.architecture.mel,
            duration_s=recipe.clip_duration_s,
            seed=recipe.seed,
            shares=recipe.corpus.shares,
            mixture_share=recipe.corpus.mixture_share,
            held_out_every=recipe.corpus.held_out_every,
        )
    except KeyError as error:
        raise Fault("pretrain.data_unusable", f"a registry has no column {error}") from error
    except (OSError, ValueError, csv.Error, zipfile.BadZipFile) as error:
        raise Fault("pretrain.data_unusable", f"the recordings cannot be opened: {error}") from error
    if lacking := corpus.empty_categories():
        raise Fault("pretrain.data_unusable", f"the recipe wants recordings of {', '.join(lacking)}, and no registry has any to train on")
    if not corpus.held_out:
        raise Fault("pretrain.data_unusable", "the registries name no recording that may be trained on")
    return corpus


def beside(archive: Path) -> Path:
    """The registry that goes with an archive: NAME.csv for NAME.zip or NAME_ogg.zip."""
    return archive.with_name(archive.stem.removesuffix("_ogg") + ".csv")
