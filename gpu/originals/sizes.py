"""In which forms a model can be written, how large each will be, and why one cannot. Reads small files and headers; no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpu.config import ModelRef
from gpu.errors import Fault
from gpu.models import LORA_FILE, CheckpointFacts, ModelFacts, describe, read_checkpoint
from gpu.originals.contents import SIDE_FILE, kept_files
from gpu.originals.tensors import Entry, TensorFile, open_tensors

FORMATS = ("ckpt", "diffusers", "safetensors", "lora")
DTYPES = ("fp32", "fp16")


@dataclass(frozen=True)
class Kept:
    """What a side file says about the original that it was taken from.

    Attributes:
        names: every tensor of the original, in its order.
        same: tensors that are the same bits as another one, and kept once.
        stored: how the original spelt a name that a trainer had wrapped; empty where none was.
    """

    names: dict[str, Entry]
    same: dict[str, str]
    stored: dict[str, str] = field(default_factory=dict)


def export_sizes(ref: ModelRef, *, dtype: str = "fp32") -> dict[str, int | str]:
    """For each form the bytes that it will have, about, or one sentence that says why it is not possible.

    Raises:
        Fault: the model or the checkpoint on top of it cannot be described.
    """
    base = Path(ref.base)
    facts = describe(base)
    trained = read_checkpoint(Path(ref.weights)) if ref.weights else None
    whole = sum(path.stat().st_size for path in exported_files(base))
    half = sum(half_bytes(path) if path.suffix == ".safetensors" else path.stat().st_size for path in exported_files(base))
    makers: dict[str, Callable[[], int]] = {
        "ckpt": lambda: _ckpt_bytes(base, facts, dtype),
        "diffusers": lambda: half if dtype == "fp16" else whole,
        "safetensors": lambda: half,
        "lora": lambda: require_lora(ref, trained).stat().st_size,
    }
    found: dict[str, int | str] = {}
    for form, size in makers.items():
        try:
            found[form] = size()
        except Fault as fault:
            found[form] = fault.message
    return found


def require_original(base: Path, facts: ModelFacts) -> Path:
    """The side file of a model that can be written in the original layout.

    Raises:
        Fault: `checkpoint.no_original`, it did not come from an original file or the other tensors were left out;
            `checkpoint.heads`, its attention heads are not the original's; `export.impossible`, it predicts something else.
    """
    side = base / SIDE_FILE
    if not facts.original.get("layout"):
        raise Fault(
            "checkpoint.no_original",
            f"{facts.name} was not brought in from an original checkpoint, so it has not the tensors that the original code loads beside "
            "those of this model (its schedule, its second CLAP, its token tables)",
        )
    config = json.loads((base / "unet" / "config.json").read_text(encoding="utf-8"))
    heads, original = config.get("attention_head_dim"), facts.original.get("heads")
    if not isinstance(heads, list) or heads != original:
        raise Fault(
            "checkpoint.heads",
            f"{facts.name} has {heads} attention heads per level where the original counts {original}: there the same weights are another function",
        )
    if facts.prediction_type != "epsilon":
        raise Fault("export.impossible", f"{facts.name} predicts {facts.prediction_type}; the original code knows the noise (epsilon) alone")
    if not side.is_file():
        raise Fault(
            "checkpoint.no_original",
            f"{facts.name} was imported without the tensors that only the original layout needs ({SIDE_FILE} is not there)",
        )
    return side


def require_lora(ref: ModelRef, trained: CheckpointFacts | None) -> Path:
    """Raises Fault `export.impossible` when nothing, or everything, was trained."""
    if trained is None or not ref.weights:
        raise Fault("export.impossible", "it is a whole model; a LoRA is what a run with the method “lora” trains on top of one")
    if LORA_FILE not in trained.files:
        raise Fault("export.impossible", "it was trained with the method “full”: every weight has changed, and no small addition says how")
    return Path(ref.weights) / LORA_FILE


def exported_files(base: Path) -> list[Path]:
    """The files of a model folder that belong to the model, sorted, but for the side file."""
    return [base / name for name in kept_files(base) if name.name != SIDE_FILE]


def half_bytes(path: Path) -> int:
    """Bytes of a safetensors file's values when its fp32 and fp64 become fp16."""
    with open_tensors(path) as file:
        return sum(entry.numel * 2 if entry.dtype in ("F32", "F64", "BF16") else entry.size_bytes for entry in file.names.values())


def read_side_file(file: TensorFile) -> Kept:
    """Raises Fault `checkpoint.malformed` when the file is no side file."""
    try:
        inventory = json.loads(file.extras["inventory"])
        names = {str(name): Entry(tuple(shape), dtype) for name, dtype, shape in inventory}
        return Kept(names, dict(json.loads(file.extras["same"])), dict(json.loads(file.extras.get("stored", "{}"))))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise Fault("checkpoint.malformed", f"{file.path.name} does not list the original's tensors ({type(error).__name__})") from error


def is_weight(name: str, entry: Entry) -> bool:
    """Whether a tensor of the original may become fp16: a weight of a network, not the schedule or a counter."""
    return entry.dtype == "F32" and len(entry.shape) > 0 and "." in name


def _ckpt_bytes(base: Path, facts: ModelFacts, dtype: str) -> int:
    with open_tensors(require_original(base, facts)) as file:
        names = read_side_file(file).names
    sizes = ((entry.size_bytes // 2 if dtype == "fp16" and is_weight(name, entry) else entry.size_bytes) for name, entry in names.items())
    return sum(sizes)
