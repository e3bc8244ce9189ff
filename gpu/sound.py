"""Sounds as files: what is in one, how it is written with its recipe, and how it looks. Neither torch nor Django.

Files are read in blocks: a recording of two hours takes no more memory than a drum hit.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image

from gpu.errors import Fault

WAV_FORMATS = frozenset({"WAV", "WAVEX", "RF64"})
SOFTWARE = "AudioLDM studio"

PEAK_COUNT = 200
SILENCE_DBFS = -60.0
SILENCE_WINDOW_S = 0.01
CLIPPED_RUN = 3
"""So many neighbouring samples at full scale are clipping; one or two are the top of a loud wave."""
CLIPPED_SHARE = 0.001
DC_OFFSET = 0.05
NOISE_FLATNESS = 0.6
NOISE_SPREAD_DB = 3.0
PLAYABLE_RATE_HZ = 48_000
BLOCK_VALUES = 1 << 18

# Largest value that each coarse sample format can hold; everything else reaches 1 within a 16-bit step.
FULL_SCALE = {"PCM_U8": 127 / 128, "PCM_S8": 127 / 128, "ALAW": 32_256 / 32_768, "ULAW": 32_124 / 32_768}
FULL_SCALE_16 = 32_767 / 32_768

# Ten anchors of matplotlib's magma: even steps of perceived brightness, readable without colour vision.
MAGMA = ("000004", "180f3d", "440f76", "721f81", "9e2f7f", "cd4071", "f1605d", "fd9668", "feca8d", "fcfdbf")
SPECTROGRAM_RANGE_DB = 80.0
SPECTROGRAM_WINDOW = 2048


@dataclass(frozen=True, kw_only=True)
class SoundFacts:
    """What a file holds, measured on its samples and not believed from its header.

    Args:
        format: container in soundfile's words, e.g. `WAV`, `WAVEX`, `FLAC`.
        subtype: sample format in soundfile's words, e.g. `PCM_16`.
        peak_dbfs: largest sample, None for digital silence.
        loudness_lufs: integrated loudness (ITU-R BS.1770-4); None when shorter than 0.4 s or below the gate of -70 LUFS.
        silence_share: share of the time, in windows of 10 ms, in which no sample exceeds -60 dBFS.
        clipped_share: share of the samples that stand in runs of three or more at full scale.
        dc_offset: mean of the channel that is furthest from zero.
        not_finite: the file has NaN or infinite samples; they are measured as zero.
        truncated: the header promises more samples than the file has.
        peaks: as `peaks()`.
    """

    frames: int
    sample_rate_hz: int
    channels: int
    format: str
    subtype: str
    peak_dbfs: float | None
    loudness_lufs: float | None
    silence_share: float
    clipped_share: float
    dc_offset: float
    not_finite: bool
    truncated: bool
    peaks: list[int] = field(repr=False)

    @property
    def duration_s(self) -> float:
        return self.frames / self.sample_rate_hz

    @property
    def flags(self) -> list[str]:
        """Codes of what is wrong with the sound itself: silent, clipped, dc_offset, not_finite, truncated."""
        claims = {
            "silent": self.peak_dbfs is None or self.peak_dbfs < SILENCE_DBFS,
            "clipped": self.clipped_share >= CLIPPED_SHARE,
            "dc_offset": abs(self.dc_offset) >= DC_OFFSET,
            "not_finite": self.not_finite,
            "truncated": self.truncated,
        }
        return [code for code, holds in claims.items() if holds]


def inspect_sound(path: Path) -> SoundFacts:
    """Measure a sound file, whatever its name ends in.

    Raises:
        Fault: `clip.unreadable` (missing, no sound, damaged), `clip.empty` (no samples).
    """
    with open_sound(path) as sound:
        meter = Meter(rate_hz=sound.samplerate, channels=sound.channels, frames=sound.frames, full_scale=_full_scale(sound.subtype))
        for block in sound_blocks(sound, path=path, multiple=meter.window):
            meter.add(block)
        if not meter.frames:
            raise Fault("clip.empty", f"{path.name} has no samples")
        return SoundFacts(
            frames=meter.frames,
            sample_rate_hz=sound.samplerate,
            channels=sound.channels,
            format=sound.format,
            subtype=sound.subtype,
            peak_dbfs=meter.peak_dbfs,
            loudness_lufs=meter.loudness_lufs,
            silence_share=meter.silence_share,
            clipped_share=meter.clipped_share,
            dc_offset=meter.dc_offset,
            not_finite=meter.not_finite,
            truncated=_is_truncated(path),
            peaks=meter.peaks,
        )


def peaks(samples: NDArray, count: int = PEAK_COUNT) -> list[int]:
    """Largest absolute sample in each of `count` equal stretches of time, 0..100 of full scale; for drawing.

    Args:
        samples: [T] or [T, C]; a sound with fewer than `count` samples gives one number per sample.
    """
    block = _as_frames(samples)
    bars = _Peaks(len(block), count)
    bars.add(_loudest(_finite(block)))
    return bars.values()


def sound_flags(samples: NDArray, rate: int) -> list[str]:
    """Codes of what is wrong with a sound: silent, clipped, dc_offset, not_finite, constant_noise.

    Args:
        samples: [T] or [T, C], full scale is 1.
        rate: in Hz.
    """
    block = _as_frames(samples)
    if not len(block):
        return ["silent"]
    meter = Meter(rate_hz=rate, channels=block.shape[1], frames=len(block), full_scale=FULL_SCALE_16)
    meter.add(block)
    claims = {
        "silent": meter.peak_dbfs is None or meter.peak_dbfs < SILENCE_DBFS,
        "clipped": meter.clipped_share >= CLIPPED_SHARE,
        "dc_offset": abs(meter.dc_offset) >= DC_OFFSET,
        "not_finite": meter.not_finite,
    }
    flags = [code for code, holds in claims.items() if holds]
    if "silent" not in flags and _is_constant_noise(_finite(block).mean(axis=1), rate):
        flags.append("constant_noise")
    return flags


def write_wav(path: Path, samples: NDArray, rate_hz: int, *, recipe: dict[str, Any]) -> str:
    """Write 16-bit WAV with the recipe inside, whole or not at all; the same input gives the same bytes.

    The recipe is JSON in the comment of a LIST/INFO chunk, after the samples: there are players that expect the samples at byte 44.

    Args:
        samples: [T] or [T, C]; floats with full scale 1 (cut off beyond it, NaN as 0), or int16.
        recipe: plain JSON values, no NaN.
    Returns:
        SHA-256 of the file.
    """
    data = _pcm16(_as_frames(samples)).tobytes()
    channels = _as_frames(samples).shape[1]
    fmt = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * channels * 2, channels * 2, 16)
    comment = json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    info = b"INFO" + _chunk(b"ISFT", SOFTWARE.encode() + b"\0") + _chunk(b"ICMT", comment + b"\0")
    body = b"WAVE" + _chunk(b"fmt ", fmt) + _chunk(b"data", data) + _chunk(b"LIST", info)
    content = _chunk(b"RIFF", body)
    with atomic_file(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe that `write_wav` put into a file; None for any other file, readable or not."""
    try:
        for name, content in _info_items(path):
            if name == b"ICMT":
                recipe = json.loads(content.split(b"\0", 1)[0])
                return recipe if isinstance(recipe, dict) else None
    except (OSError, ValueError, RecursionError, struct.error):
        pass
    return None


def write_playable(source: Path, target: Path) -> None:
    """Write the sound as every browser plays it: 16-bit PCM, at most two channels and 48 kHz; whole or not at all.

    Raises:
        Fault: `clip.unreadable`.
    """
    with open_sound(source) as sound:
        rate, channels = min(sound.samplerate, PLAYABLE_RATE_HZ), min(sound.channels, 2)
        resampler = soxr.ResampleStream(sound.samplerate, rate, channels, dtype="float32") if rate != sound.samplerate else None
        with atomic_file(target) as file, soundfile.SoundFile(file, "w", rate, channels, "PCM_16", format="WAV") as playable:
            for block in sound_blocks(sound, path=source):
                block = _finite(block) if sound.channels <= 2 else _finite(block).mean(axis=1, keepdims=True).repeat(2, axis=1)
                playable.write(np.clip(resampler.resample_chunk(block), -1, 1) if resampler else block)
            if resampler:
                playable.write(np.clip(resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True), -1, 1))


def spectrogram_png(path: Path, *, width: int, height: int) -> bytes:
    """A picture of the sound: time to the right, mel frequency upwards, 80 dB from the loudest colour to black.

    Each column is one transform of 2048 samples around its moment, so a long recording costs no more than a short one.

    Raises:
        Fault: `clip.unreadable`, `clip.empty`.
    """
    with open_sound(path) as sound:
        if not sound.frames:
            raise Fault("clip.empty", f"{path.name} has no samples")
        power = np.stack([_power_at(sound, (column + 0.5) / width, path=path) for column in range(width)])  # [W, F]
    level = 10 * np.log10(_mel_rows(power, sound.samplerate, height) + 1e-16).T[::-1]  # [H, W], low frequencies at the bottom
    top = max(level.max(), SILENCE_DBFS)
    shade = np.clip((level - top) / SPECTROGRAM_RANGE_DB + 1, 0, 1)
    image = Image.fromarray(np.round(shade * 255).astype(np.uint8)).convert("P")
    image.putpalette(_palette())
    png = BytesIO()
    image.save(png, "PNG", optimize=True)
    return png.getvalue()


@contextlib.contextmanager
def open_sound(path: Path) -> Iterator[soundfile.SoundFile]:
    """A sound file open for reading, with our faults for whatever libsndfile says.

    Raises:
        Fault: `clip.unreadable`, `clip.empty` (not one byte).
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise Fault("clip.empty", f"{path.name} is an empty file")
            # By descriptor: soundfile guesses from a name's ending, and asks for a sample rate when it is ".raw".
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                yield sound
    except OSError as error:
        raise Fault("clip.unreadable", f"{path.name} cannot be read: {error.strerror or error}") from error
    except soundfile.SoundFileError as error:
        raise Fault("clip.unreadable", f"{path.name} cannot be decoded: {_reason(error)}") from error


def sound_blocks(sound: soundfile.SoundFile, *, path: Path, multiple: int = 1) -> Iterator[NDArray[np.float32]]:
    """The sound from start to end as [T, C] blocks, each but the last a multiple of `multiple` frames long."""
    length = max(multiple, BLOCK_VALUES // sound.channels // multiple * multiple)
    while True:
        block = sound.read(length, dtype="float32", always_2d=True)
        if len(block):
            yield block
        if len(block) < length:
            return


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name complete and synced to the disk, or not at all."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Meter:
    """Measures a sound block by block.

    Args:
        frames: how long the sound is said to be; only the drawing depends on it.
        full_scale: the value at and beyond which a sample may be clipped.
    """

    def __init__(self, *, rate_hz: int, channels: int, frames: int, full_scale: float) -> None:
        self.window = max(1, round(rate_hz * SILENCE_WINDOW_S))
        self.frames = 0
        self.not_finite = False
        self._channels = channels
        self._full_scale = full_scale
        self._peak = 0.0
        self._sums = np.zeros(channels)
        self._silent_frames = 0
        self._clipping = _Clipping(channels)
        self._loudness = _Loudness(rate_hz, channels) if rate_hz >= _Loudness.MIN_RATE_HZ else None
        self._bars = _Peaks(frames, PEAK_COUNT)

    def add(self, block: NDArray[np.float32]) -> None:
        """Take the next block, [T, C]; all but the last must be a multiple of `window` long."""
        finite = _finite(block)
        self.not_finite = self.not_finite or finite is not block
        level = _loudest(finite)
        starts = np.arange(0, len(level), self.window)
        lengths = np.diff(starts, append=len(level))
        quiet = np.maximum.reduceat(level, starts) < 10 ** (SILENCE_DBFS / 20)
        self._silent_frames += int(lengths[quiet].sum())
        self._peak = max(self._peak, float(level.max()))
        self._sums += [channel.sum(dtype=np.float64) for channel in finite.T]
        self._clipping.add(finite, full_scale=self._full_scale if level.max() >= self._full_scale else None)
        if self._loudness:
            self._loudness.add(finite)
        self._bars.add(level)
        self.frames += len(block)

    @property
    def peak_dbfs(self) -> float | None:
        return 20 * math.log10(self._peak) if self._peak > 0 else None

    @property
    def loudness_lufs(self) -> float | None:
        return self._loudness.integrated() if self._loudness else None

    @property
    def silence_share(self) -> float:
        return self._silent_frames / self.frames

    @property
    def clipped_share(self) -> float:
        return self._clipping.count / (self.frames * self._channels)

    @property
    def dc_offset(self) -> float:
        means = self._sums / self.frames
        return float(means[np.argmax(np.abs(means))])

    @property
    def peaks(self) -> list[int]:
        return self._bars.values()


class _Clipping:
    """Counts samples in runs of `CLIPPED_RUN` or more at full scale, across blocks: a run of n has n - 2 triples."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._before = np.zeros((CLIPPED_RUN, channels), dtype=bool)

    def add(self, block: NDArray, *, full_scale: float | None) -> None:
        """Take the next block; `full_scale` is None when nothing in it reaches full scale."""
        if full_scale is None:
            self._before[:] = False
            return
        hot = np.concatenate([self._before, np.abs(block) >= full_scale])
        triples = hot[2:] & hot[1:-1] & hot[:-2]  # [T + 1, C]: the first was counted with the block before
        new_runs = triples[1:] & ~triples[:-1]
        self.count += int(triples[1:].sum()) + (CLIPPED_RUN - 1) * int(new_runs.sum())
        self._before = hot[-CLIPPED_RUN:]


class _Peaks:
    def __init__(self, frames: int, count: int) -> None:
        self._bars = np.zeros(min(count, frames))
        self._frames = frames
        self._position = 0

    def add(self, level: NDArray) -> None:
        """Take the next absolute samples, [T]."""
        start, end = self._position, min(self._position + len(level), self._frames)
        if end <= start:
            return
        first, last = start * len(self._bars) // self._frames, (end - 1) * len(self._bars) // self._frames
        # Bar b begins at the first frame f with f * bars // frames == b.
        edges = -(-np.arange(first, last + 1) * self._frames // len(self._bars)) - start
        bars = np.maximum.reduceat(level[: end - start], np.maximum(edges, 0))
        self._bars[first : last + 1] = np.maximum(self._bars[first : last + 1], bars)
        self._position = end

    def values(self) -> list[int]:
        return [int(value) for value in np.round(np.minimum(self._bars, 1) * 100)]


class _Loudness:
    """Integrated loudness, ITU-R BS.1770-4: K-weighting, blocks of 400 ms every 100 ms, gates at -70 LUFS and 10 LU below the mean."""

    MIN_RATE_HZ = 4_000
    # By number of channels, in the order of WAVEX: left right centre LFE, then surrounds; every other layout counts all alike.
    WEIGHTS = {5: (1, 1, 1, 1.41, 1.41), 6: (1, 1, 1, 0, 1.41, 1.41), 8: (1, 1, 1, 0, 1, 1, 1.41, 1.41)}

    def __init__(self, rate_hz: int, channels: int) -> None:
        self._hop = round(rate_hz / 10)
        self._weights = np.array(self.WEIGHTS.get(channels, (1,) * channels), dtype=np.float64)
        self._sections = _k_weighting(rate_hz)
        self._state = np.zeros((2, 2, channels))
        self._partial, self._filled = 0.0, 0
        self._hops: list[float] = []

    def add(self, block: NDArray) -> None:
        # Not at the top: scipy.signal takes a second to import, and the web process only draws what was measured.
        from scipy.signal import sosfilt

        weighted, self._state = sosfilt(self._sections, block.astype(np.float64), axis=0, zi=self._state)
        power = np.square(weighted) @ self._weights  # [T]
        edges = np.arange(self._hop - self._filled, len(power), self._hop)
        sums = np.add.reduceat(power, np.concatenate([[0], edges])) if len(power) else np.zeros(0)
        for edge_sum in sums[:-1]:
            self._hops.append(self._partial + float(edge_sum))
            self._partial = 0.0
        self._partial += float(sums[-1]) if len(sums) else 0.0
        self._filled = (self._filled + len(power)) % self._hop
        if self._filled == 0:
            self._hops.append(self._partial)
            self._partial = 0.0

    def integrated(self) -> float | None:
        if len(self._hops) < 4:
            return None
        power = np.convolve(self._hops, np.ones(4), "valid") / (4 * self._hop)
        loud = power[power > _power(-70)]
        if len(loud):
            loud = loud[loud > _power(_lufs(loud.mean()) - 10)]
        return _lufs(loud.mean()) if len(loud) else None


def _lufs(power: float) -> float:
    return -0.691 + 10 * math.log10(power)


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _k_weighting(rate_hz: int) -> NDArray[np.float64]:
    """The two filters of BS.1770-4 annex 1 as second-order sections.

    The standard gives coefficients for 48 kHz only; these are its analogue prototypes by bilinear transform (De Man,
    "Evaluation of implementations of the EBU R128 loudness measurement", 2018), equal to the tables at 48 kHz.
    """
    k, q = math.tan(math.pi * 1681.974450955533 / rate_hz), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    norm = 1 + k / q + k * k
    shelf = [
        (high + band * k / q + k * k) / norm,
        2 * (k * k - high) / norm,
        (high - band * k / q + k * k) / norm,
        1.0,
        2 * (k * k - 1) / norm,
        (1 - k / q + k * k) / norm,
    ]
    k, q = math.tan(math.pi * 38.13547087602444 / rate_hz), 0.5003270373238773
    norm = 1 + k / q + k * k
    high_pass = [1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm]
    return np.array([shelf, high_pass])


def _is_constant_noise(mono: NDArray, rate_hz: int) -> bool:
    """Whether the sound is an even hiss from start to end, as a model that learned nothing makes: flat in frequency and level."""
    window = 1024
    count = len(mono) // window
    if count < 8:
        return False
    frames = mono[: count * window].reshape(count, window).astype(np.float64)
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
    if np.ptp(np.percentile(level, [5, 95])) > NOISE_SPREAD_DB:
        return False
    spectrum = np.square(np.abs(np.fft.rfft(frames * np.hanning(window), axis=1))).mean(axis=0)[8:-8] + 1e-20
    flatness = math.exp(np.log(spectrum).mean()) / spectrum.mean()
    return flatness > NOISE_FLATNESS


def _as_frames(samples: NDArray) -> NDArray:
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2):
        raise ValueError(f"samples must be [T] or [T, C], not of shape {samples.shape}")
    return samples[:, None] if samples.ndim == 1 else samples


def _loudest(block: NDArray) -> NDArray:
    """The largest absolute sample of any channel at each moment, [T, C] to [T]."""
    # Channel by channel: numpy is twenty times slower over a short last axis.
    return functools.reduce(np.maximum, np.abs(block).T)


def _finite(block: NDArray) -> NDArray:
    """The block itself, or a copy with zeros for NaN and infinity when there are any."""
    good = np.isfinite(block)
    return block if good.all() else np.where(good, block, 0)


def _pcm16(block: NDArray) -> NDArray:
    if block.dtype == np.int16:
        return block.astype("<i2")
    return np.round(np.clip(_finite(block), -1, 1) * 32_767).astype("<i2")


def _full_scale(subtype: str) -> float:
    return FULL_SCALE.get(subtype, FULL_SCALE_16)


def _reason(error: Exception) -> str:
    # "Error opening 7: Format not recognised." names a descriptor that means nothing to the reader.
    return str(error).partition(": ")[2].rstrip(".") or str(error)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _chunks(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and size of the RIFF chunks from the file's position to `end`; sizes are as written, not as they fit."""
    position = file.tell()
    while position + 8 <= end:
        file.seek(position)
        name, size = struct.unpack("<4sI", file.read(8))
        yield name, position + 8, size
        position += 8 + size + size % 2


def _info_items(path: Path) -> Iterator[tuple[bytes, bytes]]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        for name, start, length in _chunks(file, size):
            if name != b"LIST" or start + length > size:
                continue
            file.seek(start)
            if file.read(4) == b"INFO":
                for item, item_start, item_length in _chunks(file, start + length):
                    file.seek(item_start)
                    yield item, file.read(min(item_length, start + length - item_start))


def _is_truncated(path: Path) -> bool:
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return False
        for name, start, length in _chunks(file, size):
            if name == b"data":
                # Writers to a pipe cannot know the length and write 0 or nearly 2^32 instead.
                return size < start + length < 0xFFFFF000
    return False


def _power_at(sound: soundfile.SoundFile, moment: float, *, path: Path) -> NDArray[np.float64]:
    """Power spectrum around a moment, 0..1 of the sound; full scale is 1."""
    centre = int(moment * sound.frames)
    start = max(0, min(centre - SPECTROGRAM_WINDOW // 2, sound.frames - SPECTROGRAM_WINDOW))
    sound.seek(start)
    mono = _finite(sound.read(SPECTROGRAM_WINDOW, dtype="float32", always_2d=True)).mean(axis=1)
    mono = np.pad(mono, (0, SPECTROGRAM_WINDOW - len(mono)))
    return np.square(np.abs(np.fft.rfft(mono * np.hanning(SPECTROGRAM_WINDOW))) / (SPECTROGRAM_WINDOW / 4))


def _mel_rows(power: NDArray, rate_hz: int, height: int) -> NDArray[np.float64]:
    """Mean power in `height` bands of equal width in mel, [W, F] to [W, H]; bands narrower than a bin are interpolated."""
    top = 2595 * math.log10(1 + rate_hz / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, top, height + 1) / 2595) - 1)
    edges = edges_hz / (rate_hz / 2) * (power.shape[1] - 1)
    total = np.concatenate([np.zeros((len(power), 1)), np.cumsum((power[:, 1:] + power[:, :-1]) / 2, axis=1)], axis=1)
    at_edges = np.stack([np.interp(edges, np.arange(total.shape[1]), row) for row in total])
    return np.maximum(np.diff(at_edges, axis=1), 0) / np.diff(edges)


def _palette() -> bytes:
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in MAGMA])
    places = np.linspace(0, len(MAGMA) - 1, 256)
    return np.stack([np.interp(places, range(len(MAGMA)), anchors[:, i]) for i in range(3)], axis=1).round().astype(np.uint8).tobytes()
