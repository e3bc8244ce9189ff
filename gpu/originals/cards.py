"""The model card (`README.md`) that every written model carries: its licence in the front matter, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gpu.originals.layouts import LICENCE, LICENCE_NOTE

CARD_FILE = "README.md"


def how_to_open(pipeline_class: str) -> str:
    """What opens a model folder, for its card and for whoever chooses an export."""
    if pipeline_class == "AudioLDMT5Pipeline":
        return "diffusers has no pipeline for this model, but each of its parts opens with the class in `model_index.json`; AudioLDM Studio opens it whole."
    return f"Open it with `{pipeline_class}.from_pretrained(FOLDER)` of diffusers."


def write_card(folder: Path, *, name: str, licence: str, paragraphs: Sequence[str]) -> None:
    (folder / CARD_FILE).write_text(card(name=name, licence=licence, paragraphs=paragraphs), encoding="utf-8")


def card(*, name: str, licence: str, paragraphs: Sequence[str]) -> str:
    """A card as the hub reads it. Values of the front matter are JSON, which is YAML: no name can break out of it."""
    front = ["---", f"license: {json.dumps(licence or 'other', ensure_ascii=False)}", "pipeline_tag: text-to-audio",
             "tags:", "- audioldm", "- text-to-audio", "---"]  # fmt: skip
    body = [f"# {' '.join(name.split())}", *paragraphs]
    if licence == LICENCE:
        body.append(f"Licence: {licence}. {LICENCE_NOTE}")
    elif licence:
        body.append(f"Licence: {licence}.")
    return "\n".join(front) + "\n\n" + "\n\n".join(body) + "\n"
