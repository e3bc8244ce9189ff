"""Clips as browsers can play them."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings

from datasets_app.models import Clip
from gpu.errors import Fault
from gpu.sound import PLAYABLE_RATE_HZ, write_playable

MAX_PLAYABLE_CHANNELS = 2


def playable_file(clip: Clip) -> Path:
    """The clip's own file when every browser plays it, else a 16-bit rendition that is made once and kept in DATA_DIR/cache.

    Raises:
        Fault: the file is not there any more, or cannot be decoded.
    """
    if clip.subtype == "PCM_16" and clip.channels <= MAX_PLAYABLE_CHANNELS and clip.sample_rate_hz <= PLAYABLE_RATE_HZ:
        return clip.file
    rendition = settings.DATA_DIR / "cache" / "playable" / f"{clip.sha256}.wav"
    if not rendition.exists():
        if not clip.file.is_file():
            raise Fault("clip.missing", f"{clip.path} is not there any more")
        rendition.parent.mkdir(parents=True, exist_ok=True)
        write_playable(clip.file, rendition)
    return rendition
