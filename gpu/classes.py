"""The classes that the parts of a model are, by name: whatever else a folder's papers name is code from elsewhere. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu.errors import Fault

LIBRARIES = (None, "diffusers", "transformers", "audioldm2")
"""Of a part; the last is diffusers' own module for that pipeline."""
SCHEDULER = re.compile(r"\w+Scheduler")
CLAP_TEXT = ("ClapModel", "ClapTextModel", "ClapTextModelWithProjection")
T5 = ("T5EncoderModel", "T5ForConditionalGeneration", "T5Model")
TOKENIZERS = tuple(f"{kind}{fast}" for kind in ("RobertaTokenizer", "T5Tokenizer") for fast in ("", "Fast"))
CLASSES: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel", "AudioLDM2UNet2DConditionModel"),
    "vae": ("AutoencoderKL",),
    "vocoder": ("SpeechT5HifiGan",),
    "text_encoder": (*CLAP_TEXT, *T5),
    "text_encoder_2": (*T5, "VitsModel"),
    "projection_model": ("AudioLDM2ProjectionModel",),
    # Published folders name the first of the two, and the weights fit both.
    "language_model": ("GPT2Model", "GPT2LMHeadModel"),
    "audio_encoder": ("ClapModel", "ClapAudioModel", "ClapAudioModelWithProjection"),
    "ranker": ("ClapModel",),
    "tokenizer": TOKENIZERS,
    "tokenizer_2": (*TOKENIZERS, "VitsTokenizer"),
    "ranker_tokenizer": TOKENIZERS,
    "feature_extractor": ("ClapFeatureExtractor",),
}
"""What the published folders of these families name for each part."""
SMALL_BYTES = 2**20


def require_known_classes(folder: Path, index: Mapping[str, Any], *, name: str = "") -> None:
    """Whether the index and the configurations of a model folder name only classes that such a model has.

    Args:
        name: what people call the model; the folder's own otherwise.
    Raises:
        Fault: `checkpoint.unrecognised`, with the part and the class.
    """
    name = name or folder.name
    for part, about in index.items():
        if isinstance(about, list) and (len(about) != 2 or about[0] not in LIBRARIES or not _is_known(part, about[1])):
            _refuse(name, part, f"a {about[1]} of {about[0]}" if len(about) == 2 else f"{about}")
    for part in (*CLASSES, "scheduler"):
        for named in _configured(folder / part):
            if not _is_known(part, named):
                _refuse(name, part, f"a {named} by its configuration")


def _refuse(model: str, part: str, what: str) -> None:
    raise Fault("checkpoint.unrecognised", f"{model}: its {part[:80]} is {what[:120]}; only classes of diffusers and transformers that such a model has are known")


def _is_known(part: str, named: Any) -> bool:
    if part == "scheduler":
        return isinstance(named, str) and bool(SCHEDULER.fullmatch(named))
    # A part that no family has is never opened.
    return named is None or part not in CLASSES or named in CLASSES[part]


def _configured(folder: Path) -> Iterator[Any]:
    """The classes that a part's own configuration names; what is unreadable is somebody else's to refuse."""
    path = folder / ("scheduler_config.json" if folder.name == "scheduler" else "config.json")
    try:
        if not path.is_file() or path.stat().st_size > SMALL_BYTES:
            return
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(config, dict):
        return
    if "_class_name" in config:
        yield config["_class_name"]
    named = config.get("architectures")
    yield from named if isinstance(named, list) else [] if named is None else [named]
