"""Brings a model from elsewhere into a model folder: an original checkpoint, our own single file, a diffusers folder, a repository.

Values go from file to file in pieces and are never all in memory. What no part of the folder holds (the other copy of the UNet, the
schedule, the re-ranking CLAP of AudioLDM 2, AudioMAE, the loss) goes to `original.safetensors`, exact, so that
`gpu.originals.export` can write the original layout again. That file's metadata lists the original's tensors in their order, and
which of them were the same bits twice and are kept once.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from diffusers import DDIMScheduler
from transformers import ClapFeatureExtractor

from gpu.architectures import CLAP_FEATURES
from gpu.classes import require_known_classes
from gpu.config import ConvertJob
from gpu.errors import Fault
from gpu.models import CHECKPOINT_FILE, INDEX_FILE, STUDIO_FILE, ModelFacts, describe
from gpu.originals import hub
from gpu.originals.cards import CARD_FILE, write_card
from gpu.originals.contents import SIDE_FILE, is_part_weights, kept_files, kept_names
from gpu.originals.finite import require_finite, watched
from gpu.originals.layouts import EMA, LICENCE, T5_INNER, UNET, WHOLE_KEY, OriginalFacts, WholeFacts, describe_tensors
from gpu.originals.names import FLAT, ROWS, SAME, THIRDS, Link, part_links, twins
from gpu.originals.parts import DIFFUSERS_FILE, PIPELINES, TRANSFORMERS_FILE, UNLISTED, Part, build_parts
from gpu.originals.tensors import Entry, TensorFile, open_tensors
from gpu.originals.vocabularies import find_tokenizer
from gpu.originals.writing import Planned, appearing, require_space, size_of, write_safetensors

FILES = "files/"
STRICT = frozenset({"unet", "vae", "vocoder"})
WEIGHTS = ("auto", "ema", "raw")
SCHEDULE = {"num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "epsilon"}
PUBLISHED_BETAS = (0.0015, 0.0195)
FOLDER_BYTES = 32 * 2**20  # tokenizers, configurations and cards
GUIDANCE = {"audioldm": 2.5, "audioldm2": 3.5, "audioldm_t5": 3.5}
_SAFE_NAME = re.compile(r"(?!\.)[\w.-]+(?:/(?!\.)[\w.-]+)?")

Report = Callable[[str, int, int], None]
"""Told (stage, bytes done, bytes in all). It may raise to end the work; nothing half-made is left then."""


def convert(job: ConvertJob, report: Report) -> ModelFacts:
    """Do what the job says and return the facts of the new folder.

    Raises:
        Fault: the source is not a model, not whole, damaged or changed meanwhile (`checkpoint.*`); `tokenizers.missing`, before anything heavy;
            `disk.full`; `hub.*`; `file.unusable`, the destination exists.
    """
    if job.weights not in WEIGHTS:
        raise Fault("config.invalid", f"weights ({job.weights!r}) must be one of {', '.join(WEIGHTS)}")
    if os.path.lexists(job.destination):
        raise Fault("file.unusable", f"{job.destination} exists already: choose another place, or remove it")
    lineage = {"source_name": Path(job.source).name}
    source = Path(job.source)
    if job.source.startswith(hub.PREFIX):
        source, commit = hub.fetch(job.source, report=report)
        lineage = {"source_name": job.source, "commit": commit}
    if source.is_dir():
        _adopt(job, source, lineage, report)
    else:
        with open_tensors(source) as file:
            facts = describe_tensors(file)
            if isinstance(facts, OriginalFacts):
                _Conversion(job, file, facts, lineage, report).run()
            elif isinstance(facts, WholeFacts):
                _unpack(job, file, lineage, report)
            else:
                what = "a LoRA" if facts.kind == "lora" else "the weights of a UNet alone"
                raise Fault("checkpoint.not_whole", f"{source.name} is {what}: it needs the model that it was trained on below it")
    return describe(Path(job.destination))


class _Conversion:
    """One file in an original layout on its way into a folder."""

    def __init__(self, job: ConvertJob, file: TensorFile, facts: OriginalFacts, lineage: Mapping[str, str], report: Report) -> None:
        self.job, self.file, self.lineage, self.report = job, file, dict(lineage), report
        self.weights = facts.default_weights if job.weights == "auto" else job.weights
        if self.weights not in facts.weights:
            raise Fault("checkpoint.incomplete", f"{file.path.name} holds no moving average ({EMA}*): import its raw weights")
        self.scale_factor, self.betas, warnings = _known_values(file)
        told = facts.warnings if self.weights == "ema" else (text for text in facts.warnings if "moving average" not in text)
        self.facts = replace(facts, warnings=(*told, *warnings))

    def run(self) -> None:
        file, facts, job = self.file, self.facts, self.job
        folder = Path(job.tokenizers) if job.tokenizers else None
        tokenizers = self._tokenizers(folder)
        parts = build_parts(facts, file.names, scale_factor=self.scale_factor)
        links = part_links(facts, file.names, weights=self.weights)
        planned = {name: _plan(file, part, links[name]) for name, part in parts.items()}

        lowest = sum(size_of(tensors) for tensors in planned.values())
        with appearing(Path(job.destination), size_bytes=lowest + FOLDER_BYTES) as target:
            self.lineage["source_sha256"] = file.verify(lambda done: self.report("checking", done, file.size_bytes))
            held = _held(links, planned)
            same = self._same_twice()
            side = [name for name in file.names if name not in held and name not in same] if job.keep_original else []
            total = lowest + sum(file.names[name].size_bytes for name in side)
            if job.keep_original:
                require_space(target.parent, total + FOLDER_BYTES)
            progress = _Progress(self.report, "converting", total)
            target.mkdir(parents=True)
            for name, part in parts.items():
                part.save_config(target / name, dtype={"F16": "float16", "BF16": "bfloat16"}.get(facts.dtype, "float32"))
                write_safetensors(target / name / part.weights_file, planned[name], metadata={"format": "pt"}, on_bytes=progress)
            if job.keep_original:
                self._write_side_file(target / SIDE_FILE, side, same, progress)
            for name, tokenizer in tokenizers.items():
                tokenizer.save_pretrained(target / name)
            ClapFeatureExtractor(**CLAP_FEATURES).save_pretrained(target / "feature_extractor")
            DDIMScheduler(**SCHEDULE, **self.betas).save_pretrained(target / "scheduler")
            self._write_index(target, parts, tokenizers)
            self._write_studio(target)
            describe(target)
            file.require_unchanged()

    def _tokenizers(self, folder: Path | None) -> dict[str, Any]:
        rows = self.facts.vocabularies
        slots = {"D": {"tokenizer": "roberta", "tokenizer_2": "t5"}, "C": {"tokenizer": "t5", "ranker_tokenizer": "roberta"}}
        wanted = {name: slot for name, slot in slots.get(self.facts.layout, {"tokenizer": "roberta"}).items() if slot in rows}
        found = {}
        for name, slot in wanted.items():
            try:
                found[name] = find_tokenizer(slot, rows[slot], folder=folder)
            except Fault:
                # The speaking variant cannot sound here anyway; it is kept and written out again.
                if self.facts.can_generate:
                    raise
        return found

    def _same_twice(self) -> dict[str, str]:
        """Tensors of which the same bits are held under another name as well: copy → kept."""
        pairs = twins(self.facts, self.file.names, weights=self.weights)
        progress = _Progress(self.report, "comparing", sum(self.file.names[copy].size_bytes for copy, _ in pairs))
        same = {}
        for copy, kept in pairs:
            if self.file.same(copy, kept):
                same[copy] = kept
            progress(self.file.names[copy].size_bytes)
        warnings = []
        other = [copy for copy, _ in pairs if copy.startswith((UNET, EMA))]
        if other and all(copy in same for copy in other):
            warnings.append("its raw weights and their moving average are the same, as in a file that holds one of them twice")
        if any(copy.startswith(T5_INNER) and copy not in same for copy, _ in pairs):
            warnings.append("its two copies of T5 differ: the one that feeds the UNet is used for both, as in diffusers")
        self.facts = replace(self.facts, warnings=(*self.facts.warnings, *warnings))
        return same

    def _write_side_file(self, path: Path, names: Sequence[str], same: Mapping[str, str], progress: Callable[[int], None]) -> None:
        inventory = [[name, entry.dtype, list(entry.shape)] for name, entry in self.file.names.items()]
        metadata = {
            "format": "pt",
            "inventory": json.dumps(inventory, ensure_ascii=False, separators=(",", ":")),
            "same": json.dumps(dict(same), ensure_ascii=False, separators=(",", ":")),
            "licence": self.job.licence or LICENCE,
        }
        if self.file.stored:
            metadata["stored"] = json.dumps(self.file.stored, ensure_ascii=False, separators=(",", ":"))
        tensors = [Planned(name, self.file.names[name], lambda name=name: self.file.chunks(name)) for name in names]
        write_safetensors(path, tensors, metadata=metadata, on_bytes=progress)

    def _write_index(self, target: Path, parts: Mapping[str, Part], tokenizers: Mapping[str, Any]) -> None:
        index: dict[str, Any] = {"_class_name": PIPELINES[self.facts.family], "_diffusers_version": diffusers.__version__}
        for name, part in parts.items():
            if name not in UNLISTED:
                index[name] = [part.library, part.class_name]
        for name, tokenizer in tokenizers.items():
            if name != "ranker_tokenizer":
                index[name] = ["transformers", type(tokenizer).__name__]
        if self.facts.layout == "D":
            index["feature_extractor"] = ["transformers", "ClapFeatureExtractor"]
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        _write_json(target / INDEX_FILE, index)

    def _write_studio(self, target: Path) -> None:
        facts, job = self.facts, self.job
        told = {
            "name": job.name or self.file.path.stem,
            "licence": job.licence or LICENCE,
            "defaults": {"audio_length_in_s": 10.24, "guidance_scale": GUIDANCE[facts.family]},
            "original": {
                "layout": facts.layout,
                "variant": facts.variant,
                "weights": self.weights,
                **self.lineage,
                "global_step": facts.global_step,
                "heads": list(facts.heads),
                "facts": facts.as_dict(),
            },
        }
        if facts.written_by != "AudioLDM 1 code":  # 48 kHz too: it comes from AudioLDM 2's program
            told["defaults"]["guidance_scale"] = 3.5
        if earlier := _earlier_lineage(self.file):
            told["lineage"] = earlier
        _write_json(target / STUDIO_FILE, told)
        write_card(
            target,
            name=told["name"],
            licence=told["licence"],
            paragraphs=[
                f"{facts.variant}, brought in from the original checkpoint `{self.lineage['source_name']}` "
                f"(layout {facts.layout}, {facts.written_by}; SHA-256 {self.lineage['source_sha256']}). "
                f"The UNet holds the file's {'moving average (EMA)' if self.weights == 'ema' else 'raw weights'}.",
                "Attention heads are counted as the original code does: "
                f"{', '.join(map(str, facts.heads))} per level (`attention_head_dim` in `unet/config.json`).",
                *facts.warnings,
            ],
        )


def _earlier_lineage(file: TensorFile) -> dict[str, Any]:
    """What an earlier export of ours wrote into the file about where it comes from, else nothing."""
    try:
        found = json.loads(str(file.extras.get("lineage", "")))
    except (ValueError, RecursionError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str | int | float)} if isinstance(found, dict) else {}


class _Progress:
    """Adds up bytes for one stage."""

    def __init__(self, report: Report, stage: str, total: int) -> None:
        self.report, self.stage, self.total, self.done = report, stage, total, 0
        report(stage, 0, total)

    def __call__(self, size: int) -> None:
        self.done += size
        self.report(self.stage, self.done, self.total)


def _known_values(file: TensorFile) -> tuple[float, dict[str, Any], list[str]]:
    """The scale factor, the schedule as diffusers' words, and what is odd about the file's small tensors.

    Raises:
        Fault: `checkpoint.incomplete`, a value is not there; `checkpoint.malformed`, it cannot be true;
            `checkpoint.unrecognised`, its noise schedule is none that we know.
    """
    warnings = []
    scale = _values(file, "scale_factor")
    if scale.size != 1 or not np.isfinite(scale).all() or scale.reshape(-1)[0] <= 0:
        raise Fault("checkpoint.malformed", f"{file.path.name}: scale_factor is {scale.reshape(-1)[:3].tolist()}; it must be one number above 0")
    scale_factor = float(scale.reshape(-1)[0])
    if scale_factor == 1.0:
        warnings.append("its scale_factor is exactly 1: the latents were never measured, so it may have been trained without")
    betas = _values(file, "betas").astype(np.float64)
    if "logvar" in file.names and np.any(_values(file, "logvar")):
        warnings.append("its logvar is not zero; the original never trains it, and it is not used")
    return scale_factor, _schedule(file, betas), warnings


def _schedule(file: TensorFile, betas: np.ndarray) -> dict[str, Any]:
    if betas.shape != (SCHEDULE["num_train_timesteps"],) or not np.isfinite(betas).all() or (betas <= 0).any():
        raise Fault("checkpoint.unrecognised", f"{file.path.name}: betas has the shape {list(betas.shape)}, expected 1000 numbers above 0")
    ends = [PUBLISHED_BETAS, (float(betas[0]), float(betas[-1]))]
    for start, end in ends:
        if not 0 < start < end < 1:
            continue
        for name, expected in (
            ("scaled_linear", np.linspace(math.sqrt(start), math.sqrt(end), len(betas)) ** 2), ("linear", np.linspace(start, end, len(betas))),
        ):  # fmt: skip
            if np.abs(expected - betas).max() < 1e-6:
                return {"beta_schedule": name, "beta_start": start, "beta_end": end}
    raise Fault("checkpoint.unrecognised", f"{file.path.name}: its noise schedule goes from {betas[0]:g} to {betas[-1]:g} along a curve that we do not know")


def _values(file: TensorFile, name: str) -> np.ndarray:
    if name not in file.names:
        raise Fault("checkpoint.incomplete", f"{file.path.name} lacks {name}")
    return np.array(file.array(name))


def _plan(file: TensorFile, part: Part, links: Sequence[Link]) -> list[Planned]:
    """What a part's weights file will hold, checked against what the part expects.

    Raises:
        Fault: `checkpoint.incomplete`, a weight is missing; `checkpoint.unrecognised`, one has another shape or no place.
    """
    planned = {}
    for link in links:
        if link.original not in file.names:
            raise Fault("checkpoint.incomplete", f"{file.path.name} lacks {link.original}")
        for index, target in enumerate(link.targets):
            if target not in part.expects:
                if part.name in STRICT:
                    raise Fault("checkpoint.unrecognised", f"{file.path.name}: {link.original} has no place in a {part.class_name}")
                continue
            entry = _entry_of(file, link)
            if entry.shape != part.expects[target]:
                raise Fault(
                    "checkpoint.unrecognised",
                    f"{file.path.name}: {link.original} of shape {list(file.names[link.original].shape)} does not fit {part.name}'s "
                    f"{target} of shape {list(part.expects[target])}",
                )
            planned[target] = Planned(target, entry, _piece(file, link, index))
    planned = {tensor.name: tensor for tensor in _made_here(part)} | planned
    expected = {name for name in part.expects if not part.partial or name.startswith("text_encoder.")}
    missing = sorted(expected - planned.keys() - part.tied)
    if missing:
        raise Fault(
            "checkpoint.incomplete",
            f"{file.path.name}: {part.name} lacks {len(missing)} of {len(expected)} weights, for example {missing[0]}",
        )
    return list(planned.values())


def _held(links: Mapping[str, Sequence[Link]], planned: Mapping[str, Sequence[Planned]]) -> set[str]:
    """The original's tensors that the parts hold whole."""
    held = set()
    for part, tensors in planned.items():
        written = {tensor.name for tensor in tensors}
        held |= {link.original for link in links[part] if link.how != ROWS and written.issuperset(link.targets)}
    return held


def _entry_of(file: TensorFile, link: Link) -> Entry:
    """Shape and type of a link's targets."""
    entry = file.names[link.original]
    shape = entry.shape
    if link.how == FLAT:
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
    elif link.how == THIRDS:
        shape = (shape[0] // 3, *shape[1:]) if shape and shape[0] % 3 == 0 else ()
    elif link.how == ROWS:
        shape = shape[1:] if shape and shape[0] >= len(link.targets) else ()
    return Entry(shape, entry.dtype)


def _piece(file: TensorFile, link: Link, index: int) -> Callable[[], Iterable[bytes | memoryview]]:
    """One target's values. Raises Fault `checkpoint.not_finite` when their turn comes and they are no numbers, as of a run that diverged."""
    entry = _entry_of(file, link)
    return lambda: watched(_bytes_of(file, link, index), source=file.path.name, name=link.original, entry=entry)


def _bytes_of(file: TensorFile, link: Link, index: int) -> Iterator[bytes | memoryview]:
    if link.how in (SAME, FLAT):
        yield from file.chunks(link.original)
        return
    whole = file.array(link.original)
    rows = len(whole) // 3
    part = whole[index] if link.how == ROWS else whole[index * rows : (index + 1) * rows]
    yield memoryview(np.ascontiguousarray(part).reshape(-1).view(np.uint8))


def _made_here(part: Part) -> list[Planned]:
    """Weights that the libraries keep and the original does not: they are always the same.

    The vocoder's statistics change nothing, as the original takes the mel as it is. Files that transformers from 4.31 on has
    written lack RoBERTa's positions.
    """
    made: dict[str, tuple[str, Callable[[tuple[int, ...]], np.ndarray]]] = {
        "mean": ("F32", lambda shape: np.zeros(shape, "<f4")),
        "scale": ("F32", lambda shape: np.ones(shape, "<f4")),
        "text_model.embeddings.position_ids": ("I64", lambda shape: np.arange(shape[1], dtype="<i8").reshape(shape)),
        "text_model.embeddings.token_type_ids": ("I64", lambda shape: np.zeros(shape, "<i8")),
    }
    return [
        Planned(name, Entry(part.expects[name], dtype), lambda make=make, shape=part.expects[name]: [make(shape).tobytes()])
        for name, (dtype, make) in made.items()
        if name in part.expects
    ]


def _unpack(job: ConvertJob, file: TensorFile, lineage: Mapping[str, str], report: Report) -> None:
    """Our own single file back into the folder that it was made from."""
    parts: dict[str, list[str]] = {}
    files = []
    for name in file.names:
        if name.startswith(FILES):
            files.append(name)
        else:
            parts.setdefault(name.partition(".")[0], []).append(name)
    strange = [name for name in files if not _SAFE_NAME.fullmatch(name.removeprefix(FILES)) or file.names[name].dtype != "U8"]
    strange += [name for name in parts if not re.fullmatch(r"\w+", name)]
    if strange:
        raise Fault("checkpoint.malformed", f"{file.path.name} names {strange[0][:80]!r}, which is no file of a model folder")
    with appearing(Path(job.destination), size_bytes=file.size_bytes + FOLDER_BYTES) as target:
        digest = file.verify(lambda done: report("checking", done, file.size_bytes))
        progress = _Progress(report, "converting", file.size_bytes)
        target.mkdir(parents=True)
        for name in files:
            path = target / name.removeprefix(FILES)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(file.array(name).tobytes())
            progress(file.names[name].size_bytes)
        index = _read_json(target / INDEX_FILE)
        require_known_classes(target, index, name=file.path.name)
        for name in {path.relative_to(target) for path in target.rglob("*") if path.is_file()} - set(kept_files(target)):
            (target / name).unlink()
        for part, names in parts.items():
            # Published indexes name diffusers' own module for AudioLDM 2, `audioldm2`, in its place.
            library = index.get(part, ["transformers"])[0]
            path = target / part / (DIFFUSERS_FILE if library in ("diffusers", "audioldm2") else TRANSFORMERS_FILE)
            if not kept_names([f"{part}/{path.name}"], index):
                continue
            path.parent.mkdir(exist_ok=True)
            tensors = [Planned(name.partition(".")[2], file.names[name], lambda name=name: _watched(file, name)) for name in names]
            write_safetensors(path, tensors, metadata={"format": "pt"}, on_bytes=progress)
        _note(target, job, {**json.loads(file.extras[WHOLE_KEY]).get("studio", {})}, {**lineage, "source_sha256": digest})
        describe(target)
        file.require_unchanged()


def _watched(file: TensorFile, name: str) -> Iterator[bytes | memoryview]:
    return watched(file.chunks(name), source=file.path.name, name=name, entry=file.names[name])


def _adopt(job: ConvertJob, source: Path, lineage: Mapping[str, str], report: Report) -> None:
    """A folder in diffusers' layout, checked and copied; hard links where the file system can."""
    if (source / CHECKPOINT_FILE).is_file():
        raise Fault("checkpoint.not_whole", f"{source.name} is a run's checkpoint, which lies on top of a whole model: export it instead")
    describe(source)
    wanted = kept_files(source)
    for name in wanted:
        if (source / name).is_symlink() and not job.source.startswith(hub.PREFIX):
            raise Fault("checkpoint.link", f"{name} is a link")
    total = sum((source / name).stat().st_size for name in wanted)
    with appearing(Path(job.destination), size_bytes=total) as target:
        progress = _Progress(report, "copying", total)
        for name in wanted:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy((source / name).resolve(), target / name, progress, link=name.suffix == ".safetensors")
        weights = [target / name for name in wanted if is_part_weights(name)]
        require_finite(weights, on_bytes=_Progress(report, "checking", sum(path.stat().st_size for path in weights)))
        studio = _read_json(target / STUDIO_FILE) if (target / STUDIO_FILE).is_file() else {}
        (target / STUDIO_FILE).unlink(missing_ok=True)
        _note(target, job, studio, lineage)
        describe(target)


def link_or_copy(source: Path, target: Path, progress: Callable[[int], None], *, link: bool) -> None:
    if link:
        try:
            target.hardlink_to(source)
        except OSError:
            link = False
        else:
            progress(source.stat().st_size)
    if not link:
        with open(source, "rb") as reader, open(target, "wb") as writer:
            while piece := reader.read(8 * 2**20):
                writer.write(piece)
                progress(len(piece))
        shutil.copymode(source, target)


def _note(target: Path, job: ConvertJob, studio: dict[str, Any], lineage: Mapping[str, str]) -> None:
    """Name, licence and where it came from, in `studio.json`; a card only where there is none."""
    facts = describe(target)
    studio = {**studio, "name": job.name or studio.get("name") or Path(job.destination).name}
    licence = job.licence or studio.get("licence") or facts.licence
    if licence:
        studio["licence"] = licence
    studio.setdefault("lineage", dict(lineage))
    _write_json(target / STUDIO_FILE, studio)
    if not (target / CARD_FILE).is_file():
        write_card(target, name=studio["name"], licence=licence, paragraphs=[f"Brought in from `{lineage['source_name']}`."])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Fault("checkpoint.incomplete", f"{path.name}: {error}") from error
    if not isinstance(content, dict):
        raise Fault("checkpoint.incomplete", f"{path.name} does not hold a JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
