"""Which files of a model folder belong to the model. Everything that comes in, and everything that goes out, keeps these and no others.

A published repository holds more: pickles, fp16 copies, notebooks, code, adapters that a library would apply without a word.
Two folders are the same model when these files are equal but for its papers: its name, its licence and its card.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gpu.errors import Fault
from gpu.manifest import digest_of, file_digests
from gpu.models import CHECKPOINT_FILE, EXTRAS, FAMILIES, INDEX_FILE, LORA_FILE, PARTS, STUDIO_FILE, UNET_FILE, WEIGHTS, read_index

SIDE_FILE = "original.safetensors"
PAPERS = re.compile(r"README(\.md|\.txt)?|(LICEN[CS]E|NOTICE|COPYING)[\w-]*(\.md|\.txt)?", re.IGNORECASE)
PREVIEW = re.compile(r"preview\.(png|jpe?g|webp|wav|flac|mp3|ogg)")
SHARD_INDEX = re.compile(r"(model|diffusion_pytorch_model)(\.fp16)?\.safetensors\.index(\.fp16)?\.json")
SMALL = frozenset({
    "config.json", "scheduler_config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "tokenizer.model",
})  # fmt: skip


def kept_names(names: Iterable[str], index: Mapping[str, Any] | None = None) -> list[str]:
    """Those of a model folder's files that belong to the model, sorted.

    Args:
        names: relative, with slashes.
        index: the content of its `model_index.json`; None where nobody has read it yet.
    """
    families = [FAMILIES.get(str(index.get("_class_name")), "")] if index is not None else list(PARTS)
    parts = {part for family in families for part in (*PARTS.get(family, ()), *EXTRAS.get(family, ()))}
    names = sorted(names)
    full = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors") and ".fp16" not in name}
    return [name for name in names if _belongs(PurePosixPath(name), parts) and not (".fp16" in name and name.rpartition("/")[0] in full)]


def kept_of_run(names: Iterable[str]) -> list[str]:
    """The same for a run's checkpoint. What only its run could go on with (`resume.pt`, a pickle) is not among them."""
    return sorted(name for name in names if name in (CHECKPOINT_FILE, UNET_FILE, LORA_FILE) or PAPERS.fullmatch(name) or PREVIEW.fullmatch(name))


def kept_files(folder: Path) -> list[Path]:
    """The same for a folder on the disk, relative to it: a whole model's or a run's checkpoint's.

    Raises:
        Fault: it has no readable index; `checkpoint.unrecognised`, something in it is a pipe or a device, which would be waited for without end.
    """
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            path = folder / relative
            if not path.is_file() and not path.is_symlink():
                raise Fault("checkpoint.unrecognised", f"{relative} is no ordinary file")
            names.append(relative)
    if CHECKPOINT_FILE in names:
        return [Path(name) for name in kept_of_run(names)]
    return [Path(name) for name in kept_names(names, read_index(folder))]


def is_part_weights(path: Path) -> bool:
    """Whether a file's name is one under which a library looks for the weights of a part."""
    return bool(WEIGHTS.fullmatch(path.name))


@dataclass(frozen=True)
class Digests:
    """What a model folder is, hashed.

    Attributes:
        whole: `gpu.manifest.folder_digest` of the files that were read.
        content: of the files that make it what it is; a name, a licence and a card do not.
        weights: of its parts' weights alone.
    """

    whole: str
    content: str
    weights: str


def digests(folder: Path, *, files: Iterable[Path] | None = None, on_file: Callable[[Path], None] | None = None) -> Digests:
    """Read a model folder once.

    Args:
        files: relative; None for all, as they lie there.
        on_file: told about each file that was read.
    """
    found = file_digests(folder, files=files, on_file=on_file)
    kept = set(kept_names(found, read_index(folder)))
    content = {name: sha256 for name, sha256 in found.items() if name in kept and name != STUDIO_FILE and not PAPERS.fullmatch(name) and not PREVIEW.fullmatch(name)}
    return Digests(
        whole=digest_of(found),
        content=digest_of({**content, STUDIO_FILE: hashlib.sha256(_nature(folder).encode()).hexdigest()}),
        weights=digest_of({name: sha256 for name, sha256 in content.items() if "/" in name and name.endswith(".safetensors")}),
    )


def weights_digest(folder: Path) -> str:
    """Of the weights of a model's parts alone: equal where a model was converted anew, or is called otherwise."""
    names = [path for path in kept_files(folder) if len(path.parts) == 2 and path.suffix == ".safetensors"]
    return digest_of(file_digests(folder, files=names))


def _belongs(name: PurePosixPath, parts: Collection[str]) -> bool:
    if any(piece.startswith(".") for piece in name.parts):
        return False
    if len(name.parts) == 1:
        return name.name in (INDEX_FILE, STUDIO_FILE, SIDE_FILE) or bool(PAPERS.fullmatch(name.name) or PREVIEW.fullmatch(name.name))
    if len(name.parts) > 2 or name.parts[0] not in parts:
        return False
    return name.name in SMALL or any(kind.fullmatch(name.name) for kind in (WEIGHTS, SHARD_INDEX, PAPERS))


def _nature(folder: Path) -> str:
    """What of `studio.json` changes how the model sounds: a model of layout D takes zeros where others take the empty prompt."""
    try:
        studio = json.loads((folder / STUDIO_FILE).read_text(encoding="utf-8"))
        return str((studio.get("original") or {}).get("layout") or "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
