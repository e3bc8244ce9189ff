"""Writes a model in the form that another tool reads, with what a run has trained on top of it.

    ckpt         the original layout, for the original code: the exact tensors of the file that was imported, the UNet replaced by
                 what was trained, both as raw weights and as moving average (AudioLDM 1 and the training repository sample with the
                 average, AudioLDM 2 with the raw weights: a file with only one would sound untrained in the other)
    diffusers    a folder for AudioLDMPipeline or AudioLDM2Pipeline; in a zip where the destination ends so
    safetensors  the whole model in one file, fp16, with its configurations and vocabularies; `convert` reads it back
    lora         what a run with LoRA has trained: for a file ending in .safetensors the form of diffusers' load_lora_adapter, else a
                 folder that PEFT opens as well

Values are streamed; only a LoRA is merged in memory, where the UNet has to be for that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from gpu.cache import model_digest
from gpu.config import ExportJob
from gpu.errors import Fault
from gpu.lora import TARGET_MODULES
from gpu.models import INDEX_FILE, LORA_FILE, STUDIO_FILE, UNET_FILE, CheckpointFacts, ModelFacts, describe, read_index, verify_checkpoint
from gpu.originals.cards import CARD_FILE, card, how_to_open, write_card
from gpu.originals.contents import is_part_weights, kept_files
from gpu.originals.convert import FILES, link_or_copy
from gpu.originals.layouts import EMA, LORA_PREFIXES, UNET, WHOLE_KEY, lora_half, recognise
from gpu.originals.names import FLAT, ROWS, SAME, Link, ema_name, part_links, unet_links
from gpu.originals.packing import pack
from gpu.originals.sizes import (
    DTYPES,
    FORMATS,
    Kept,
    exported_files,
    is_weight,
    read_side_file,
    require_lora,
    require_original,
)
from gpu.originals.tensors import Entry, TensorFile, open_tensors
from gpu.originals.writing import Planned, appearing, size_of, write_safetensors, write_torch
from gpu.pipelines import apply_weights, require_base

LINEAGE_KEY = "lineage"
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
Report = Callable[[str, int, int], None]
Values = Callable[[], Iterable[bytes | memoryview]]


def export(job: ExportJob, report: Report) -> Path:
    """Do what the job says and return what was written.

    Raises:
        Fault: `checkpoint.no_original`, `checkpoint.heads`, `export.impossible`, before anything is written; `checkpoint.changed`,
            `checkpoint.corrupt`, `checkpoint.mismatch`; `disk.full`; `file.unusable`, the destination exists.
    """
    for name, value, known in (("format", job.format, FORMATS), ("dtype", job.dtype, DTYPES)):
        if value not in known:
            raise Fault("config.invalid", f"{name} ({value!r}) must be one of {', '.join(known)}")
    with ExitStack() as stack:
        source = _Source(job, report, stack)
        writer = {"ckpt": _write_ckpt, "diffusers": _write_diffusers, "safetensors": _write_whole, "lora": _write_lora}[job.format]
        if job.format == "diffusers" and Path(job.destination).suffix == ".zip":
            writer = _write_zip
        writer(source, Path(job.destination))
    return Path(job.destination)


class _Source:
    """The model that is written: its folder, its open files, and the UNet as it is with what was trained on top."""

    def __init__(self, job: ExportJob, report: Report, stack: ExitStack) -> None:
        self.job, self.report, self.stack = job, report, stack
        self.base = Path(job.model.base)
        self.facts: ModelFacts = describe(self.base)
        self.trained: CheckpointFacts | None = None
        if job.model.base_sha256 and model_digest(self.base) != job.model.base_sha256:
            raise Fault("checkpoint.changed", f"{self.base} has changed since the job was made")
        if job.model.weights:
            self.trained = verify_checkpoint(Path(job.model.weights), only=(UNET_FILE, LORA_FILE))
            require_base(self.trained, job.model.base_sha256, Path(job.model.weights))
        self._parts: dict[str, dict[str, Planned]] = {}

    def part(self, name: str) -> dict[str, Planned]:
        """The weights of a part by name; those of the UNet with what was trained."""
        if name not in self._parts:
            self._parts[name] = self._unet() if name == "unet" and self.trained else self._files(self.base / name)
        return self._parts[name]

    def tensors(self, path: Path) -> TensorFile:
        return self.stack.enter_context(open_tensors(path))

    def _files(self, folder: Path) -> dict[str, Planned]:
        found: dict[str, Planned] = {}
        for name in kept_files(self.base):
            if name.parent.name == folder.name and is_part_weights(name):
                found |= planned_of(self.tensors(self.base / name))
        return found

    def _unet(self) -> dict[str, Planned]:
        assert self.trained is not None
        folder = Path(self.job.model.weights or "")
        if LORA_FILE not in self.trained.files:
            return planned_of(self.tensors(folder / UNET_FILE))
        self.report("merging", 0, 0)
        kind = getattr(diffusers, read_index(self.base)["unet"][1])
        unet = kind.from_pretrained(self.base / "unet", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True)
        apply_weights(unet, folder, base_sha256=self.job.model.base_sha256)
        return {name: _planned_tensor(name, tensor) for name, tensor in unet.state_dict().items()}

    @property
    def licence(self) -> str:
        return str(self.job.provenance.get("licence") or (self.trained.licence if self.trained else "") or self.facts.licence)

    @property
    def name(self) -> str:
        return str(self.job.provenance.get("name") or self.facts.name)

    def lineage(self) -> dict[str, Any]:
        """Where the result comes from, as plain values."""
        trained = self.trained
        found: dict[str, Any] = {"base": self.facts.name, "variant": self.facts.variant, "licence": self.licence}
        found |= {key: self.facts.original[key] for key in ("source_name", "source_sha256", "weights") if key in self.facts.original}
        if trained:
            found |= {"method": trained.method, "step": trained.step, "base_sha256": trained.base_sha256,
                      "checkpoint_sha256": trained.files[trained.weights_file]}  # fmt: skip
        return found | {key: value for key, value in self.job.provenance.items() if isinstance(value, str | int | float | bool)}

    def story(self) -> list[str]:
        """The lineage in sentences, for a card."""
        told = [f"Written by AudioLDM Studio from {self.facts.name} ({self.facts.variant or self.facts.family})."]
        if "source_name" in self.facts.original:
            told.append(f"That model was brought in from `{self.facts.original['source_name']}`.")
        if self.trained:
            how = "a LoRA, merged into the UNet" if self.trained.method == "lora" else "every weight of the UNet"
            told.append(f"Fine-tuned for {self.trained.step} steps: {how}.")
        return told


def planned_of(file: TensorFile) -> dict[str, Planned]:
    return {name: Planned(name, entry, lambda name=name: file.chunks(name)) for name, entry in file.names.items()}


def _planned_tensor(name: str, tensor: Tensor) -> Planned:
    array = tensor.detach().contiguous().numpy()
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16", torch.int32: "I32", torch.bool: "BOOL", torch.float64: "F64"}
    return Planned(name, Entry(tuple(tensor.shape), kinds[tensor.dtype]), lambda: _pieces(array))


def _pieces(array: np.ndarray) -> Iterator[memoryview]:
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), 8 * 2**20):
        yield memoryview(flat[start : start + 8 * 2**20])


def cast(tensor: Planned, dtype: str) -> Planned:
    """The same tensor in another type of floats; other types stay.

    Raises:
        Fault: `export.impossible`, when its turn comes, for a value that does not fit.
    """
    if tensor.entry.dtype == dtype or tensor.entry.dtype not in FLOATS:
        return tensor

    def values() -> Iterator[bytes]:
        for piece in tensor.values():
            given = np.frombuffer(piece, FLOATS[tensor.entry.dtype])
            if tensor.entry.dtype == "BF16":
                given = (given.astype("<u4") << 16).view("<f4")
            with np.errstate(over="ignore"):
                made = given.astype(FLOATS[dtype])
            if np.isinf(made).any() and np.isfinite(given).all():
                raise Fault("export.impossible", f"{tensor.name} holds values that fp16 cannot: write it as fp32")
            yield made.tobytes()

    return Planned(tensor.name, Entry(tensor.entry.shape, dtype), values)


def _write_ckpt(source: _Source, destination: Path) -> None:
    """The original layout: every tensor that the imported file had, in its order."""
    side = source.tensors(require_original(source.base, source.facts))
    kept = read_side_file(side)
    if destination.suffix not in (".ckpt", ".pth", ".pt", ".bin", ""):
        raise Fault("export.impossible", f"{destination.name}: an original checkpoint ends in .ckpt or .pth")
    tensors = [_typed(tensor, kept, source) for tensor in _originals(source, side, kept)]
    tensors = [replace(tensor, name=kept.stored.get(tensor.name, tensor.name)) for tensor in tensors]
    step = source.trained.step if source.trained else source.facts.original.get("global_step")
    extras: dict[str, Any] = {LINEAGE_KEY: json.dumps(source.lineage(), ensure_ascii=False)}
    if isinstance(step, int):
        extras["global_step"] = step
    total = size_of(tensors)
    with appearing(destination, size_bytes=total) as target:
        write_torch(target, tensors, extras=extras, on_bytes=_counter(source.report, total))


def _originals(source: _Source, side: TensorFile, kept: Kept) -> list[Planned]:
    facts = recognise(kept.names, source=side.path.name)
    weights = str(source.facts.original.get("weights") or "raw")
    links = {link.original: (part, link) for part, found in part_links(facts, kept.names, weights=weights).items() for link in found}
    if source.trained:
        raw = unet_links(list(kept.names), layers=facts.layers_per_block, per_site=len(facts.contexts), weights="raw")
        for link in raw:
            links[link.original] = ("unet", link)
            average = ema_name(link.original.removeprefix(UNET))
            if average in kept.names:
                links[average] = ("unet", Link(average, link.targets))
    held = planned_of(side)

    def planned(name: str) -> Planned:
        part, link = links.get(name, ("", None))
        if link is not None and link.how != ROWS and set(link.targets) <= source.part(part).keys():
            return _joined(link, kept.names[name], source.part(part))
        if link is not None and name in held and set(link.targets) <= source.part(part).keys():
            return _with_rows(link, held[name], side, source.part(part))
        if name in held:
            return held[name]
        if name in kept.same:
            return Planned(name, kept.names[name], planned(kept.same[name]).values)
        raise Fault("checkpoint.no_original", f"{source.facts.name}: {name} of the original is neither in {side.path.name} nor in a part")

    return [planned(name) for name in kept.names]


def _joined(link: Link, entry: Entry, part: Mapping[str, Planned]) -> Planned:
    """A tensor of the original from those that hold its values here, one behind the other."""
    pieces = [part[target] for target in link.targets]
    if link.how in (SAME, FLAT) and pieces[0].entry.numel != entry.numel:
        raise Fault("checkpoint.mismatch", f"{link.targets[0]} has the shape {list(pieces[0].entry.shape)}, the original's {list(entry.shape)}")

    def values() -> Iterator[bytes | memoryview]:
        for piece in pieces:
            yield from piece.values()

    return Planned(link.original, Entry(entry.shape, pieces[0].entry.dtype), values)


def _with_rows(link: Link, table: Planned, side: TensorFile, part: Mapping[str, Planned]) -> Planned:
    """A table whose first rows are tensors of their own here."""

    def values() -> Iterator[bytes]:
        whole = np.array(side.array(link.original))
        for index, target in enumerate(link.targets):
            row = cast(part[target], table.entry.dtype)
            whole[index] = np.frombuffer(b"".join(row.values()), whole.dtype)
        yield whole.tobytes()

    return Planned(link.original, table.entry, values)


def _typed(tensor: Planned, kept: Kept, source: _Source) -> Planned:
    """In the type that the original had; what was trained is written as exactly as it was."""
    entry = kept.names[tensor.name]
    tuned = source.trained is not None and tensor.name.startswith((UNET, f"{EMA}diffusion_model"))
    wanted = "F32" if tuned and entry.dtype in FLOATS else entry.dtype
    if source.job.dtype == "fp16" and is_weight(tensor.name, Entry(entry.shape, wanted)):
        wanted = "F16"
    return cast(tensor, wanted) if wanted in FLOATS else tensor


def _write_diffusers(source: _Source, destination: Path) -> None:
    """The folder again: files that did not change are hard links where the file system can."""
    half = source.job.dtype == "fp16"
    files = exported_files(source.base)
    rewritten = [path for path in files if path.suffix == ".safetensors" and (half or (source.trained and path.parent.name == "unet"))]
    copied = [path for path in files if path not in rewritten and path.name not in (CARD_FILE, STUDIO_FILE, INDEX_FILE)]
    copied = [path for path in copied if not (path.name.endswith(".safetensors.index.json") and any(path.parent == other.parent for other in rewritten))]
    parts = {path.parent.name: _weights_name(path.name) for path in rewritten}
    planned = {part: [cast(tensor, "F16") if half else tensor for tensor in source.part(part).values()] for part in parts}
    total = sum(path.stat().st_size for path in copied) + sum(map(size_of, planned.values()))
    with appearing(destination, size_bytes=total) as target:
        count = _counter(source.report, total)
        target.mkdir(parents=True)
        for path in copied:
            place = target / path.relative_to(source.base)
            place.parent.mkdir(exist_ok=True)
            link_or_copy(path.resolve(), place, count, link=path.suffix == ".safetensors")
        for part, file_name in parts.items():
            write_safetensors(target / part / file_name, planned[part], metadata={"format": "pt"}, on_bytes=count)
        _write_about(source, target)
        describe(target)


def _write_zip(source: _Source, destination: Path) -> None:
    """The same folder in one file, for a browser."""
    with appearing(destination, size_bytes=0) as target:
        folder = target.with_name(f"{target.name}-folder")
        try:
            _write_diffusers(source, folder)
            pack(folder, target, top=destination.stem, report=source.report)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _weights_name(name: str) -> str:
    """One file where there may have been several, or a half-exact one alone."""
    return f"{name.partition('.')[0].partition('-0')[0]}.safetensors"


def _write_about(source: _Source, target: Path) -> None:
    index = read_index(source.base)
    if index.get("language_model", [None, None])[1] == "GPT2Model":
        # What published folders name; the pipeline can no longer continue from that class, and the file fits both.
        index["language_model"] = ["transformers", "GPT2LMHeadModel"]
    (target / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    studio = _studio(source)
    (target / STUDIO_FILE).write_text(json.dumps(studio, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(target, name=source.name, licence=source.licence, paragraphs=[*source.story(), how_to_open(index["_class_name"])])


def _studio(source: _Source) -> dict[str, Any]:
    path = source.base / STUDIO_FILE
    studio = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {**studio, "name": source.name, "licence": source.licence, "defaults": source.facts.defaults, "lineage": source.lineage()}


def _write_whole(source: _Source, destination: Path) -> None:
    """One safetensors file: `unet.…`, `vae.…` and so on in fp16, and the small files as bytes under `files/`."""
    if destination.suffix != ".safetensors":
        raise Fault("export.impossible", f"{destination.name}: the file must end in .safetensors")
    files = exported_files(source.base)
    parts = dict.fromkeys(path.parent.name for path in files if path.suffix == ".safetensors")
    tensors = [
        cast(Planned(f"{part}.{name}", tensor.entry, tensor.values), "F16") for part in parts for name, tensor in source.part(part).items()
    ]
    small = {path.relative_to(source.base).as_posix(): path.read_bytes() for path in files if path.suffix != ".safetensors"}
    small = {name: content for name, content in small.items() if not name.endswith(".safetensors.index.json")}
    small[STUDIO_FILE] = json.dumps(_studio(source), ensure_ascii=False).encode()
    small[CARD_FILE] = card(name=source.name, licence=source.licence, paragraphs=source.story()).encode()
    tensors += [
        Planned(f"{FILES}{name}", Entry((len(content),), "U8"), lambda content=content: [content]) for name, content in sorted(small.items())
    ]
    facts = source.facts
    told = {"family": facts.family, "variant": facts.variant, "name": source.name, "licence": source.licence,
            "can_generate": facts.can_generate, "can_finetune": facts.can_finetune, "why_not": facts.why_not,
            "lineage": source.lineage(), "studio": _studio(source)}  # fmt: skip
    total = size_of(tensors)
    with appearing(destination, size_bytes=total) as target:
        metadata = {"format": "pt", WHOLE_KEY: json.dumps(told, ensure_ascii=False), "licence": source.licence}
        write_safetensors(target, tensors, metadata=metadata, on_bytes=_counter(source.report, total))


def _write_lora(source: _Source, destination: Path) -> None:
    path = require_lora(source.job.model, source.trained)
    file = source.tensors(path)
    rank = max(entry.shape[0] for name, entry in file.names.items() if (found := lora_half(name)) and found[1] == "A")
    alpha = float(file.extras.get("alpha") or rank)
    targets = file.extras.get("target_modules", ",".join(TARGET_MODULES)).split(",")
    tensors = {_bare(name): tensor for name, tensor in planned_of(file).items()}
    if source.job.dtype == "fp16":
        tensors = {name: cast(tensor, "F16") for name, tensor in tensors.items()}
    adapter = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": targets, "bias": "none", "lora_dropout": 0.0,
               "task_type": None, "inference_mode": True, "base_model_name_or_path": source.facts.name}  # fmt: skip
    metadata = {
        "format": "pt", "rank": str(rank), "alpha": f"{alpha:g}", "target_modules": ",".join(targets), "licence": source.licence,
        "lineage": json.dumps(source.lineage(), ensure_ascii=False),
        # diffusers reads the adapter's configuration from here; without it, it guesses alpha.
        "lora_adapter_metadata": json.dumps({key: adapter[key] for key in ("r", "lora_alpha", "target_modules", "bias", "lora_dropout")}),
        **{key: file.extras[key] for key in ("base_sha256", "step") if key in file.extras},
    }  # fmt: skip
    total = sum(map(size_of, [tensors.values()]))
    if destination.suffix == ".safetensors":
        with appearing(destination, size_bytes=total) as target:
            _write_renamed(target, tensors, "", metadata, source.report, total)
        return
    with appearing(destination, size_bytes=2 * total) as target:
        target.mkdir(parents=True)
        _write_renamed(target / "adapter_model.safetensors", tensors, LORA_PREFIXES[0], metadata, source.report, total)
        _write_renamed(target / "pytorch_lora_weights.safetensors", tensors, "", metadata, source.report, total)
        (target / "adapter_config.json").write_text(json.dumps(adapter, indent=1) + "\n", encoding="utf-8")
        use = ("It changes the UNet of its base model alone. With PEFT: `PeftModel.from_pretrained(pipeline.unet, FOLDER)`. With diffusers, for a "
               "UNet2DConditionModel: `pipeline.unet.load_lora_adapter(FOLDER, weight_name=\"pytorch_lora_weights.safetensors\", prefix=None)`.")  # fmt: skip
        below = []
        if source.trained and UNET_FILE in source.trained.files:
            below = ["It was trained on top of another fine-tune of this base, which has to be below it: without that one it sounds different."]
        write_card(target, name=f"{source.name} (LoRA)", licence=source.licence, paragraphs=[*source.story(), use, *below])


def _bare(name: str) -> str:
    for prefix in LORA_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _write_renamed(path: Path, tensors: Mapping[str, Planned], prefix: str, metadata: Mapping[str, str], report: Report, total: int) -> None:
    renamed = [Planned(prefix + name, tensor.entry, tensor.values) for name, tensor in tensors.items()]
    write_safetensors(path, renamed, metadata=metadata, on_bytes=_counter(report, total))


def _counter(report: Report, total: int) -> Callable[[int], None]:
    done = 0
    report("exporting", 0, total)

    def count(size: int) -> None:
        nonlocal done
        done += size
        report("exporting", min(done, total), total)

    return count


