from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from audioldm_site.faults import OPERATOR, OWNER, US, WORDS, explain

ROOT = Path(__file__).parents[2]
SOURCES = ("audioldm_site", "datasets_app", "training_app", "generation_app", "gpu")
CODE = re.compile(r"[a-z_]+\.[a-z_]+")
FAMILIES = {code.split(".")[0] for code in WORDS if "." in code}
NOT_CODES = {"json", "jsonl", "safetensors", "csv", "models", "services", "selectors", "tasks", "txt", "html", "wav", "urls", "views", "pkl"}


def codes_in(path: Path) -> set[str]:
    """Texts in a file that are codes: what `Fault` and `Problem` are given, and whatever begins with a known family."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Fault" and node.args:
            found |= {item.value for item in ast.walk(node.args[0]) if isinstance(item, ast.Constant) and isinstance(item.value, str)}
        if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
            found.add(node.value.value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
            family, name = node.value.split(".")
            if family in FAMILIES and name not in NOT_CODES:
                found.add(node.value)
    return {code for code in found if isinstance(code, str)}


def test_every_code_has_words():
    used = {code: path for name in SOURCES for path in (ROOT / name).rglob("*.py") for code in codes_in(path) if code}

    missing = {code: str(path.relative_to(ROOT)) for code, path in used.items() if code not in WORDS and "." in code}

    assert not missing


@pytest.mark.parametrize("code", WORDS)
def test_words_are_whole(code):
    words = explain(code, "the particulars")

    assert words.title and words.explanation
    assert words.explanation.endswith((".", "?"))
    assert words.whose in (OWNER, OPERATOR, US)
    assert (words.code, words.detail) == (code, "the particulars")


def test_an_unknown_code_is_our_own_fault():
    assert explain("never.heard").whose == US
