"""What a folder of weights is, read from its small files and the headers of its large ones: no torch, no weights in memory.

Two kinds of folder are known: a whole model in diffusers' layout, and a checkpoint of a run (`checkpoint.json` and the trained
part, which lies on top of a whole model).
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu.classes import require_known_classes
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
HALF = re.compile(r"\.fp16[.-]")
SHARD = re.compile(r"-\d{5}-of-\d{5}")
WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)(\.fp16)?(-\d{5}-of-\d{5})?(\.fp16)?\.safetensors")
"""The names under which the libraries look for a part's weights."""
SIZES = {128: "-S", 192: "-M", 256: "-L"}
NEEDS_PHONEMES = "it speaks from phonemes, which a text prompt does not give; it can be imported and exported"
MAX_HEADER_BYTES = 100 * 2**20
MAX_SAMPLE_RATE_HZ, MAX_MELS, MAX_TIMESTEPS = 384_000, 4_096, 100_000
NON_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non-?commercial", re.IGNORECASE)
DEFAULTS = ("audio_length_in_s", "num_inference_steps", "sampler", "guidance_scale")


def is_non_commercial(licence: str) -> bool:
    """Whether a licence, by its name, forbids commercial use."""
    return bool(NON_COMMERCIAL.search(licence))


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
        unconditional: what stands for no prompt, in training and in sampling: `prompt`, the encoded ""; or `zeros`, as that for
            the states that GPT-2 writes, which is what AudioLDM 2 itself was trained with (the T5 states are those of "").
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
    unconditional: str = "prompt"
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
            weights is missing or cut short; `checkpoint.pickled`, its weights are not safetensors;
            `checkpoint.malformed`, its configurations promise what cannot be. A class from elsewhere, in its index or in a
            configuration, is `checkpoint.unrecognised` too.
    """
    folder = Path(folder)
    index = read_index(folder)
    require_known_classes(folder, index)
    pipeline_class = index["_class_name"]
    family = FAMILIES[pipeline_class]
    speaks = _class_of(index, "text_encoder_2") == "VitsModel"
    absent = [
        part
        for part in PARTS[family]
        if (part not in index or not (folder / part).is_dir()) and not (speaks and part in ("tokenizer", "tokenizer_2"))
    ]
    if absent:
        raise Fault("checkpoint.incomplete", f"{folder.name}: {pipeline_class} needs {', '.join(absent)}, which the folder does not hold")

    extras = {part for part in EXTRAS[family] if (folder / part).is_dir()}
    parameters = {
        part: _count_parameters(folder / part) for part in (*PARTS[family], *sorted(extras)) if part not in WITHOUT_WEIGHTS
    }  # fmt: skip
    vocoder, vae, unet = (_component_config(folder, part) for part in ("vocoder", "vae", "unet"))
    _require_within(folder, "vocoder", vocoder, {"sampling_rate": MAX_SAMPLE_RATE_HZ, "model_in_dim": MAX_MELS, "upsample_rates": MAX_MELS})
    _require_within(folder, "scheduler", _component_config(folder, "scheduler"), {"num_train_timesteps": MAX_TIMESTEPS})
    studio = _read_json(folder / STUDIO_FILE) if (folder / STUDIO_FILE).is_file() else {}
    try:
        original = dict(studio.get("original") or {})
        if not speaks:
            _require_conditions_that_fit(folder, family, unet)
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
            ranks_by_clap=_class_of(index, "text_encoder") == "ClapModel" or _has_ears(family, extras),
            licence=str(studio.get("licence") or _readme_licence(folder)),
            defaults=_family_defaults(family, unet, original)
            | {name: studio.get("defaults", studio)[name] for name in DEFAULTS if name in studio.get("defaults", studio)},
            variant=str(original.get("variant") or _variant(family, unet, vocoder, speaks=speaks)),
            conditions_on_audio=family == "audioldm" and {"audio_encoder", "feature_extractor"} <= extras,
            unconditional="zeros" if family == "audioldm2" and original.get("layout") == "D" else "prompt",
            can_generate=not speaks,
            can_finetune=not speaks,
            why_not=NEEDS_PHONEMES if speaks else "",
            original=original,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Fault("checkpoint.incomplete", f"{folder.name}: a configuration file lacks or garbles {error}") from error


def require_usable(facts: ModelFacts) -> None:
    """Raises Fault `checkpoint.unsupported` for a model that is kept but can neither sound nor be trained here."""
    if not facts.can_generate:
        raise Fault("checkpoint.unsupported", f"{facts.name} ({facts.variant}) cannot be used here: {facts.why_not}")


def require_trainable(facts: ModelFacts, *, audio_conditioning: float = 0.0) -> None:
    """Whether a fine-tune with these options can start from the model; the site asks before anything waits in a queue.

    Raises:
        Fault: `checkpoint.unsupported`; `config.audio_conditioning`, sounds are to stand in for captions and it cannot hear.
    """
    if not facts.can_finetune:
        raise Fault("checkpoint.unsupported", f"{facts.name} ({facts.variant}) cannot be fine-tuned here: {facts.why_not}")
    if audio_conditioning > 0 and not facts.conditions_on_audio:
        raise Fault(
            "config.audio_conditioning",
            f"audio_conditioning ({audio_conditioning:g}) needs a model whose condition is one CLAP vector and that has CLAP's audio "
            f"half (audio_encoder and feature_extractor); {facts.name} is {facts.variant or facts.family} without it: set it to 0",
        )


def context_slots(cross_attention_dim: Any, widths: Sequence[int]) -> tuple[int | None, ...]:
    """Through which argument of an AudioLDM2UNet2DConditionModel each text stream reaches its cross-attention.

    Its blocks hold one transformer for each entry of a list; None is self-attention. Places 0 and 1 of that list read
    `encoder_hidden_states`, later ones `encoder_hidden_states_1`, whatever the stream: [None, 768, 1024] has GPT-2's states in
    the first and T5's in the second, but the lone stream of [None, 1024] comes through the first.

    Args:
        cross_attention_dim: of the UNet's configuration: a number, one a level, or a list a level.
        widths: of the streams, in the order in which a model's family makes them.
    Returns:
        For each stream 0, 1 or None, the last when the UNet does not attend to it.
    Raises:
        ValueError: the UNet attends to something that no stream fits, or one argument would have to carry two streams.
    """
    levels = cross_attention_dim if isinstance(cross_attention_dim, list | tuple) else [cross_attention_dim]
    places: dict[int, set[int]] = {}
    for level in levels:
        for place, width in enumerate(level if isinstance(level, list | tuple) else [level]):
            if width is not None:
                places.setdefault(place, set()).add(int(width))
    by_slot = {slot: sorted({w for place, found in places.items() if int(place > 1) == slot for w in found}) for slot in (0, 1)}
    if any(len(found) > 1 for found in by_slot.values()):
        raise ValueError(f"cross_attention_dim ({cross_attention_dim}) has states of two widths in places that read one argument")

    slots: list[int | None] = [None] * len(widths)
    start = 0
    for slot in (0, 1):
        for width in by_slot[slot]:
            stream = next((number for number in range(start, len(widths)) if widths[number] == width), None)
            if stream is None:
                raise ValueError(f"cross_attention_dim ({cross_attention_dim}) wants states of width {width}; there are {list(widths)}")
            slots[stream], start = slot, stream + 1
    if None in slots and len(places) > len(widths) - slots.count(None):
        raise ValueError(f"cross_attention_dim ({cross_attention_dim}) leaves no argument for one of the states of width {list(widths)}")
    return tuple(slots)


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
        raise Fault("checkpoint.unrecognised", f"{path} has format {str(raw.get('format_version'))[:40]!r}; this version reads {CHECKPOINT_VERSION}")
    try:
        facts = CheckpointFacts(**raw)
    except TypeError as error:
        raise Fault("checkpoint.incomplete", f"{path}: {str(error)[:200]}") from error
    tables = (facts.files, facts.config, facts.metrics, facts.model)
    # A name is of a file beside this one, and of none elsewhere.
    if not all(isinstance(table, dict) for table in tables) or not all(
        isinstance(digest, str) and name == Path(name).name and "\0" not in name for name, digest in facts.files.items()
    ):
        raise Fault("checkpoint.incomplete", f"{path} does not say which files it stands for: {str(facts.files)[:200]}")
    if type(facts.step) is not int or not all(isinstance(text, str) for text in (facts.method, facts.base, facts.base_sha256, facts.licence)):
        raise Fault("checkpoint.incomplete", f"{path}: step is {str(facts.step)[:40]} and method {str(facts.method)[:40]}")
    return facts


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
    """`python -m gpu inspect PATH`: the facts of a model's folder, a run's checkpoint or an original file, as JSON."""
    if len(argv) != 1:
        print("usage: python -m gpu inspect PATH", file=sys.stderr)
        return 2
    path = Path(argv[0])
    try:
        facts: Any
        if path.is_file():
            from gpu.originals.layouts import describe_file  # it reads this module

            facts = describe_file(path)
        else:
            facts = verify_checkpoint(path) if (path / CHECKPOINT_FILE).is_file() else describe(path)
    except Fault as fault:
        print(f"{fault.code}: {fault.message}", file=sys.stderr)
        return 1
    print(json.dumps(facts.as_dict(), indent=1, ensure_ascii=False))
    return 0


def read_index(folder: Path) -> dict[str, Any]:
    """The `model_index.json` of a whole model.

    Raises:
        Fault: `checkpoint.unrecognised`, `checkpoint.incomplete`.
    """
    expected = f"expected a folder with {INDEX_FILE} of {' or '.join(FAMILIES)}"
    if not folder.is_dir():
        raise Fault("checkpoint.unrecognised", f"{folder} is not a folder; {expected}")
    if not (folder / INDEX_FILE).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise Fault("checkpoint.unrecognised", f"{folder.name} holds {found}; {expected}")
    index = _read_json(folder / INDEX_FILE)
    if str(index.get("_class_name")) not in FAMILIES:
        raise Fault("checkpoint.unrecognised", f"{folder.name} is a {index.get('_class_name')!r}; {expected}")
    return index


def _class_of(index: Mapping[str, Any], part: str) -> str:
    """The class that the index names for a part, or ""."""
    named = index.get(part)
    return str(named[1]) if isinstance(named, list) and len(named) == 2 else ""


def _has_ears(family: str, extras: set[str]) -> bool:
    if "feature_extractor" not in extras:
        return False
    if family == "audioldm":
        return bool(extras & {"audio_encoder", "ranker"})
    return {"ranker", "ranker_tokenizer"} <= extras


def _require_conditions_that_fit(folder: Path, family: str, unet: Mapping[str, Any]) -> None:
    """The UNet must attend to what the family's text encoders give, or it would be deaf to prompts without a word."""
    if family == "audioldm" and not unet.get("class_embed_type"):
        raise Fault("checkpoint.unrecognised", f"{folder.name}: the UNet has no class embedding, through which a prompt would reach it")
    if unet.get("_class_name") != "AudioLDM2UNet2DConditionModel":
        if family != "audioldm":
            raise Fault("checkpoint.unrecognised", f"{folder.name}: the UNet is a {unet.get('_class_name')}, not AudioLDM 2's")
        return
    try:
        slots = context_slots(unet["cross_attention_dim"], _stream_widths(folder, family))
    except ValueError as error:
        raise Fault("checkpoint.unrecognised", f"{folder.name}: the UNet does not fit its text encoders: {error}") from error
    if family != "audioldm" and all(slot is None for slot in slots):
        raise Fault("checkpoint.unrecognised", f"{folder.name}: the UNet attends to no text ({unet['cross_attention_dim']})")


def _stream_widths(folder: Path, family: str) -> list[int]:
    """Of the states that a prompt becomes, in the order in which the family makes them."""
    if family == "audioldm2":
        return [int(_component_config(folder, "language_model")["n_embd"]), int(_component_config(folder, "text_encoder_2")["d_model"])]
    return [int(_component_config(folder, "text_encoder")["d_model"])] if family == "audioldm_t5" else []


def _variant(family: str, unet: Mapping[str, Any], vocoder: Mapping[str, Any], *, speaks: bool) -> str:
    """What people call a model of this architecture. Music and full differ in nothing that a configuration could say."""
    if family == "audioldm_t5":
        return "AudioLDM Flan-T5"
    if family == "audioldm2":
        deep = unet.get("transformer_layers_per_block", 1) not in (1, [1])
        return "AudioLDM 2 speech" if speaks else "AudioLDM 2 large" if deep else "AudioLDM 2"
    if vocoder["sampling_rate"] == 48_000:
        return "AudioLDM 48 kHz"
    return "AudioLDM" + SIZES.get(unet["block_out_channels"][0], "")


def _family_defaults(family: str, unet: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
    """What the family's own program takes: AudioLDM 1 is guided by 2.5, everything that came after it by 3.5."""
    first = family == "audioldm" and unet.get("_class_name") == "UNet2DConditionModel" and original.get("layout", "A") == "A"
    return {"guidance_scale": 2.5 if first else 3.5}


def _component_config(folder: Path, part: str) -> dict[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return _read_json(folder / part / name)


def weight_files(part: Path) -> list[Path]:
    """The safetensors files of a part that are loaded: the full copy, whole or in shards, else the half-precision one.

    Raises:
        Fault: `checkpoint.pickled`, there are none, but pickles; `checkpoint.incomplete`, none at all, or a shard is missing.
    """
    files = sorted(path for path in part.glob("*.safetensors") if WEIGHTS.fullmatch(path.name))
    # Published repositories hold an fp16 copy beside the full one: only what is loaded counts.
    full = [file for file in files if not HALF.search(file.name)]
    indexes = [path for path in sorted(part.glob("*.safetensors.index*.json")) if bool(HALF.search(path.name)) == (not full)]
    files = full or files
    whole = [file for file in files if not SHARD.search(file.name)]
    if whole:
        return whole
    if indexes:
        named = sorted({str(name) for name in _read_json(indexes[0]).get("weight_map", {}).values()})
        absent = [name for name in named if not (part / name).is_file()]
        if absent or not named:
            raise Fault("checkpoint.incomplete", f"{part.parent.name}: {part.name} lacks {', '.join(absent) or 'its shards'}")
        return [part / name for name in named]
    if files:
        raise Fault("checkpoint.incomplete", f"{part.parent.name}: {part.name} holds shards without their .safetensors.index.json")
    pickles = sorted(path.name for path in part.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise Fault(
            "checkpoint.pickled",
            f"{part.parent.name}: {part.name} holds {', '.join(pickles)}, a pickle, which can run code when it is read; "
            "save the model with safe_serialization=True",
        )
    raise Fault("checkpoint.incomplete", f"{part.parent.name}: {part.name} holds no .safetensors file of a name that is looked for (model, diffusion_pytorch_model)")


def _count_parameters(part: Path) -> int:
    """Weights in a part's safetensors files, from their headers."""
    counts = [_header_counts(file) for file in weight_files(part)]
    _require_possible(part, _read_json(part / "config.json"), tensors=sum(tensors for _, tensors in counts))
    return sum(parameters for parameters, _ in counts)


def _require_possible(part: Path, config: Mapping[str, Any], *, tensors: int) -> None:
    """Raises Fault `checkpoint.malformed` for a configuration with more layers than its files hold tensors.

    A library builds the layers first and looks at the files afterwards: ten million of them take hours and all memory.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            _require_possible(part, value, tensors=tensors)
        counts = [len(value), *value] if isinstance(value, list) else [value]
        most = max((count for count in counts if isinstance(count, int)), default=0)
        if (("layer" in key or key == "depths") and most > tensors) or (isinstance(value, list) and len(value) > tensors):
            raise Fault("checkpoint.malformed", f"{part.parent.name}: {part.name} has {key} {str(value)[:60]}, and {tensors} tensors in its files")


def _require_within(folder: Path, part: str, config: Mapping[str, Any], limits: Mapping[str, int]) -> None:
    """Raises Fault `checkpoint.malformed` for a number that would fill all memory or divide by zero later on."""
    for key, most in limits.items():
        given = config.get(key, 1)
        numbers = given if isinstance(given, list) else [given]
        if not all(type(number) in (int, float) and 1 <= number <= most for number in numbers):
            raise Fault("checkpoint.malformed", f"{folder.name}: {part} has {key} {str(given)[:60]}; 1 to {most} are possible")


def _header_counts(path: Path) -> tuple[int, int]:
    """Weights and tensors that a safetensors file holds; its length is checked against its header.

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
        parameters = sum(math.prod(tensor["shape"]) for tensor in tensors)
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Fault("checkpoint.incomplete", f"{path} is not a whole safetensors file: {error}") from error
    if end != size:
        raise Fault("checkpoint.incomplete", f"{path} has {size} bytes, its header promises {end}")
    return parameters, len(tensors)


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
    except (OSError, ValueError, RecursionError) as error:
        raise Fault("checkpoint.incomplete", f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise Fault("checkpoint.incomplete", f"{path} does not hold a JSON object")
    return raw
