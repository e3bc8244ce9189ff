"""From clips and captions to what each step trains on.

A clip longer than the trained duration is cut into half-overlapping windows, up to `MAX_WINDOWS` evenly spaced ones that reach
from its start to its end; each epoch takes one of them at random. Windows, and not crops at any place, because each is a sound
of its own to the front end (its peak is brought to 0.5), so its latents can be computed once and shared by every run.

The VAE gives a distribution. Its mean and its standard deviation are cached, and every visit draws from it anew.

Where a sound may stand in for its caption (`audio_conditioning`), CLAP hears the same normalised window, once, in eval mode.

Everything random is a function of (seed, place in training): a run that was killed and resumed sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from gpu.cache import TensorCache, key_of, model_digest
from gpu.config import FinetuneConfig
from gpu.errors import Fault
from gpu.manifest import TRAIN, VALIDATION, ManifestClip, digest, read_manifest, sha256_of
from gpu.mel import log_mel, prepare_waveform
from gpu.pipelines import (
    Embeds,
    LoadedPipeline,
    collate,
    embeds_from_tensors,
    embeds_to_tensors,
    encode,
    encode_sound,
    encode_unconditional,
)
from gpu.sound import open_sound

MAX_WINDOWS = 32
SILENCE = 1e-4
# Changes whenever the code that computes an entry does: old entries are then left alone.
LATENTS_VERSION, EMBEDS_VERSION, SOUNDS_VERSION = 2, 1, 1
EAR_PARTS = ("audio_encoder", "feature_extractor")
TEXT_PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "projection_model", "language_model")

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What the VAE says of one window: a normal distribution, each [C, T/4, M/4] (4 being the model's latent scale)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """All that one micro-step needs; every draw has been made.

    Attributes:
        latents: scaled, [B, C, T/4, M/4].
        noise: of the same shape.
        timesteps: [B].
        embeds: of each caption, of nothing where it was dropped, or of the sound itself where that stands in.
        captions: of each sound, "" where it was dropped.
        heard: whether the sound stands in for its caption.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    embeds: Embeds
    captions: tuple[str, ...]
    heard: tuple[bool, ...] = ()

    def to(self, device: torch.device) -> Batch:
        return Batch(
            latents=self.latents.to(device),
            noise=self.noise.to(device),
            timesteps=self.timesteps.to(device),
            embeds=self.embeds.to(device),
            captions=self.captions,
            heard=self.heard,
        )


class Clips:
    """The clips of a run with everything about them that is cached: latents by clip and window, embeddings by caption."""

    def __init__(
        self,
        cache: TensorCache,
        latent_keys: dict[str, list[str]],
        embeds_keys: dict[str, str],
        train: list[ManifestClip],
        validation: list[ManifestClip],
        *,
        sound_keys: dict[str, list[str]] | None = None,
    ) -> None:
        self.train = train
        self.validation = validation
        self._cache = cache
        self._latent_keys = latent_keys
        self._embeds_keys = embeds_keys
        self._sound_keys = sound_keys or {}

    def num_windows(self, clip: ManifestClip) -> int:
        return len(self._latent_keys[clip.sha256])

    def latents(self, clip: ManifestClip, window: int = 0) -> Latents:
        entry = self._entry(self._latent_keys[clip.sha256][window])
        return Latents(mean=entry["mean"], std=entry["std"])

    def embeds(self, caption: str) -> Embeds:
        """Of a caption of these clips, or of ""."""
        return embeds_from_tensors(self._entry(self._embeds_keys[caption]))

    def sound_embeds(self, clip: ManifestClip, window: int) -> Embeds:
        """Of the sound itself; only where the run's `audio_conditioning` is above 0."""
        return embeds_from_tensors(self._entry(self._sound_keys[clip.sha256][window]))

    def _entry(self, key: str) -> dict[str, Tensor]:
        entry = self._cache.get(key)
        if entry is None:
            raise Fault(
                "cache.damaged", f"{self._cache.folder} lost an entry while the run was using it; start the run again", operator=True
            )
        return entry


class TrainingBatches(IterableDataset):
    """The batches of the micro-steps from `start` to `stop`.

    Sounds come in one endless stream, epoch after epoch, each epoch in an order of its own; a batch may reach from one epoch
    into the next, so that all have the same size and every clip is seen once an epoch.
    """

    def __init__(
        self, clips: Clips, config: FinetuneConfig, *, scaling_factor: float, num_train_timesteps: int, start: int = 0, stop: int = 0
    ) -> None:
        self.clips = clips
        self.config = config
        self.scaling_factor = scaling_factor
        self.num_train_timesteps = num_train_timesteps
        self.start, self.stop = start, stop
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(micro_step) for micro_step in range(self.start, self.stop))

    def batch(self, micro_step: int) -> Batch:
        """The batch of one micro-step, always the same."""
        config, size = self.config, self.config.train_batch_size
        rng = generator(config.seed, "batch", micro_step)
        clips = [self._clip(micro_step * size + place) for place in range(size)]
        windows = [int(torch.randint(self.clips.num_windows(clip), (), generator=rng)) for clip in clips]
        posteriors = [self.clips.latents(clip, window) for clip, window in zip(clips, windows, strict=True)]
        mean, std = torch.stack([p.mean for p in posteriors]), torch.stack([p.std for p in posteriors])
        latents = (mean + std * torch.randn(mean.shape, generator=rng)) * self.scaling_factor  # [B, C, T/4, M/4]
        noise = torch.randn(latents.shape, generator=rng)
        timesteps = torch.randint(self.num_train_timesteps, (size,), generator=rng)
        dropped = torch.rand(size, generator=rng) < config.caption_dropout
        captions = tuple("" if drop else clip.caption for clip, drop in zip(clips, dropped, strict=True))
        # Drawn last, so that without it every other draw is what it was before there was such an option.
        listened = torch.rand(size, generator=rng) < config.audio_conditioning
        heard = tuple(bool(listen and not drop) for listen, drop in zip(listened, dropped, strict=True))
        return Batch(
            latents=latents,
            noise=noise,
            timesteps=timesteps,
            embeds=collate(
                [
                    self.clips.sound_embeds(clip, window) if hears else self.clips.embeds(caption)
                    for clip, window, caption, hears in zip(clips, windows, captions, heard, strict=True)
                ]
            ),
            captions=captions,
            heard=heard,
        )

    def _clip(self, index: int) -> ManifestClip:
        """The `index`th sound of the endless stream."""
        epoch, place = divmod(index, len(self.clips.train))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, torch.randperm(len(self.clips.train), generator=generator(self.config.seed, "order", epoch)))
        return self.clips.train[int(self._order[1][place])]


def generator(seed: int, purpose: str, place: int) -> torch.Generator:
    """Random numbers that depend on nothing but these three."""
    value = hashlib.sha256(f"{seed}/{purpose}/{place}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(value) >> 1)


def read_clips(folder: Path, *, expected_digest: str, report: Report) -> list[ManifestClip]:
    """The manifest's clips with absolute paths, each proven to be the file that was frozen.

    Raises:
        Fault: `manifest.unreadable`, `manifest.changed`, `clip.changed`, `dataset.no_usable_clips`.
    """
    clips = read_manifest(folder)
    if expected_digest and digest(clips) != expected_digest:
        raise Fault("manifest.changed", f"{folder / 'manifest.jsonl'} is not the manifest that the run was made with")
    if not any(clip.split == TRAIN for clip in clips):
        raise Fault("dataset.no_usable_clips", f"none of the {len(clips)} clips is for training")
    absolute = []
    for number, clip in enumerate(clips, start=1):
        path = folder / clip.audio
        if not path.is_file() or sha256_of(path) != clip.sha256:
            raise Fault("clip.changed", f"{path} is {'not what it was' if path.is_file() else 'gone'} since the run was made")
        absolute.append(
            ManifestClip(audio=str(path), caption=clip.caption, sha256=clip.sha256, duration_s=clip.duration_s, split=clip.split)
        )
        report("checking clips", number, len(clips))
    return absolute


def cache_clips(
    clips: list[ManifestClip], loaded: LoadedPipeline, folder: Path, *, duration_s: float, report: Report, listen: bool = False
) -> Clips:
    """Compute what is not cached yet.

    Args:
        folder: the cache, shared between runs.
        duration_s: what is trained on, rounded up to whole latent frames.
        report: told (stage, done, total).
        listen: also what the sounds of the training clips are as conditions.
    Raises:
        Fault: a clip cannot be decoded.
    """
    cache = TensorCache(folder)
    windows = _cache_latents(clips, loaded, cache, num_samples=loaded.num_frames(duration_s) * loaded.mel.hop_length, report=report)
    train = [clip for clip in clips if clip.split == TRAIN]
    return Clips(
        cache,
        {sha256: [window.key for window in found] for sha256, found in windows.items()},
        _cache_embeds(sorted({clip.caption for clip in clips} | {""}), loaded, cache, report=report),
        train,
        [clip for clip in clips if clip.split == VALIDATION],
        sound_keys=_cache_sounds(train, windows, loaded, cache, report=report) if listen else None,
    )


def window_starts_s(clip_s: float, window_s: float) -> list[float]:
    """Where the windows of a clip begin: one for a short clip, else half-overlapping from its start to its end."""
    spare = clip_s - window_s
    if spare <= 0:
        return [0.0]
    count = min(MAX_WINDOWS, math.ceil(spare / (window_s / 2)) + 1)
    return [spare * number / (count - 1) for number in range(count)]


def encode_window(loaded: LoadedPipeline, path: Path, *, start_s: float, num_samples: int) -> dict[str, Tensor]:
    """One window through front end and VAE: mean and std [C, T/4, M/4], and the window's peak before it was normalised."""
    waveform, peak = read_window(loaded, path, start_s=start_s, num_samples=num_samples)
    vae = loaded.pipeline.vae
    with torch.no_grad():
        mel = log_mel(torch.from_numpy(waveform)[None], loaded.mel).to(vae.device, vae.dtype)  # [1, 1, T, M]
        posterior = vae.encode(mel).latent_dist
    return {
        "mean": posterior.mean[0].float().cpu(),
        "std": posterior.std[0].float().cpu(),
        "peak": torch.tensor(peak),
    }


def read_window(loaded: LoadedPipeline, path: Path, *, start_s: float, num_samples: int) -> tuple[np.ndarray, float]:
    """One window as the front end takes it, [num_samples], and its peak before it was normalised."""
    with open_sound(path) as sound:
        sound.seek(min(round(start_s * sound.samplerate), sound.frames))
        frames = math.ceil(num_samples / loaded.mel.sample_rate_hz * sound.samplerate) + 1
        samples = sound.read(frames, dtype="float32", always_2d=True)
        rate = sound.samplerate
    return prepare_waveform(np.nan_to_num(samples), rate, loaded.mel, num_samples), float(np.abs(samples).max(initial=0.0))


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Where a window's latents are cached, and how to read it again.

    Attributes:
        parts: what its sound follows from, as JSON values.
    """

    key: str
    start_s: float
    num_samples: int
    parts: dict[str, Any]


def _cache_latents(
    clips: list[ManifestClip], loaded: LoadedPipeline, cache: TensorCache, *, num_samples: int, report: Report
) -> dict[str, list[_Window]]:
    vae = model_digest(Path(loaded.pipeline.name_or_path) / "vae", memo=cache.folder)
    window_s = num_samples / loaded.mel.sample_rate_hz
    unique = {clip.sha256: clip for clip in clips}
    windows: dict[str, list[_Window]] = {}
    for number, (sha256, clip) in enumerate(unique.items(), start=1):
        heard, silent = [], []
        for start_s in window_starts_s(clip.duration_s, window_s):
            parts = {"clip": sha256, "start_s": start_s, "num_samples": num_samples, "mel": vars(loaded.mel)}
            key = key_of(kind="latents", version=LATENTS_VERSION, vae=vae, **parts)
            entry = cache.get(key)
            if entry is None:
                entry = encode_window(loaded, Path(clip.audio), start_s=start_s, num_samples=num_samples)
                cache.put(key, entry)
            window = _Window(key=key, start_s=start_s, num_samples=num_samples, parts=parts)
            (heard if entry["peak"] > SILENCE else silent).append(window)
        # A silent stretch brought to full level is noise: it is trained on only where a clip has nothing else.
        windows[sha256] = heard or silent
        report("caching latents", number, len(unique))
    return windows


def _cache_sounds(
    clips: list[ManifestClip], windows: dict[str, list[_Window]], loaded: LoadedPipeline, cache: TensorCache, *, report: Report
) -> dict[str, list[str]]:
    base = Path(loaded.pipeline.name_or_path)
    ears = [model_digest(base / part, memo=cache.folder) for part in EAR_PARTS]
    unique = {clip.sha256: clip for clip in clips}
    keys: dict[str, list[str]] = {}
    for number, (sha256, clip) in enumerate(unique.items(), start=1):
        keys[sha256] = []
        for window in windows[sha256]:
            key = key_of(kind="sound", version=SOUNDS_VERSION, ears=ears, **window.parts)
            if cache.get(key) is None:
                waveform, _ = read_window(loaded, Path(clip.audio), start_s=window.start_s, num_samples=window.num_samples)
                cache.put(key, embeds_to_tensors(encode_sound(loaded, waveform)))
            keys[sha256].append(key)
        report("caching sounds", number, len(unique))
    return keys


def _cache_embeds(captions: list[str], loaded: LoadedPipeline, cache: TensorCache, *, report: Report) -> dict[str, str]:
    base = Path(loaded.pipeline.name_or_path)
    text = [model_digest(base / part, memo=cache.folder) for part in TEXT_PARTS if (base / part).is_dir()]
    keys = {}
    for number, caption in enumerate(captions, start=1):
        # Only a departure from the usual is named, or every entry from before would be left alone.
        departure = {"unconditional": loaded.facts.unconditional} if not caption and loaded.facts.unconditional != "prompt" else {}
        keys[caption] = key_of(kind="embeds", version=EMBEDS_VERSION, caption=caption, text=text, **departure)
        if cache.get(keys[caption]) is None:
            # Alone, and not in a batch: padding would move GPT-2's positions.
            cache.put(keys[caption], embeds_to_tensors(encode(loaded, [caption]) if caption else encode_unconditional(loaded)))
        report("caching text", number, len(captions))
    return keys
