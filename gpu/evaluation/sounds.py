"""The sounds of an evaluation or a listening test: made once each, in a folder of their own, whoever stops in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from gpu.config import EvaluateSubject, GenerateConfig
from gpu.generate import Generator, recipe_of
from gpu.manifest import sha256_of
from gpu.sampling import Stopped
from gpu.sound import peaks, read_recipe, sound_flags, write_wav

SOUNDS = "sounds"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sound to make. `config` asks for one waveform."""

    index: int
    config: GenerateConfig

    def path(self, folder: Path, subject: EvaluateSubject) -> Path:
        return folder / SOUNDS / subject.key / f"{self.index:04d}.wav"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A sound that is on the disk. `samples` are [S] float32; `flags` those of gpu.generate.write_candidate."""

    path: Path
    samples: NDArray[np.float32]
    rate_hz: int
    sha256: str
    flags: list[str]
    peaks: list[int]

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.rate_hz


def make_sounds(
    generator: Generator,
    folder: Path,
    subjects: list[EvaluateSubject],
    requests: list[Request],
    *,
    on_step: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Make what is not there yet: all sounds of the first subject, then all of the next, so that each model is opened once.

    A file appears whole or not at all, so one that is there is not made again.

    Args:
        on_step: told (done, total) in sampler steps over all sounds of all subjects.
    Raises:
        Stopped: `should_stop` said so; its step counts as `on_step` does.
        Fault: a model cannot be opened.
    """
    steps = requests[0].config.num_inference_steps if requests else 0
    total = steps * len(requests) * len(subjects)
    missing = [(subject, request) for subject in subjects for request in requests if not request.path(folder, subject).is_file()]
    done = total - steps * len(missing)
    for subject, request in missing:
        if should_stop():
            raise Stopped(done)

        def say(step: int, of: int, done: int = done) -> None:
            on_step(done + round(step / of * steps), total)

        try:
            loaded, candidates = generator.candidates(subject.model, request.config, on_step=say, should_stop=should_stop)
        except Stopped as stop:
            raise Stopped(done + stop.step) from None
        path = request.path(folder, subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        best, rate_hz = candidates[0], loaded.mel.sample_rate_hz
        # Kept with the sound: a file of whole numbers no longer shows which samples were none.
        flags = [*sound_flags(best.samples, rate_hz), *(["scaled"] if best.gain < 1 else [])]
        write_wav(path, best.samples, rate_hz, recipe={**recipe_of(loaded, request.config, best, provenance=subject.provenance), "flags": flags})
        done += steps


def read_sounds(folder: Path, subject: EvaluateSubject, requests: list[Request]) -> Iterator[Made]:
    for request in requests:
        path = request.path(folder, subject)
        samples, rate_hz = soundfile.read(path, dtype="float32")
        flags = (read_recipe(path) or {}).get("flags", [])
        yield Made(path=path, samples=samples, rate_hz=rate_hz, sha256=sha256_of(path), flags=flags, peaks=peaks(samples))
