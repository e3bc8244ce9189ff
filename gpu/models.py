"""What a folder of weights is, read from its small files and the headers of its large ones: no torch, no weights in memory.

Two kinds of folder are known: a whole model in diffusers' layout, and a checkpoint of a run (`checkpoint.json` and the trained
part, which lies on top of a whole model).
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu.errors import Fault
from gpu.manifest import sha256_of

INDEX_FILE = "model_index.json"
STUDIO_FILE = "studio.json"
CHECKPOINT_FILE = "checkpoint.json"
UNET_FILE, LORA_FILE, RESUME_FILE = "unet.safetensors", "lora.safetensors", "resume.pt"
CHECKPOINT_VERSION = 1

FAMILIES = {"AudioLDM2Pipeline": "audioldm2", "AudioLDMPipeline": "audioldm", "AudioLDMT5Pipeline": "audioldm_t5"}
PARTS = {
    "audioldm2": ("unet", "vae", "vocoder", "text_encoder", "text_encoder_2", "projection_model", "language_model",
                  "tokenizer", "tokenizer_2", "feature_extractor", "scheduler"),
    "audioldm": ("unet", "vae", "vocoder", "text_encoder", "tokenizer", "scheduler"),
    "audioldm_t5": ("unet", "vae", "vocoder", "text_encoder", "tokenizer", "scheduler"),
}  # fmt: skip
"""The parts without which a family makes no sound; all of them are listed in `model_index.json`."""
EXTRAS = {
    "audioldm2": (),
    "audioldm": ("audio_encoder", "feature_extractor", "ranker"),
    "audioldm_t5": ("ranker", "ranker_tokenizer", "feature_extractor"),
}  # fmt: skip
"""Parts that may lie beside them, unlisted: the ears with which candidates are ranked and, in `audioldm`, sounds are conditions."""
WITHOUT_WEIGHTS = frozenset({"tokenizer", "tokenizer_2", "ranker_tokenizer", "feature_extractor", "scheduler"})
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
MAX_HEADER_BYTES = 100 * 2**20
DEFAULTS = ("audio_length_in_s", "num_inference_steps", "sampler", "guidance_scale")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What can be said about a whole model without loading it.

    Args:
        family: `audioldm2`, `audioldm` (a CLAP vector as class label, also at 48 kHz) or `audioldm_t5` (T5 alone).
        parameters: number of weights of each part, as its files count them.
        size_bytes: of all files.
        latent_scale: mel frames (and bins) per latent frame (and bin).
        ranks_by_clap: whether it has a CLAP that can also hear, so that candidates can be ranked.
        defaults: the parameters that its maker recommends, or else its family's, by the names of `gpu.config`.
        variant: what people call it: "AudioLDM-M", "AudioLDM 2", "AudioLDM 2 large", "AudioLDM 48 kHz".
        conditions_on_audio: whether a sound can stand in for its caption, as both have one embedding.
        can_generate, can_finetune: False for a model that is kept and written out, but cannot be used here; `why_not` says why.
        original: what the conversion from an original file noted down (`studio.json`), else empty.
    """

    name: str
    family: str
    pipeline_class: str
    sample_rate_hz: int
    n_mels: int
    latent_scale: int
    prediction_type: str
    parameters: dict[str, int]
    size_bytes: int
    ranks_by_clap: bool
    licence: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    conditions_on_audio: bool = False
    can_generate: bool = True
    can_finetune: bool = True
    why_not: str = ""
    original: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """The `checkpoint.json` of a run's checkpoint.

    Args:
        step: global step, optimizer updates since the base model.
        method: `lora` or `full`.
        weights: `ema` when the weights file holds the moving average, else `raw`.
        base: folder of the whole model below, and its digest.
        files: SHA-256 of every other file, by name.
        config: the run's parameters.
        metrics: what the validation at this step measured.
        model: `ModelFacts` of the base.
    """

    step: int
    method: str
    weights: str
    base: str
    base_sha256: str
    files: dict[str, str]
    config: dict[str, Any]
    metrics: dict[str, float]
    model: dict[str, Any]
    licence: str = ""
    manifest_digest: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    created_at: str = ""
    format_version: int = CHECKPOINT_VERSION

    @property
    def weights_file(self) -> str:
        """The file that was trained: its hash is the checkpoint's identity."""
        return LORA_FILE if self.method == "lora" else UNET_FILE

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe(folder: Path) -> ModelFacts:
    """The facts of a whole model.

    Raises:
        Fault: `checkpoint.unrecognised`, it is no model of a family that we know; `checkpoint.incomplete`, one of its parts or
            weights is missing or cut short; `checkpoint.pickled`, its weights are not safetensors.
    """
    folder = Path(folder)
    index = _model_index(folder)
    pipeline_class = index["_class_name"]
    family = FAMILIES[pipeline_class]
    absent = [part for part in PARTS[family] if part not in index or not (folder / part).is_dir()]
    if absent:
        raise Fault("checkpoint.incomplete", f"{folder.name}: {pipeline_class} needs {', '.join(absent)}, which the folder does not hold")

    parameters = {part: _count_parameters(folder / part) for part in PARTS[family] if part not in WITHOUT_WEIGHTS}
    vocoder = _component_config(folder, "vocoder")
    vae = _component_config(folder, "vae")
    studio = _read_json(folder / STUDIO_FILE) if (folder / STUDIO_FILE).is_file() else {}
    try:
        return ModelFacts(
            name=str(studio.get("name") or folder.name),
            family=family,
            pipeline_class=pipeline_class,
            sample_rate_hz=int(vocoder["sampling_rate"]),
            n_mels=int(vocoder["model_in_dim"]),
            latent_scale=2 ** (len(vae["block_out_channels"]) - 1),
            prediction_type=str(_component_config(folder, "scheduler").get("prediction_type", "epsilon")),
            parameters=parameters,
            size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            ranks_by_clap=index["text_encoder"][1] == "ClapModel",
            licence=str(studio.get("licence") or _readme_licence(folder)),
            defaults={name: studio.get("defaults", studio)[name] for name in DEFAULTS if name in studio.get("defaults", studio)},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Fault("checkpoint.incomplete", f"{folder.name}: a configuration file lacks or garbles {error}") from error


def read_checkpoint(folder: Path) -> CheckpointFacts:
    """The `checkpoint.json` of a run's checkpoint; the other files are not looked at.

    Raises:
        Fault: `checkpoint.incomplete`, the file is missing or unreadable; `checkpoint.unrecognised`, a later format.
    """
    path = Path(folder) / CHECKPOINT_FILE
    if not path.is_file():
        raise Fault("checkpoint.incomplete", f"{path} does not exist: this is not a checkpoint, or it was not saved to its end")
    raw = _read_json(path)
    if raw.get("format_version") != CHECKPOINT_VERSION:
        raise Fault("checkpoint.unrecognised", f"{path} has format {raw.get('format_version')!r}; this version reads {CHECKPOINT_VERSION}")
    try:
        return CheckpointFacts(**raw)
    except TypeError as error:
        raise Fault("checkpoint.incomplete", f"{path}: {error}") from error


def verify_checkpoint(folder: Path, *, only: tuple[str, ...] | None = None) -> CheckpointFacts:
    """Read a run's checkpoint and compare its files with their hashes.

    Args:
        only: names of the files that matter; None for all.
    Raises:
        Fault: as `read_checkpoint`, and `checkpoint.corrupt` when a file is missing or is not what was saved.
    """
    facts = read_checkpoint(folder)
    for name, expected in facts.files.items():
        if only is not None and name not in only:
            continue
        path = Path(folder) / name
        if not path.is_file():
            raise Fault("checkpoint.corrupt", f"{path} is missing")
        found = sha256_of(path)
        if found != expected:
            raise Fault("checkpoint.corrupt", f"{path} is damaged: its SHA-256 is {found[:12]}…, it was saved as {expected[:12]}…")
    return facts


def main(argv: list[str]) -> int:
    """`python -m gpu inspect FOLDER`: the facts as JSON."""
    if len(argv) != 1:
        print("usage: python -m gpu inspect FOLDER", file=sys.stderr)
        return 2
    folder = Path(argv[0])
    try:
        facts = verify_checkpoint(folder) if (folder / CHECKPOINT_FILE).is_file() else describe(folder)
    except Fault as fault:
        print(f"{fault.code}: {fault.message}", file=sys.stderr)
        return 1
    print(json.dumps(facts.as_dict(), indent=1, ensure_ascii=False))
    return 0


def _model_index(folder: Path) -> dict[str, Any]:
    expected = f"expected a folder with {INDEX_FILE} of {' or '.join(FAMILIES)}"
    if not folder.is_dir():
        raise Fault("checkpoint.unrecognised", f"{folder} is not a folder; {expected}")
    if not (folder / INDEX_FILE).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise Fault("checkpoint.unrecognised", f"{folder.name} holds {found}; {expected}")
    index = _read_json(folder / INDEX_FILE)
    if index.get("_class_name") not in FAMILIES:
        raise Fault("checkpoint.unrecognised", f"{folder.name} is a {index.get('_class_name')!r}; {expected}")
    return index


def _component_config(folder: Path, part: str) -> dict[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return _read_json(folder / part / name)


def _count_parameters(part: Path) -> int:
    """Weights in a part's safetensors files, from their headers."""
    files = sorted(part.glob("*.safetensors"))
    # Published repositories hold an fp16 copy beside the full one: only what is loaded counts.
    files = [file for file in files if ".fp16." not in file.name] or files
    if not files:
        pickles = sorted(path.name for path in part.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise Fault(
                "checkpoint.pickled",
                f"{part.parent.name}: {part.name} holds {', '.join(pickles)}, a pickle, which can run code when it is read; "
                "save the model with safe_serialization=True",
            )
        raise Fault("checkpoint.incomplete", f"{part.parent.name}: {part.name} holds no .safetensors file")
    return sum(_header_parameters(file) for file in files)


def _header_parameters(path: Path) -> int:
    """Weights that a safetensors file holds; its length is checked against its header.

    The format: eight bytes with the header's length, the header (JSON), the values.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length} bytes")
            header: Mapping[str, Any] = json.loads(file.read(length))
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault("checkpoint.incomplete", f"{path} is not a whole safetensors file: {error}") from error
    if end != size:
        raise Fault("checkpoint.incomplete", f"{path} has {size} bytes, its header promises {end}")
    return sum(math.prod(tensor["shape"]) for tensor in tensors)


def _readme_licence(folder: Path) -> str:
    """`license:` of the model card's front matter, or ""."""
    path = folder / "README.md"
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return ""
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, _, value = line.partition(":")
        if key.strip() in ("license", "licence"):
            return value.strip().strip("'\"")
    return ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Fault("checkpoint.incomplete", f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise Fault("checkpoint.incomplete", f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise Fault("checkpoint.incomplete", f"{path} does not hold a JSON object")
    return raw
