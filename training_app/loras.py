"""A LoRA or a UNet in a file of its own, laid on a registered model: checked against that one's shapes, then written as a run's checkpoint.

A LoRA changes the weight W of a layer [out, in] to W + B A * alpha / rank, with A [rank, in] and B [out, rank]. Other tools name the
two factors in several ways (peft, diffusers, kohya) and keep alpha apart; here they have peft's names and alpha = rank, so alpha is
multiplied into B. No torch: the files are small, and this runs where pages are served.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpu.config import FinetuneConfig
from gpu.errors import Fault
from gpu.events import now
from gpu.manifest import sha256_of
from gpu.models import CHECKPOINT_FILE, LORA_FILE, UNET_FILE, CheckpointFacts
from gpu.originals.finite import require_finite_tensors
from gpu.originals.tensors import Entry, TensorFile, open_tensors
from gpu.originals.writing import Planned, write_safetensors
from training_app.models import Checkpoint
from training_app.sources import UNET, Found

TARGETS = re.compile(r"(.+\.to_(?:q|k|v|out\.0))\.weight")
FACTOR = re.compile(
    r"(?P<layer>.+?)[._]?(?:lora_linear_layer[._]|lora[._]|processor[._])?(?:lora_)?(?P<factor>lora_A|lora_B|A|B|down|up|alpha)(?:\.default)?(?:\.weight)?"
)
PREFIX = re.compile(r"^(?:base_model[._]model[._]|lora_unet_|unet[._]|transformer[._])+")
MAX_BYTES = 4 * 2**30


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a LoRA file lies on a UNet.

    Args:
        layers: names of the two factors in the file by the layer's name in the UNet: (A, B, alpha or None).
        shapes: [out, in] of every layer that can carry a LoRA.
        rank: the largest in the file; smaller ones are filled with zeros.
    """

    layers: dict[str, tuple[str, str, str | None]]
    shapes: dict[str, tuple[int, int]]
    rank: int


def require_fit(found: Found, base: Checkpoint) -> Fit:
    """How the LoRA lies on the base model's UNet, by names and shapes; for a whole UNet an empty fit.

    Raises:
        Fault: `checkpoint.mismatch`, with the first layer that does not fit.
    """
    if base.format != Checkpoint.Format.DIFFUSERS:
        raise Fault("checkpoint.mismatch", f"{base.name} is itself a run's checkpoint; {found.label} lies on a whole model")
    own = _unet_shapes(base)
    with open_tensors(found.path) as file:
        if found.kind == UNET:
            _require_same(file, own, base.name)
            return Fit(layers={}, shapes={}, rank=0)
        if file.size_bytes > MAX_BYTES:
            raise Fault("checkpoint.mismatch", f"{found.label} has {file.size_bytes} bytes; a LoRA has at most {MAX_BYTES}")
        shapes = {match[1]: shape for name, shape in own.items() if (match := TARGETS.fullmatch(name)) and len(shape) == 2}
        return _fit(file, shapes, base.name)


def fitting(found: Found, bases: list[Checkpoint]) -> list[Checkpoint]:
    """Those of the models that it can lie on; the one that it was trained on first."""
    fits = []
    for base in bases:
        try:
            require_fit(found, base)
        except Fault:
            continue
        fits.append(base)
    return sorted(fits, key=lambda base: base.sha256 != found.facts.base_sha256)


def write_checkpoint(found: Found, base: Checkpoint, folder: Path, *, licence: str = "", report: Callable[[int, int], None]) -> None:
    """Write the weights and their checkpoint.json into a new folder.

    Raises:
        Fault: as `require_fit`; `checkpoint.not_finite`, a value in the file, or a factor with its alpha, is no number.
    """
    fit = require_fit(found, base)
    with open_tensors(found.path) as file:
        require_finite_tensors(file)
    folder.mkdir(parents=True)
    licence = licence or found.licence or base.licence
    if found.kind == UNET:
        name, method, rank = UNET_FILE, "full", FinetuneConfig().lora_rank
        shutil.copyfile(found.path, folder / name)
    else:
        name, method, rank = LORA_FILE, "lora", fit.rank
        metadata = {"alpha": str(rank), "base_sha256": base.sha256, "format": "pt", "licence": licence, "rank": str(rank)}
        tensors = [_planned(layer, values) for layer, values in sorted(_lora_tensors(found.path, fit, report).items())]
        # Not the library's own writer: it leaves the metadata in an order of chance, and equal LoRAs would have another hash each time.
        write_safetensors(folder / name, tensors, metadata=metadata, on_bytes=lambda size: None)
    facts = CheckpointFacts(
        step=found.facts.step or 0,
        method=method,
        weights="raw",
        base=str(base.folder),
        base_sha256=base.sha256,
        files={name: sha256_of(folder / name)},
        config={**FinetuneConfig().to_dict(), "method": method, "lora_rank": rank},
        metrics={},
        model=base.facts,
        licence=licence,
        created_at=now(),
    )
    (folder / CHECKPOINT_FILE).write_text(json.dumps(facts.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _lora_tensors(path: Path, fit: Fit, report: Callable[[int, int], None]) -> dict[str, np.ndarray]:
    """Both factors of every layer, in the names of our own files; layers that the file leaves alone get zeros."""
    tensors = {}
    with open_tensors(path) as file:
        for number, (layer, (rows, columns)) in enumerate(sorted(fit.shapes.items())):
            report(number, len(fit.shapes))
            down, up = np.zeros((fit.rank, columns), np.float32), np.zeros((rows, fit.rank), np.float32)
            if layer in fit.layers:
                a, b, alpha = fit.layers[layer]
                rank = file.names[a].shape[0]
                scale = (float(_values(file, alpha).reshape(-1)[0]) if alpha else _file_alpha(file, rank)) / rank
                with np.errstate(all="ignore"):
                    down[:rank], up[:, :rank] = _values(file, a).reshape(rank, columns), _values(file, b).reshape(rows, rank) * scale
                if not (np.isfinite(down).all() and np.isfinite(up).all()):
                    raise Fault("checkpoint.not_finite", f"{file.path.name}: {layer} with its alpha ({scale * rank:g}) is infinite or no number")
            tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"] = down, up
    return tensors


def _planned(name: str, values: np.ndarray) -> Planned:
    return Planned(name, Entry(values.shape, "F32"), lambda: [values.astype("<f4").tobytes()])


def _unet_shapes(base: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shapes of the base's UNet, from headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    files = sorted((base.folder / "unet").glob("*.safetensors"))
    for path in [path for path in files if ".fp16." not in path.name] or files:
        with open_tensors(path) as file:
            shapes |= {name: entry.shape for name, entry in file.names.items()}
    if not shapes:
        raise Fault("checkpoint.missing", f"the UNet of {base.name} is no longer at {base.path}")
    return shapes


def _require_same(file: TensorFile, own: dict[str, tuple[int, ...]], base: str) -> None:
    """Raises Fault `checkpoint.mismatch` unless the file holds exactly the weights of that UNet."""
    for name in sorted(own.keys() | file.names.keys()):
        there = file.names[name].shape if name in file.names else None
        if there != own.get(name):
            raise Fault("checkpoint.mismatch", f"{file.path.name}: {name[:120]} is {there and list(there)}; in {base} it is {own.get(name) and list(own[name])}")


def _fit(file: TensorFile, shapes: dict[str, tuple[int, int]], base: str) -> Fit:
    flat = {layer.replace(".", "_"): layer for layer in shapes}
    parts: dict[str, dict[str, str]] = {}
    for name in file.names:
        match = FACTOR.fullmatch(name)
        layer = flat.get(_flat(match["layer"])) if match else None
        if layer is None:
            raise Fault("checkpoint.mismatch", f"{file.path.name} changes {name[:120]}, which {base} has no place for")
        factor = {"lora_A": "A", "down": "A", "lora_B": "B", "up": "B"}.get(match["factor"], match["factor"])
        parts.setdefault(layer, {})[factor] = name
    rank = 0
    layers = {}
    for layer, names in parts.items():
        if not {"A", "B"} <= names.keys():
            raise Fault("checkpoint.mismatch", f"{file.path.name} has only one of the two factors of {layer}")
        rows, columns = shapes[layer]
        down, up = file.names[names["A"]], file.names[names["B"]]
        own = down.shape[0] if down.shape else 0
        if not own or down.numel != own * columns or up.numel != rows * own or up.shape[0] != rows:
            raise Fault(
                "checkpoint.mismatch",
                f"{file.path.name}: {layer} has factors {list(down.shape)} and {list(up.shape)}; that layer of {base} is [{rows}, {columns}]",
            )
        rank = max(rank, own)
        layers[layer] = (names["A"], names["B"], names.get("alpha"))
    if not layers:
        raise Fault("checkpoint.mismatch", f"{file.path.name} holds no LoRA")
    return Fit(layers=layers, shapes=shapes, rank=rank)


def _flat(layer: str) -> str:
    """`unet.down_blocks.0….attn1.processor.to_out_lora` and its kin as the UNet's own name with underscores."""
    name = PREFIX.sub("", layer).replace(".processor", "").replace(".", "_").removesuffix("_lora")
    return f"{name}_0" if name.endswith("to_out") else name


def _file_alpha(file: TensorFile, rank: int) -> float:
    """The alpha that the file's metadata names for all layers; without one, alpha = rank."""
    text = file.extras.get("alpha") or file.extras.get("ss_network_alpha") or ""
    if not text:
        try:
            raw = json.loads(file.extras.get("lora_adapter_metadata") or "{}")
            text = str(raw.get("unet.lora_alpha") or raw.get("lora_alpha") or "")
        except (ValueError, AttributeError):
            text = ""
    try:
        return float(text)
    except ValueError:
        return float(rank)


def _values(file: TensorFile, name: str) -> np.ndarray:
    """As float32; BF16 is the upper half of a float32."""
    values = file.array(name)
    if file.names[name].dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
