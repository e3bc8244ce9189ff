"""Bringing two sounds to one level, so that a listener judges the sound and not its loudness."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpu.sound import Meter

TARGET_DB = -23.0
"""Loudness that a pair is brought to where neither would clip: that of European broadcasts (EBU R 128), in LUFS."""
SILENT_DBFS = -60.0


def level_db(samples: NDArray, rate_hz: int) -> float | None:
    """Integrated loudness in LUFS (ITU-R BS.1770-4); of a sound too short for that (0.4 s) its RMS in dBFS; None for silence."""
    meter = Meter(rate_hz=rate_hz, channels=1, frames=len(samples), full_scale=1.0)
    if len(samples):
        meter.add(np.asarray(samples, dtype=np.float32)[:, None])
    if not len(samples) or meter.peak_dbfs is None or meter.peak_dbfs < SILENT_DBFS:
        return None
    return meter.loudness_lufs if meter.loudness_lufs is not None else 10 * math.log10(float(np.square(samples, dtype=np.float64).mean()))


def matched(first: NDArray, second: NDArray, *, rate_hz: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both sounds at one loudness: `TARGET_DB`, or as near below it as neither's peak exceeds full scale. Silence stays as it is."""
    levels = [level_db(sound, rate_hz) for sound in (first, second)]
    room = [level - 20 * math.log10(float(np.abs(sound).max())) for sound, level in zip((first, second), levels, strict=True) if level is not None]
    target = min([TARGET_DB, *room])
    first, second = (
        (np.asarray(sound, dtype=np.float64) * (10 ** ((target - level) / 20) if level is not None else 1.0)).astype(np.float32)
        for sound, level in zip((first, second), levels, strict=True)
    )
    return first, second
