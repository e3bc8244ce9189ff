"""The sounds of a blind listening test: the same prompts and seeds from two checkpoints, each pair at one loudness and without a name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr

from gpu.announcer import Announcer
from gpu.config import GenerateConfig, ListenConfig, ListenJob
from gpu.device import device_name, prepare_device, versions
from gpu.evaluation.loudness import matched
from gpu.evaluation.sounds import Request, make_sounds, read_sounds
from gpu.events import FINISHED, STARTED, STOPPED, EventWriter
from gpu.generate import Generator
from gpu.sampling import Stopped, candidate_seed
from gpu.sound import write_wav

PAIRS = "pairs"
SAME_MOMENT_S = 1_000_000_000
"""What every file of a pair says about when it was made: else `Last-Modified` would tell whose all the earlier ones are."""


def pair_file(folder: Path, index: int, subject: int) -> Path:
    """The sound of pair `index` by the first (0) or the second (1) checkpoint."""
    return folder / PAIRS / f"{index:04d}-{subject}.wav"


def make_pairs(job: ListenJob, folder: Path, events: EventWriter, should_stop: Callable[[], bool], *, generator: Generator) -> None:
    """Make both sounds of every pair and write them at one loudness and one rate, with nothing inside that says whose they are.

    Raises:
        Fault: a model cannot be opened.
    """
    began = time.monotonic()
    prepare_device(generator.device)
    announcer = Announcer(events)
    requests = pair_requests(job.config)
    total = job.config.num_inference_steps * len(requests) * len(job.subjects)
    announcer.say(STARTED, device=device_name(generator.device), versions=versions(), max_steps=total)

    def on_step(done: int, of: int) -> None:
        announcer.progress(step=done, max_steps=of)

    try:
        make_sounds(generator, folder, job.subjects, requests, on_step=on_step, should_stop=should_stop)
    except Stopped as stop:
        announcer.say(STOPPED, step=stop.step)
        return
    _write_pairs(job, folder, requests)
    announcer.say(FINISHED, elapsed_s=round(time.monotonic() - began, 3))


def pair_requests(config: ListenConfig) -> list[Request]:
    return [
        Request(
            index=index,
            config=GenerateConfig(
                prompt=prompt,
                seed=candidate_seed(config.seed, index),
                num_inference_steps=config.num_inference_steps,
                sampler=config.sampler,
                guidance_scale=config.guidance_scale,
                audio_length_in_s=config.audio_length_in_s,
                num_waveforms_per_prompt=1,
            ),
        )
        for index, prompt in enumerate(config.prompts)
    ]


def _write_pairs(job: ListenJob, folder: Path, requests: list[Request]) -> None:
    (folder / PAIRS).mkdir(exist_ok=True)
    both = [list(read_sounds(folder, subject, requests)) for subject in job.subjects]
    rate_hz = max(sound.rate_hz for made in both for sound in made)
    for index, pair in enumerate(zip(*both, strict=True)):
        raised = [sound.samples if sound.rate_hz == rate_hz else soxr.resample(sound.samples, sound.rate_hz, rate_hz) for sound in pair]
        # A sample more would tell which model made it.
        length = min(len(sound) for sound in raised)
        for number, samples in enumerate(matched(raised[0][:length], raised[1][:length], rate_hz=rate_hz)):
            path = pair_file(folder, index, number)
            write_wav(path, np.clip(samples, -1, 1), rate_hz, recipe={})
            os.utime(path, (SAME_MOMENT_S, SAME_MOMENT_S))
