"""`python -m gpu generate GENERATION_DIR`: the sounds that a `config.json` asks for, each with its recipe inside."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu.announcer import Announcer
from gpu.config import GenerateConfig, GenerateJob, ModelRef
from gpu.device import choose_device, device_name, fault_of, prepare_device, versions
from gpu.errors import Fault
from gpu.events import FAILED, FINISHED, STARTED, STOPPED, WAVEFORM, EventWriter, read_events
from gpu.pipelines import Embeds, LoadedPipeline, encode_guided, load_pipeline
from gpu.sampling import Candidate, Stopped, sample_sounds
from gpu.sound import peaks, sound_flags, write_wav

EMBEDS_KEPT = 64


class Generator:
    """Makes sounds and keeps the last model and the last prompts' embeddings in memory.

    Sounds are made in fp32 on every device (TF32 inside a GPU's matrix products), as the validation of a run makes them.
    """

    def __init__(self, *, device: torch.device | None = None) -> None:
        self.device = device or choose_device()
        self._ref: ModelRef | None = None
        self._loaded: LoadedPipeline | None = None
        self._embeds: OrderedDict[tuple[str, str], tuple[Embeds, Embeds]] = OrderedDict()

    def generate(self, job: GenerateJob, folder: Path, events: EventWriter, should_stop: Callable[[], bool]) -> None:
        """Make the job's sounds in its folder: `0.wav` ranks best. Says everything itself, but not a failure.

        Raises:
            Fault: the model cannot be opened; `generation.not_finite`, a sound is none.
        """
        began = time.monotonic()
        prepare_device(self.device)
        announcer = Announcer(events)
        config = job.config
        announcer.say(
            STARTED, device=device_name(self.device), versions=versions(), max_steps=config.num_inference_steps, prompt=config.prompt
        )
        if self._ref != job.model:
            announcer.waiting("loading", message=Path(job.model.weights or job.model.base).name)
        loaded = self._load(job.model)

        sampling_began = time.monotonic()

        def on_step(done: int, total: int) -> None:
            spent = time.monotonic() - sampling_began
            announcer.progress(step=done, max_steps=total, seconds_left=round(spent / done * (total - done), 1))

        try:
            candidates = sample_sounds(loaded, config, embeds=self._encode(loaded, config), on_step=on_step, should_stop=should_stop)
        except Stopped as stop:
            announcer.say(STOPPED, step=stop.step)
            return
        # What is no sound would be written as silence, and nobody told.
        sounds = [candidate for candidate in candidates if np.isfinite(candidate.samples).all()]
        for rank, candidate in enumerate(sounds):
            recipe = recipe_of(loaded, config, candidate, provenance=job.provenance)
            announcer.say(WAVEFORM, **write_candidate(folder, f"{rank}.wav", candidate, loaded, recipe), index=rank)
        if broken := len(candidates) - len(sounds):
            raise Fault(
                "generation.not_finite",
                f"{broken} of {len(candidates)} sounds came out as infinities or no numbers (seed {config.seed}, guidance {config.guidance_scale:g})",
            )
        announcer.say(FINISHED, elapsed_s=round(time.monotonic() - began, 3))

    def candidates(
        self,
        model: ModelRef,
        config: GenerateConfig,
        *,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[LoadedPipeline, list[Candidate]]:
        """Sounds in memory, ranked, and the model that made them; for whoever makes many.

        Raises:
            Stopped: `should_stop` said so.
            Fault: the model cannot be opened.
        """
        prepare_device(self.device)
        loaded = self._load(model)
        return loaded, sample_sounds(loaded, config, embeds=self._encode(loaded, config), on_step=on_step, should_stop=should_stop)

    def _load(self, ref: ModelRef) -> LoadedPipeline:
        if self._loaded is None or self._ref != ref:
            # Forgotten before the next is loaded: two models need not fit into memory.
            self._loaded = self._ref = None
            self._embeds.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._loaded = load_pipeline(ref, device=self.device, dtype=torch.float32)
            self._ref = ref
        return self._loaded

    def _encode(self, loaded: LoadedPipeline, config: GenerateConfig) -> tuple[Embeds, Embeds]:
        key = (config.prompt, config.negative_prompt)
        if key not in self._embeds:
            self._embeds[key] = encode_guided(loaded, *key)
            if len(self._embeds) > EMBEDS_KEPT:
                self._embeds.popitem(last=False)
        self._embeds.move_to_end(key)
        return self._embeds[key]


def recipe_of(loaded: LoadedPipeline, config: GenerateConfig, candidate: Candidate, *, provenance: dict[str, Any]) -> dict[str, Any]:
    """Everything that is needed to make a candidate again; it lies inside the sound's file.

    `first_seed` with as many waveforms gives the same bytes. `seed` with one waveform gives this candidate alone, the same sound but
    for the last bits of its samples. `candidate` is its place among those that were made together.
    """
    trained = loaded.checkpoint
    return {
        **config.to_dict(),
        "seed": candidate.seed,
        "first_seed": config.seed,
        "candidate": candidate.index,
        "gain": candidate.gain,
        "model": loaded.facts.name,
        "model_sha256": loaded.base_sha256,
        "checkpoint_sha256": trained.files[trained.weights_file] if trained else None,
        "checkpoint_step": trained.step if trained else None,
        "licence": loaded.facts.licence,
        "versions": versions(),
        **provenance,
    }


def write_candidate(folder: Path, name: str, candidate: Candidate, loaded: LoadedPipeline, recipe: dict[str, Any]) -> dict[str, Any]:
    """Write one sound and return what its event says. `name` is relative to `folder`.

    Flags are those of `gpu.sound.sound_flags`, and `scaled` where the sound was turned down to stay within full scale.
    """
    rate = loaded.mel.sample_rate_hz
    sha256 = write_wav(folder / name, candidate.samples, rate, recipe=recipe)
    return {
        "seed": candidate.seed,
        "audio": name,
        "sha256": sha256,
        "duration_s": len(candidate.samples) / rate,
        "sample_rate_hz": rate,
        "clap_score": candidate.clap_score,
        "flags": [*sound_flags(candidate.samples, rate), *(["scaled"] if candidate.gain < 1 else [])],
        "peaks": peaks(candidate.samples),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu generate", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="GENERATION_DIR", help="holds config.json; sounds and events.jsonl are written here")
    folder = parser.parse_args(argv).folder
    stop_file = folder / "control" / "stop"
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))

    attempt = max((event.attempt for event in read_events(folder)), default=0) + 1
    with EventWriter(folder, attempt=attempt) as events:
        try:
            job = GenerateJob.read(folder)
            Generator().generate(job, folder, events, lambda: bool(signals) or stop_file.exists())
        except Exception as error:  # the process's boundary: whatever went wrong becomes its last event
            fault = fault_of(error)
            if fault.code == "internal":
                traceback.print_exc()
            print(f"{fault.code}: {fault.message}", file=sys.stderr)
            events.write(FAILED, **fault.as_data())
            return 1
    ending = list(read_events(folder))[-1].type
    return 3 if ending == STOPPED else 0
