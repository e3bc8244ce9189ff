"""What a file or folder is before anything heavy is done with it: a model from elsewhere, a LoRA, a zip, a run's checkpoint.

Only names and headers are read: no torch, no weights, so a page may ask. Nothing here believes a file: a link is refused, a zip is
checked as a dataset's is, and what is unknown is refused with the words of what was found.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings

from datasets_app.archive import GIB, MIB, Limits, ZipSource
from gpu.errors import Fault
from gpu.models import CHECKPOINT_FILE, INDEX_FILE, STUDIO_FILE, describe, read_checkpoint
from gpu.originals.contents import kept_names, kept_of_run
from gpu.originals.layouts import LICENCE_NOTE, LoraFacts, OriginalFacts, UnetFacts, WholeFacts, describe_file
from training_app.models import is_non_commercial

ORIGINAL, WHOLE, LORA, UNET, FOLDER, ZIP, RUN, HUB = "original", "whole", "lora", "unet", "folder", "zip", "run", "hub"
ADDITIONS = (LORA, UNET)
"""What lies on a whole model, which has to be named."""
LIMITS = Limits(total_bytes=64 * GIB, file_bytes=32 * GIB, metadata_bytes=MIB, entries=2_000)
INDEX_BYTES = MIB
INCOMING = "incoming"
SET_ASIDE = "imported"
HUB_NAME = re.compile(r"hub:[\w.-]{1,96}/[\w.-]{1,96}(@[\w.-]{1,96}(/[\w.-]{1,96})*)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One thing that can be brought in.

    Args:
        kind: `original` and `whole` (a whole model in one file), `lora` and `unet` (what lies on one), `folder`, `zip`, `run` or `hub`.
        title: what it is, in people's words: "AudioLDM-M".
        needed_bytes: room that bringing it in takes, besides what it takes already; 0 where nobody knows.
        copies: of the UNet's weights that the file holds, of `ema` and `raw`.
        weights: the one that its own sampler would take.
        why_not: why sounds cannot be made with it, or runs cannot start from it.
        details: what else people want to know, in order: (name, value).
    """

    kind: str
    path: Path | None
    label: str
    title: str
    family: str = ""
    size_bytes: int = 0
    needed_bytes: int = 0
    copies: tuple[str, ...] = ()
    weights: str = ""
    can_generate: bool = True
    can_finetune: bool = True
    why_not: str = ""
    licence: str = ""
    details: list[tuple[str, Any]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    licence_note: str = ""
    facts: Any = None

    @property
    def has_ema(self) -> bool:
        return "ema" in self.copies

    @property
    def needs_base(self) -> bool:
        return self.kind in ADDITIONS

    @property
    def is_non_commercial(self) -> bool:
        return is_non_commercial(self.licence)


class ModelZip(ZipSource):
    """A zip with a model folder in it.

    Args:
        on_bytes: told how many bytes have been unpacked so far; what it raises ends the unpacking.
    """

    on_bytes: Callable[[int], None] | None = None

    def _locate(self, names: list[str], *, label: str) -> tuple[str, str]:
        for index in (INDEX_FILE, CHECKPOINT_FILE):
            for name in names:
                root = name.removesuffix(index)
                if root != name and root.count("/") == (1 if root else 0) and (not root or all(other.startswith(root) for other in names)):
                    return root, ""
        found = ", ".join(names[:6])
        raise Fault("checkpoint.unrecognised", f"{label} holds {found}; expected a model folder with {INDEX_FILE}, at the top or in one folder")

    def _count(self, written: int, file_size: int, name: str) -> None:
        super()._count(written, file_size, name)
        if self.on_bytes:
            self.on_bytes(self._written)

    def _pieces(self, name: str) -> Iterator[bytes]:
        try:
            yield from super()._pieces(name)
        except Fault as fault:
            raise Fault("checkpoint.incomplete", fault.message) from fault

    def small_json(self, name: str) -> dict[str, Any]:
        """A small file's content.

        Raises:
            Fault: it is too large for one, or no JSON object.
        """
        content = bytearray()
        for piece in self._pieces(self._root + name):
            content += piece
            if len(content) > INDEX_BYTES:
                raise Fault("checkpoint.unrecognised", f"{name} is larger than {INDEX_BYTES} bytes")
        try:
            raw = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Fault("checkpoint.incomplete", f"{name}: {error}") from error
        if not isinstance(raw, dict):
            raise Fault("checkpoint.incomplete", f"{name} does not hold a JSON object")
        return raw

    @property
    def total_bytes(self) -> int:
        """As its table of contents promises; what is written is counted again."""
        return sum(info.file_size for info in self._entries.values())

    def kept(self) -> list[str]:
        """The files that belong to the model; the others are not unpacked."""
        return kept_of_run(self.names) if CHECKPOINT_FILE in self.names else kept_names(self.names, self.small_json(INDEX_FILE))


@contextmanager
def open_zip(path: Path, *, label: str) -> Iterator[ModelZip]:
    """A zip's content, checked.

    Raises:
        Fault: `checkpoint.unrecognised`, it is none or holds no model; `archive.…`, it is meant to harm or damaged.
    """
    with open(path, "rb") as file:
        try:
            archive = ModelZip(file, label=label, limits=LIMITS)
        except Fault as fault:
            if fault.code.startswith("dataset."):
                raise Fault("checkpoint.unrecognised", fault.message) from fault
            raise
        yield archive


def look_at(path: Path, *, label: str = "", follow_links: bool = False) -> Found:
    """What lies at a path.

    Args:
        label: what people call it; the path's own name otherwise.
        follow_links: only where the path was typed by whoever runs the machine.
    Raises:
        Fault: `checkpoint.unrecognised` with what was found and what was expected, `checkpoint.link`, or what is wrong with it.
    """
    label = label or path.name or path.resolve().name
    if not follow_links:
        refuse_links(path)
    path = Path(os.path.realpath(path))
    try:
        if path.is_dir():
            return _look_at_run(path, label) if (path / CHECKPOINT_FILE).is_file() else _look_at_folder(path, label)
        if not path.exists():
            raise Fault("checkpoint.unrecognised", f"{path} does not exist")
        if not path.is_file():
            raise Fault("checkpoint.unrecognised", f"{path} is neither a file nor a folder")
        if Path(label).suffix.lower() == ".zip":
            return _look_at_zip(path, label)
        return _look_at_file(path, label)
    except OSError as error:
        raise Fault("checkpoint.unrecognised", f"{label} cannot be read: {error.strerror}") from error


def look_at_hub(name: str) -> Found:
    """A repository of the model hub; what it holds is known when it has been downloaded.

    Raises:
        Fault: `config.invalid`, it is no such name.
    """
    if not HUB_NAME.fullmatch(name) or ".." in name:
        raise Fault("config.invalid", f"{name!r} must look like hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    return Found(kind=HUB, path=None, label=name, title=name.removeprefix("hub:"))


def incoming_folder() -> Path:
    folder = settings.DATA_DIR / INCOMING / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def incoming() -> list[Path]:
    """What people dropped into the incoming folder, by name; what was brought in already is set aside."""
    return sorted(path for path in incoming_folder().iterdir() if not path.name.startswith((".", "_")) and path.name != SET_ASIDE)


def incoming_path(name: str) -> Path:
    """The dropped file or folder of that name.

    Raises:
        Fault: `checkpoint.missing`; a name from outside never leads elsewhere.
    """
    for path in incoming():
        if path.name == name:
            return path
    raise Fault("checkpoint.missing", f"there is no {name!r} in {incoming_folder()} any more")


def refuse_links(path: Path) -> None:
    """Raises Fault `checkpoint.link` for a link, or a folder with one in it."""
    links = [path] if path.is_symlink() else [found for found in path.rglob("*") if found.is_symlink()] if path.is_dir() else []
    if links:
        raise Fault("checkpoint.link", f"{links[0].name} is a link; move or copy the model itself here")


def original_facts(folder: Path) -> dict[str, Any]:
    """What the converter noted down in a model folder about the original file that it was made of; {} where it was made otherwise.

    What an export was made of inherits these notes, whatever was trained or rounded since; its lineage names the same file, then.
    """
    try:
        studio = json.loads((folder / STUDIO_FILE).read_text(encoding="utf-8"))
        original, lineage = studio.get("original") or {}, studio.get("lineage") or {}
        return {} if lineage.get("source_sha256") == original.get("source_sha256") else original
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def keeps_original(folder: Path) -> bool:
    return (folder / "original.safetensors").is_file()


def has_tokenizers(folder: Path, sizes: dict[str, int]) -> bool:
    """Whether a model folder's vocabularies are of these sizes, by `roberta` and `t5`, as its text encoders have rows."""
    found: dict[str, int] = {}
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        for tokenizer, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"), ("ranker_tokenizer", "ranker")):
            if not (folder / tokenizer).is_dir():
                continue
            config = json.loads((folder / encoder / "config.json").read_text(encoding="utf-8"))
            rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
            kind = "t5" if "t5" in str(index.get(tokenizer, ["", ""])[1]).lower() else "roberta"
            found[kind] = rows
    except (OSError, ValueError, AttributeError, TypeError, IndexError):
        return False
    return all(found.get(kind) == size for kind, size in sizes.items())


def _look_at_folder(path: Path, label: str) -> Found:
    facts = describe(path)
    return Found(
        kind=FOLDER,
        path=path,
        label=label,
        title=facts.variant or facts.name,
        family=facts.family,
        size_bytes=facts.size_bytes,
        needed_bytes=facts.size_bytes,
        can_generate=facts.can_generate,
        can_finetune=facts.can_finetune,
        why_not=facts.why_not,
        licence=facts.licence,
        details=[("layout", "diffusers folder"), ("sample rate", f"{facts.sample_rate_hz} Hz"), ("UNet", _weights(facts.parameters.get("unet", 0)))],
        facts=facts,
    )


def _look_at_run(path: Path, label: str) -> Found:
    facts = read_checkpoint(path)
    size = sum(item.stat().st_size for item in path.iterdir() if item.is_file())
    return Found(
        kind=RUN,
        path=path,
        label=label,
        title=f"{'LoRA' if facts.method == 'lora' else 'UNet'} of a run, step {facts.step}",
        family=str(facts.model.get("family", "")),
        size_bytes=size,
        needed_bytes=size,
        licence=facts.licence,
        details=[("lies on", f"{facts.model.get('name') or 'a model'} ({facts.base_sha256[:12]}…)"), ("weights", facts.weights)],
        facts=facts,
    )


def _look_at_zip(path: Path, label: str) -> Found:
    with open_zip(path, label=label) as archive:
        if CHECKPOINT_FILE in archive.names:
            title = "a run's checkpoint, zipped"
        else:
            title = f"{archive.small_json(INDEX_FILE).get('_class_name')}, zipped"
        unpacked = archive.total_bytes
    return Found(kind=ZIP, path=path, label=label, title=title, size_bytes=path.stat().st_size, needed_bytes=unpacked, details=[("layout", "zip of a model folder")])


def _look_at_file(path: Path, label: str) -> Found:
    facts = describe_file(path)
    size = path.stat().st_size
    about = {"path": path, "label": label, "size_bytes": size, "needed_bytes": size, "licence": facts.licence, "facts": facts}
    if isinstance(facts, LoraFacts):
        details = [("layout", "LoRA"), ("rank", facts.rank), ("changes", f"{facts.layers} layers ({', '.join(facts.targets)})"), ("step", facts.step)]
        return Found(kind=LORA, title=f"LoRA of rank {facts.rank}", details=_known(details), **about)
    if isinstance(facts, UnetFacts):
        details = [("layout", "UNet of a run"), ("UNet", _weights(facts.parameters["unet"])), ("step", facts.step)]
        return Found(kind=UNET, title="UNet of a run", details=_known(details), **about)
    about |= {"family": facts.family, "can_generate": facts.can_generate, "can_finetune": facts.can_finetune, "why_not": facts.why_not}
    if isinstance(facts, WholeFacts):
        details = [("layout", "a whole model in one file"), ("UNet", _weights(facts.parameters.get("unet", 0)))]
        return Found(kind=WHOLE, title=facts.variant or facts.name, details=details, **about)
    return _original(facts, about)


def _original(facts: OriginalFacts, about: dict[str, Any]) -> Found:
    details = [
        ("layout", f"{facts.layout}, written by the {facts.written_by}"),
        ("sample rate", f"{facts.sample_rate_hz / 1000:g} kHz"),
        ("UNet", _weights(facts.parameters.get("unet", 0))),
        ("attention heads", ", ".join(map(str, facts.heads))),
        ("CLAP", facts.clap.size),
        ("steps", facts.global_step),
        ("holds", " and ".join({"ema": "the moving average (EMA)", "raw": "the raw weights"}[copy] for copy in facts.weights)),
    ]
    return Found(
        kind=ORIGINAL, title=facts.variant, copies=facts.weights, weights=facts.default_weights, details=_known(details), warnings=facts.warnings,
        licence_note=LICENCE_NOTE if facts.licence else "", **about,
    )  # fmt: skip


def _known(details: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in details if value not in (None, "")]


def _weights(count: int) -> str:
    return f"{count / 1e6:.1f} million weights" if count else "unknown"
