"""An evaluation from start to end: make the sounds, hear them and the real ones, compare, write the report.

The same job gives the same report on the same machine. Asked to stop, it keeps what it has made and goes on from there next time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gpu.announcer import Announcer
from gpu.cache import TensorCache, key_of
from gpu.config import EvaluateConfig, EvaluateJob, GenerateConfig
from gpu.device import device_name, prepare_device, versions
from gpu.errors import Fault
from gpu.evaluation import metrics
from gpu.evaluation.ears import Ears, hear_clip, open_ears, to_rate
from gpu.evaluation.report import (
    AGAINST,
    CHECKPOINT,
    CLAP_CHANCE,
    CLAP_SCORE,
    FRECHET,
    HELD_OUT,
    KAD,
    NEAR_DUPLICATE,
    NEAR_TRAINING,
    TRAINING,
    Embedding,
    Figure,
    Memory,
    Nearest,
    Report,
    SoundRow,
    Subject,
)
from gpu.evaluation.sounds import Made, Request, make_sounds, read_sounds
from gpu.events import FINISHED, STARTED, STOPPED, EventWriter, now
from gpu.generate import Generator
from gpu.manifest import TRAIN, VALIDATION, ManifestClip, digest, read_manifest, sha256_of
from gpu.models import describe
from gpu.sampling import Stopped, candidate_seed

MAX_WINDOWS = 8
"""Pieces of one training clip that outputs are compared with, evenly spaced; of a long recording not every moment is heard."""
HEARD_VERSION = 1


def evaluate(
    job: EvaluateJob, folder: Path, events: EventWriter, should_stop: Callable[[], bool], *, generator: Generator
) -> None:
    """Carry out the job in its folder; `report.json` is there when `finished` is said. Says everything itself, but not a failure.

    Raises:
        Fault: a model cannot be opened or cannot hear, a real sound is gone, nothing is held out.
    """
    began = time.monotonic()
    prepare_device(generator.device)
    announcer = Announcer(events)
    config = job.config
    clips = _clips(folder, job)
    requests = make_requests(clips, config)
    total = config.num_inference_steps * len(requests) * len(job.subjects)
    announcer.say(STARTED, device=device_name(generator.device), versions=versions(), max_steps=total)
    sampling_began, first = time.monotonic(), None

    def on_step(done: int, of: int) -> None:
        nonlocal first
        first = done - 1 if first is None else first
        left = (time.monotonic() - sampling_began) / (done - first) * (of - done)
        announcer.progress(step=done, max_steps=of, seconds_left=round(left, 1))

    try:
        announcer.waiting("loading", message=job.ears_name)
        memo = Path(job.cache_dir) if job.cache_dir else folder / "cache"
        # Before anything is made: a model that cannot hear is refused at once.
        ears = open_ears(Path(job.ears), name=job.ears_name, device=generator.device, memo=memo)
        make_sounds(generator, folder, job.subjects, requests, on_step=on_step, should_stop=should_stop)
        heard = _Heard(ears, job, announcer=announcer, should_stop=should_stop, cache=TensorCache(memo))
        report = _measure(job, folder, clips, requests, heard)
    except Stopped as stop:
        announcer.say(STOPPED, step=stop.step)
        return
    report.write(folder)
    announcer.say(FINISHED, elapsed_s=round(time.monotonic() - began, 3), summary=report.summary())


def make_requests(clips: list[ManifestClip], config: EvaluateConfig) -> list[Request]:
    """Which sounds are made: captions of held-out clips in an order of the seed's, again from the start when there are more sounds than clips.

    Raises:
        Fault: `evaluation.nothing_held_out`.
    """
    held_out = _held_out(clips)
    if len(held_out) < 2:
        raise Fault(
            "evaluation.nothing_held_out",
            f"{len(held_out)} clips are held out that the checkpoint was not trained on; at least 2 are needed to compare with",
        )
    order = np.random.default_rng(config.seed).permutation(len(held_out))
    return [
        Request(
            index=index,
            config=GenerateConfig(
                prompt=held_out[order[index % len(order)]].caption,
                seed=candidate_seed(config.seed, index),
                num_inference_steps=config.num_inference_steps,
                sampler=config.sampler,
                guidance_scale=config.guidance_scale,
                audio_length_in_s=config.audio_length_in_s,
                num_waveforms_per_prompt=1,
            ),
        )
        for index in range(config.prompts)
    ]


class _Heard:
    """Embeddings of sounds, those of real ones kept on the disk. All are heard at one rate: the lowest of the compared models'."""

    def __init__(self, ears: Ears, job: EvaluateJob, *, announcer: Announcer, should_stop: Callable[[], bool], cache: TensorCache) -> None:
        self.ears = ears
        self.rate_hz = min(describe(Path(subject.model.base)).sample_rate_hz for subject in job.subjects)
        self.length_s = min(job.config.audio_length_in_s, ears.longest_s)
        self._announcer = announcer
        self._should_stop = should_stop
        self._cache = cache

    def made(self, sounds: list[Made], *, stage: str) -> NDArray[np.float64]:
        """[N, D]"""
        return np.stack([self.embed(sound.samples, sound.rate_hz) for sound in self._counted(sounds, stage)])

    def clips(self, clips: list[ManifestClip], *, stage: str, windows: int = 1) -> list[NDArray[np.float64]]:
        """Up to `windows` pieces of each clip, [W, D] each."""
        found = []
        for clip in self._counted(clips, stage):
            key = key_of(kind="heard", version=HEARD_VERSION, ears=self.ears.sha256, clip=clip.sha256, rate_hz=self.rate_hz,
                         length_s=self.length_s, windows=windows)  # fmt: skip
            entry = self._cache.get(key)
            if entry is None:
                entry = {"embeds": torch.from_numpy(self._embed_clip(clip, windows))}
                self._cache.put(key, entry)
            found.append(entry["embeds"].numpy())
        return found

    def embed(self, samples: NDArray, rate_hz: int) -> NDArray[np.float64]:
        """[S] -> [D]"""
        return self.ears.hear(to_rate(samples, rate_hz, self.rate_hz), self.rate_hz)

    def _embed_clip(self, clip: ManifestClip, windows: int) -> NDArray[np.float64]:
        path = Path(clip.audio)
        if not path.is_file():
            raise Fault("clip.missing", f"{path} is not there any more", operator=True)
        if sha256_of(path) != clip.sha256:
            raise Fault("clip.changed", f"{path} is not the file that the evaluation has frozen")
        return np.atleast_2d(hear_clip(self.ears, path, rate_hz=self.rate_hz, length_s=self.length_s, windows=windows))

    def _counted(self, items: list, stage: str) -> Iterator:
        for done, item in enumerate(items):
            if self._should_stop():
                raise Stopped(done)
            self._announcer.waiting(stage, done=done, total=len(items))
            yield item


def _measure(job: EvaluateJob, folder: Path, clips: list[ManifestClip], requests: list[Request], heard: _Heard) -> Report:
    config, ears = job.config, heard.ears
    held_out, training = _held_out(clips), [clip for clip in clips if clip.split == TRAIN]
    groups = [request.config.prompt for request in requests]
    text = ears.read(groups)
    reference = np.concatenate(heard.clips(held_out, stage="hearing held-out sounds"))  # [M, D]
    pieces = heard.clips(training, stage="hearing training sounds", windows=MAX_WINDOWS)
    measure = _Measure(config, reference, [clip.caption for clip in held_out])

    made = {subject.key: list(read_sounds(folder, subject, requests)) for subject in job.subjects}
    embeds = {subject.key: heard.made(made[subject.key], stage="hearing the sounds made") for subject in job.subjects}
    memory = _memory(reference, pieces)
    copies = _Copies(memory, training, pieces)

    subjects = []
    for subject in job.subjects:
        sounds = embeds[subject.key]
        cosines = metrics.paired_cosines(text, sounds)
        figures = [
            measure.mean(CLAP_SCORE, cosines, groups),
            *measure.chance(text, sounds, groups),
            measure.kad(sounds, groups),
            measure.frechet(sounds, groups),
        ]
        rows = copies.rows(folder, requests, made[subject.key], sounds, cosines)
        sha256 = subject.provenance.get("checkpoint_sha256", "")
        subjects.append(Subject(key=subject.key, name=subject.name, figures=figures, sounds=rows, model_sha256=sha256))
    subjects += _real_subjects(measure, heard, held_out, reference, training, pieces)

    return Report(
        subjects=subjects,
        differences=_differences(measure, text, embeds, groups),
        embedding=Embedding(name=ears.name, sha256=ears.sha256, dimensions=ears.dimensions, sample_rate_hz=ears.sample_rate_hz,
                            heard_rate_hz=heard.rate_hz, heard_s=round(heard.length_s, 4)),
        dataset=job.dataset,
        manifest_digest=job.manifest_digest,
        prompts=len(requests),
        captions=len(set(groups)),
        seed=config.seed,
        kernel=config.kernel,
        memory=memory,
        settings=config.to_dict(),
        versions=versions(),
        made_at=now(),
        notes=_notes(job, requests, held_out, training),
    )  # fmt: skip


class _Measure:
    """The figures of one set of sounds against the held-out ones."""

    def __init__(self, config: EvaluateConfig, reference: NDArray, reference_groups: list[str]) -> None:
        self.config = config
        self.reference = reference
        self.reference_groups = reference_groups

    def mean(self, name: str, values: NDArray, groups: list[str]) -> Figure:
        found = metrics.mean_interval(values, groups=groups, seed=self.config.seed)
        warning = "" if found.low is not None else "one caption alone: no interval"
        return Figure(name=name, n=len(values), value=found.value, low=found.low, high=found.high, warning=warning)

    def chance(self, text: NDArray, sounds: NDArray, groups: list[str]) -> list[Figure]:
        if len(set(groups)) < 2:
            return []
        return [self.mean(CLAP_CHANCE, metrics.chance_cosines(text, sounds, groups), groups)]

    def kad(self, sounds: NDArray, groups: list[str]) -> Figure:
        sizes = {"n": len(sounds), "reference_n": len(self.reference)}
        if min(sizes.values()) < metrics.KAD_MIN_SOUNDS:
            why_not = f"{len(sounds)} sounds against {len(self.reference)}: below {metrics.KAD_MIN_SOUNDS} of each it says nothing"
            return Figure(name=KAD, why_not=why_not, **sizes)
        found = metrics.kernel_distance(
            sounds, self.reference, kernel=self.config.kernel, groups=groups, reference_groups=self.reference_groups, seed=self.config.seed
        )
        return Figure(name=KAD, value=found.value, low=found.low, high=found.high, **sizes)

    def frechet(self, sounds: NDArray, groups: list[str]) -> Figure:
        sizes, dimensions = {"n": len(sounds), "reference_n": len(self.reference)}, sounds.shape[1]
        if why_not := metrics.frechet_refusal(*sizes.values(), dimensions):
            return Figure(name=FRECHET, why_not=why_not, **sizes)
        found = metrics.frechet_interval(sounds, self.reference, groups=groups, seed=self.config.seed)
        warning = metrics.frechet_warning(*sizes.values(), dimensions)
        return Figure(name=FRECHET, value=found.value, low=found.low, high=found.high, warning=warning, **sizes)


class _Copies:
    """Finds the training sound nearest to each output, and outputs that are nearly the same."""

    def __init__(self, memory: Memory | None, training: list[ManifestClip], pieces: list[NDArray]) -> None:
        self.memory = memory
        self._owners = [clip for clip, rows in zip(training, pieces, strict=True) for _ in rows]
        self._pieces = np.concatenate(pieces) if pieces else None

    def rows(self, folder: Path, requests: list[Request], made: list[Made], sounds: NDArray, cosines: NDArray) -> list[SoundRow]:
        near: list[Nearest | None] = [None] * len(made)
        duplicates: list[int | None] = [None] * len(made)
        if self.memory is not None and self._pieces is not None:
            found = zip(*metrics.nearest(sounds, self._pieces), strict=True)
            near = [
                Nearest(sha256=self._owners[place].sha256, caption=self._owners[place].caption, similarity=float(similarity))
                for place, similarity in found
            ]
            duplicates = metrics.near_duplicates(sounds, threshold=self.memory.duplicate_threshold)
        return [
            SoundRow(
                index=request.index,
                prompt=request.config.prompt,
                seed=request.config.seed,
                audio=sound.path.relative_to(folder).as_posix(),
                sha256=sound.sha256,
                duration_s=sound.duration_s,
                sample_rate_hz=sound.rate_hz,
                peaks=sound.peaks,
                flags=[*sound.flags, *self._suspicions(nearest, duplicate)],
                clap_score=float(cosine),
                nearest=nearest,
                duplicate_of=duplicate,
            )
            for request, sound, cosine, nearest, duplicate in zip(requests, made, cosines, near, duplicates, strict=True)
        ]

    def _suspicions(self, near: Nearest | None, duplicate: int | None) -> list[str]:
        claims = {
            NEAR_DUPLICATE: duplicate is not None,
            NEAR_TRAINING: near is not None and self.memory is not None and near.similarity > self.memory.threshold,
        }
        return [flag for flag, holds in claims.items() if holds]


def _memory(reference: NDArray, pieces: list[NDArray]) -> Memory | None:
    """None without training sounds."""
    if not pieces:
        return None
    similarities = metrics.nearest(reference, np.concatenate(pieces))[1]
    threshold, alarms = metrics.copy_threshold(similarities)
    return Memory(
        threshold=threshold,
        false_alarm_share=alarms,
        held_out_median=float(np.median(similarities)),
        held_out_n=len(reference),
        training_n=len(pieces),
        duplicate_threshold=metrics.duplicate_threshold(reference),
    )


def _real_subjects(
    measure: _Measure, heard: _Heard, held_out: list[ManifestClip], reference: NDArray, training: list[ManifestClip], pieces: list[NDArray]
) -> list[Subject]:
    """Real sounds in the place of made ones: what a perfect model would score."""
    captions = [clip.caption for clip in held_out]
    subjects = [
        Subject(
            key=HELD_OUT,
            name="held-out real sounds",
            figures=[measure.mean(CLAP_SCORE, metrics.paired_cosines(heard.ears.read(captions), reference), captions)],
        )
    ]
    if len(training) >= 2:
        # As many as sounds were made, where there are so many: distances are compared at one N.
        order = np.random.default_rng(measure.config.seed).permutation(len(training))[: measure.config.prompts]
        chosen, sounds = [training[place].caption for place in order], np.stack([pieces[place][0] for place in order])
        figures = [
            measure.mean(CLAP_SCORE, metrics.paired_cosines(heard.ears.read(chosen), sounds), chosen),
            measure.kad(sounds, chosen),
            measure.frechet(sounds, chosen),
        ]
        subjects.append(Subject(key=TRAINING, name="real training sounds", figures=figures))
    return subjects


def _differences(measure: _Measure, text: NDArray, embeds: dict[str, NDArray], groups: list[str]) -> list[Figure]:
    """Checkpoint minus the other, pair by pair: narrower than what two separate intervals suggest."""
    if AGAINST not in embeds:
        return []
    first, second = embeds[CHECKPOINT], embeds[AGAINST]
    figures = [measure.mean(CLAP_SCORE, metrics.paired_cosines(text, first) - metrics.paired_cosines(text, second), groups)]
    if min(len(first), len(measure.reference)) >= metrics.KAD_MIN_SOUNDS:
        found = metrics.kernel_distance_difference(
            first, second, measure.reference, kernel=measure.config.kernel, groups=groups, reference_groups=measure.reference_groups,
            seed=measure.config.seed,
        )  # fmt: skip
        figures.append(Figure(name=KAD, n=len(first), reference_n=len(measure.reference), value=found.value, low=found.low, high=found.high))
    return figures


def _notes(job: EvaluateJob, requests: list[Request], held_out: list[ManifestClip], training: list[ManifestClip]) -> list[str]:
    notes = []
    if job.ears == job.subjects[0].model.base:
        notes.append(
            "The ears are the checkpoint's own: what they hear also steers it, so they may be pleased where others are not. A CLAP score above"
            " that of the held-out real sounds says that the model pleases its CLAP, not that it is better than real."
        )
    if len(requests) > len(held_out):
        notes.append(
            f"{len(requests)} sounds were made for {len(held_out)} held-out clips: captions were used again with other seeds. The intervals"
            " draw whole captions, so they do not pretend to more than the captions allow."
        )
    if not training:
        notes.append("The dataset has no training clips, so nothing can be said about copies of them.")
    return notes


def _clips(folder: Path, job: EvaluateJob) -> list[ManifestClip]:
    clips = read_manifest(folder)
    if digest(clips) != job.manifest_digest:
        raise Fault("manifest.changed", f"{folder} does not hold the list of clips that was frozen")
    return clips


def _held_out(clips: list[ManifestClip]) -> list[ManifestClip]:
    """In an order that does not depend on how the manifest was written."""
    return sorted((clip for clip in clips if clip.split == VALIDATION), key=lambda clip: (clip.sha256, clip.caption))
