"""A CLAP that hears sounds and reads words, in whichever model it lies. Opened from a folder that is there; nothing is downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, ClapAudioModelWithProjection, ClapFeatureExtractor, ClapModel, ClapTextModelWithProjection

from gpu.cache import model_digest
from gpu.conditioning import clap_text_embeds
from gpu.errors import Fault
from gpu.models import INDEX_FILE

PEAK = 0.5
"""Every sound is heard at this peak, at which the trainer's front end hears them too; else a distance would measure the level."""
TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class Ears:
    """Maps words and sounds into one space.

    Attributes:
        audio: what hears: the whole `ClapModel`, or `ClapAudioModelWithProjection`.
        text: what reads: the same `ClapModel`, or `ClapTextModelWithProjection`.
        sha256: digest of the folder that it was opened from.
    """

    name: str
    audio: Any
    text: Any
    tokenizer: Any
    extractor: Any
    sha256: str

    @property
    def dimensions(self) -> int:
        return int(self.audio.config.projection_dim)

    @property
    def sample_rate_hz(self) -> int:
        return int(self.extractor.sampling_rate)

    @torch.no_grad()
    def read(self, texts: list[str]) -> NDArray[np.float64]:
        """[N, D], rows of length 1. Equal texts are read once."""
        distinct = list(dict.fromkeys(texts))
        rows = []
        for start in range(0, len(distinct), TEXTS_AT_ONCE):
            embeds = clap_text_embeds(self.tokenizer, self.text, distinct[start : start + TEXTS_AT_ONCE])
            rows.extend(embeds.double().cpu().numpy())
        by_text = dict(zip(distinct, rows, strict=True))
        return np.stack([by_text[text] for text in texts])

    @torch.no_grad()
    def hear(self, samples: NDArray, rate_hz: int) -> NDArray[np.float64]:
        """The embedding of one mono sound, [S] -> [D], of length 1. Only as much as this CLAP takes in at once is heard."""
        sound = np.nan_to_num(np.asarray(samples, dtype=np.float32), posinf=1.0, neginf=-1.0)
        peak = float(np.abs(sound).max(initial=0.0))
        sound = sound * (PEAK / peak) if peak > 0 else sound
        # Cut here: of a longer sound the extractor takes a piece at random.
        heard = soxr.resample(sound, rate_hz, self.sample_rate_hz)[: self.extractor.nb_max_samples]
        inputs = self.extractor([heard], sampling_rate=self.sample_rate_hz, return_tensors="pt")
        embed = self._embed(inputs.input_features, inputs.get("is_longer"))
        if not torch.isfinite(embed).all():
            raise Fault("evaluation.ears_broken", f"the CLAP of {self.name} answers a sound with values that are no numbers")
        return F.normalize(embed.double(), dim=-1)[0].cpu().numpy()

    def _embed(self, features: Tensor, is_longer: Any) -> Tensor:
        given: dict[str, Any] = {"input_features": features.to(self.audio.device, self.audio.dtype)}
        if is_longer is not None:
            given["is_longer"] = torch.as_tensor(is_longer).to(self.audio.device)
        if hasattr(self.audio, "get_audio_features"):
            return self.audio.get_audio_features(**given).pooler_output
        return self.audio(**given).audio_embeds


def open_ears(folder: Path, *, name: str, device: torch.device | str = "cpu", memo: Path | None = None) -> Ears:
    """The CLAP of a model folder (diffusers' layout), or one that transformers saved by itself.

    A model whose files hold a CLAP for ranking is heard with that one; else with the one that conditions it.

    Raises:
        Fault: `evaluation.cannot_hear`, there is none that hears; `evaluation.ears_broken`, it cannot be opened.
    """
    if not folder.is_dir():
        raise Fault("evaluation.cannot_hear", f"{folder} is not a folder with a CLAP")
    try:
        audio, text, tokenizer, extractor = _parts(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Fault("evaluation.ears_broken", f"the CLAP of {name} cannot be opened: {str(error).splitlines()[0]}") from error
    for part in {id(part): part for part in (audio, text)}.values():
        part.to(device).eval().requires_grad_(False)
    return Ears(name=name, audio=audio, text=text, tokenizer=tokenizer, extractor=extractor, sha256=model_digest(folder, memo=memo))


def can_hear(folder: Path) -> bool:
    """Whether `open_ears` finds a CLAP that hears there; reads nothing but small files."""
    return _layout(folder) != ""


def _parts(folder: Path) -> tuple[Any, Any, Any, Any]:
    layout = _layout(folder)
    local = {"local_files_only": True}
    weights = {"dtype": torch.float32, "use_safetensors": True, **local}
    if layout == "bare":
        clap = ClapModel.from_pretrained(folder, **weights)
        return clap, clap, AutoTokenizer.from_pretrained(folder, **local), ClapFeatureExtractor.from_pretrained(folder, **local)
    if not layout:
        raise Fault(
            "evaluation.cannot_hear",
            f"{folder.name} has no CLAP that hears (no audio half); name another one with --clap, e.g. a checkpoint of AudioLDM 2",
        )
    extractor = ClapFeatureExtractor.from_pretrained(folder / "feature_extractor", **local)
    tokenizer = "ranker_tokenizer" if layout == "ranker" and (folder / "ranker_tokenizer").is_dir() else "tokenizer"
    words = AutoTokenizer.from_pretrained(folder / tokenizer, **local)
    if layout == "halves":
        audio = ClapAudioModelWithProjection.from_pretrained(folder / "audio_encoder", **weights)
        return audio, ClapTextModelWithProjection.from_pretrained(folder / "text_encoder", **weights), words, extractor
    clap = ClapModel.from_pretrained(folder / layout, **weights)
    return clap, clap, words, extractor


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
