"""A CLAP that hears sounds and reads words, in whichever model it lies. Opened from a folder that is there; nothing is downloaded."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoTokenizer, ClapAudioModelWithProjection, ClapFeatureExtractor, ClapModel, ClapTextModelWithProjection

from gpu.cache import model_digest
from gpu.conditioning import Clap
from gpu.errors import Fault
from gpu.models import INDEX_FILE
from gpu.sound import open_sound

PEAK = 0.5
"""Every sound is heard at this peak, at which the trainer's front end hears them too; else a distance would measure the level."""
TEXTS_AT_ONCE = 32
PLAIN_SUFFIXES = (".json", ".txt", ".safetensors")


@dataclass(frozen=True)
class Ears:
    """Maps words and sounds into one space.

    Attributes:
        sha256: digest of the folder that the CLAP was opened from.
    """

    name: str
    clap: Clap
    sha256: str

    @property
    def dimensions(self) -> int:
        return int(self.clap.audio.config.projection_dim)

    @property
    def sample_rate_hz(self) -> int:
        return int(self.clap.extractor.sampling_rate)

    @property
    def longest_s(self) -> float:
        """How much of a sound is heard."""
        return self.clap.extractor.nb_max_samples / self.sample_rate_hz

    @torch.no_grad()
    def read(self, texts: list[str]) -> NDArray[np.float64]:
        """[N, D], rows of length 1. Equal texts are read once."""
        distinct = list(dict.fromkeys(texts))
        rows = [
            row
            for start in range(0, len(distinct), TEXTS_AT_ONCE)
            for row in self.clap.text_embeds(distinct[start : start + TEXTS_AT_ONCE]).double().cpu().numpy()
        ]
        by_text = dict(zip(distinct, rows, strict=True))
        return np.stack([by_text[text] for text in texts])

    @torch.no_grad()
    def hear(self, samples: NDArray, rate_hz: int) -> NDArray[np.float64]:
        """The embedding of one mono sound, [S] -> [D], of length 1.

        Raises:
            Fault: `evaluation.ears_broken`, the answer is not finite.
        """
        sound = np.nan_to_num(np.asarray(samples, dtype=np.float32), posinf=1.0, neginf=-1.0)
        peak = float(np.abs(sound).max(initial=0.0))
        embed = self.clap.audio_embeds(sound * (PEAK / peak) if peak > 0 else sound, sample_rate_hz=rate_hz).double()
        if not torch.isfinite(embed).all():
            raise Fault("evaluation.ears_broken", f"the CLAP of {self.name} answers a sound with values that are no numbers")
        return F.normalize(embed, dim=-1)[0].cpu().numpy()


def open_ears(folder: Path, *, name: str, device: torch.device | str = "cpu", memo: Path | None = None) -> Ears:
    """The CLAP of a model folder (diffusers' layout), or one that transformers saved by itself.

    A model whose files hold a CLAP for ranking is heard with that one; else with the one that conditions it.

    Raises:
        Fault: `evaluation.cannot_hear`, there is none that hears; `evaluation.ears_broken`, it cannot be opened.
    """
    if not folder.is_dir():
        raise Fault("evaluation.cannot_hear", f"{folder} is not a folder with a CLAP")
    try:
        clap = _open(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Fault("evaluation.ears_broken", f"the CLAP of {name} cannot be opened: {str(error).splitlines()[0]}") from error
    for part in (clap.audio, clap.text):
        part.to(device).eval().requires_grad_(False)
    return Ears(name=name, clap=clap, sha256=model_digest(folder, memo=memo))


def hear_clip(ears: Ears, path: Path, *, rate_hz: int, length_s: float, windows: int = 1) -> NDArray[np.float64]:
    """Up to `windows` pieces of a sound file, evenly spaced, as a model of that rate would make them: [W, D]; with one window [D].

    Raises:
        Fault: `clip.unreadable`.
    """
    with open_sound(path) as sound:
        length = max(1, round(length_s * sound.samplerate))
        count = min(windows, max(1, sound.frames // length))
        rows = []
        for start in np.linspace(0, max(0, sound.frames - length), count).astype(int):
            sound.seek(int(start))
            mono = sound.read(length, dtype="float32", always_2d=True).mean(axis=1)
            rows.append(ears.hear(to_rate(mono, sound.samplerate, rate_hz), rate_hz))
    return np.stack(rows) if windows > 1 else rows[0]


def to_rate(samples: NDArray, rate_hz: int, wanted_hz: int) -> NDArray:
    return samples if rate_hz == wanted_hz else soxr.resample(samples, rate_hz, wanted_hz)


def can_hear(folder: Path) -> bool:
    """Whether `open_ears` finds a CLAP that hears there; reads nothing but small files."""
    return _layout(folder) != ""


def _open(folder: Path) -> Clap:
    layout = _layout(folder)
    local = {"local_files_only": True}
    weights = {"dtype": torch.float32, "use_safetensors": True, **local}
    if not layout:
        raise Fault(
            "evaluation.cannot_hear",
            f"{folder.name} has no CLAP that hears (no audio half); name another one with --clap, e.g. a checkpoint of AudioLDM 2",
        )
    if layout == "bare":
        clap, words, extractor = _opened(ClapModel, folder, **weights), folder, folder
    else:
        extractor = folder / "feature_extractor"
        has_own = layout == "ranker" and (folder / "ranker_tokenizer").is_dir()
        words = folder / ("ranker_tokenizer" if has_own else "tokenizer")
        clap = None if layout == "halves" else _opened(ClapModel, folder / layout, **weights)
    audio = clap or _opened(ClapAudioModelWithProjection, folder / "audio_encoder", **weights)
    text = clap or _opened(ClapTextModelWithProjection, folder / "text_encoder", **weights)
    if getattr(getattr(audio.config, "audio_config", audio.config), "enable_fusion", False):
        raise Fault("evaluation.ears_broken", f"the CLAP in {folder.name} fuses pieces of a long sound, which is not supported; name one that does not")
    return Clap(
        tokenizer=_opened(AutoTokenizer, words, **local),
        text=text,
        audio=audio,
        extractor=_opened(ClapFeatureExtractor, extractor, **local),
    )


def _opened(kind: Any, folder: Path, **options: Any) -> Any:
    """From links to the plain files of `folder`: beside an `adapter_config.json` transformers opens an adapter, and the model that it names."""
    with tempfile.TemporaryDirectory(prefix="ears-") as place:
        own = Path(place) / folder.name
        own.mkdir()
        for path in folder.iterdir():
            if path.is_file() and path.suffix in PLAIN_SUFFIXES and not path.name.startswith("adapter"):
                (own / path.name).symlink_to(path.resolve())
        return kind.from_pretrained(own, **options)


def _layout(folder: Path) -> str:
    """Where the CLAP lies: `ranker`, `text_encoder` (whole), `halves` (text_encoder and audio_encoder), `bare` (the folder itself), or ""."""
    if not (folder / INDEX_FILE).is_file():
        return "bare" if _architecture(folder) == "ClapModel" else ""
    if not (folder / "feature_extractor").is_dir():
        return ""
    if _architecture(folder / "ranker") == "ClapModel":
        return "ranker"
    if _architecture(folder / "text_encoder") == "ClapModel":
        return "text_encoder"
    return "halves" if (folder / "audio_encoder").is_dir() else ""


def _architecture(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str((config.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError):
        return ""
