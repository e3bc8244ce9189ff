"""The tokenizers that files in the original layouts do not carry: where they are looked for, and which ones fit.

A folder given by the caller is taken first. It may hold `roberta/` (or `roberta-base/`) and `t5/` (or `flan-t5-large/`), each as
`save_pretrained` writes it or as the hub has it; or be such a tokenizer itself; or be a whole model in diffusers' layout, whose
tokenizers are taken when they fit. Then the hub is asked for the two small sets of files that the original code uses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import RobertaTokenizer, T5Tokenizer

from gpu.errors import Fault
from gpu.originals.hub import TOKENIZER_FILES, download

# An embedding table is rounded up: Flan-T5 has 32128 rows for 32100 words.
SPARE_ROWS = 128


@dataclass(frozen=True)
class Slot:
    """One tokenizer: the class that pipelines look for, where it may lie in a folder, and the hub's name of the original's."""

    label: str
    kind: type
    folders: tuple[str, ...]
    hub: str
    max_length: int


SLOTS = {
    "roberta": Slot("RoBERTa", RobertaTokenizer, ("roberta", "roberta-base", "tokenizer", "ranker_tokenizer", "."), "FacebookAI/roberta-base", 512),
    "t5": Slot("T5", T5Tokenizer, ("t5", "flan-t5-large", "tokenizer_2", "tokenizer", "."), "google/flan-t5-large", 128),
}


def find_tokenizer(slot: str, rows: int, *, folder: Path | None) -> Any:
    """A tokenizer whose words fit an embedding table of `rows` rows.

    Raises:
        Fault: `tokenizers.missing`, with every place that was looked at.
    """
    wanted = SLOTS[slot]
    tried = []
    for place in _places(wanted, folder):
        tokenizer, why_not = _opened(place, wanted, rows)
        if tokenizer is not None:
            return tokenizer
        tried.append(f"{place}: {why_not}")
    if folder is not None and not tried:
        tried.append(f"{folder} holds neither {', '.join(wanted.folders[:-1])} nor a tokenizer itself")
    try:
        tokenizer, why_not = _opened(download(wanted.hub, allow_patterns=TOKENIZER_FILES), wanted, rows)
        if tokenizer is not None:
            return tokenizer
        tried.append(f"{wanted.hub} on the hub: {why_not}")
    except Fault as fault:
        tried.append(f"{wanted.hub} on the hub: {fault.message}")
    raise Fault(
        "tokenizers.missing",
        f"the {wanted.label} tokenizer for {rows} words is not at hand. Copy the tokenizer files of {wanted.hub} "
        f"({', '.join(TOKENIZER_FILES)}) into a folder {wanted.folders[0]}/ and name the folder above it "
        f"(--tokenizers), or name a model folder of the same family. Looked at: {'; '.join(tried)}",
    )


def _places(slot: Slot, folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return [place for name in slot.folders if _is_tokenizer(place := folder / name)]


def _is_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))


def _opened(folder: Path, slot: Slot, rows: int) -> tuple[Any, str]:
    """The tokenizer in a folder, or None and why it is not the one that is wanted."""
    named = _class_name(folder)
    if named and not named.removesuffix("Fast").startswith(slot.kind.__name__):
        return None, f"it is a {named}"
    if not named and (folder / "vocab.json").is_file() != (slot.kind is RobertaTokenizer):
        return None, f"it is no {slot.kind.__name__}"
    try:
        tokenizer = slot.kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises a dozen types for files that it cannot use
        return None, f"it cannot be opened ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    if not rows - SPARE_ROWS < len(tokenizer) <= rows:
        return None, f"it has {len(tokenizer)} words, the model's table {rows}"
    if slot.kind is RobertaTokenizer and (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) != (0, 1, 2):
        return None, "its first words are not <s>, <pad>, </s>"
    tokenizer.model_max_length = slot.max_length
    return tokenizer, ""


def _class_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class") or "")
    except (OSError, ValueError, AttributeError):
        return ""
