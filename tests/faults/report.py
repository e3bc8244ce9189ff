"""Fill the tables of docs/faults.md, docs/growth.md and docs/uploads.md from the last results.

    python -m tests.faults.report            `tests/site/test_documents.py` compares
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import growth

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TOTALS = {
    "faults": "Faults",
    "attempts": "Attempts",
    "events": "Events compared",
    "resumed_and_compared": "Resumed runs compared with uninterrupted ones",
    "uploads": "Uploads beside them, arrived equal",
    "lost": "Lost",
    "doubled": "At work twice at one moment, or made twice",
    "out_of_order": "Events lost, doubled or out of order",
    "damaged_accepted": "Checkpoints and sounds offered that are not whole",
    "wrong_ends": "Wrong end states",
    "unequal": "Results that differ",
    "orphans": "Processes left",
    "unsaved_stops": "Stops without a save",
}


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(map(str, row)) for row in rows]
    head = list(head)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *lines])


def faults(result: dict[str, Any]) -> str:
    """What was counted, on each database; then each kind of fault."""
    parts = result["parts"]
    rows = [["Jobs done", *(sum(part["jobs"].values()) for part in parts.values())]]
    rows += [[words, *(part[name] for part in parts.values())] for name, words in TOTALS.items()]
    kinds = sorted({kind for part in parts.values() for kind in part["by_kind"]})
    by_kind = [[kind, *(part["by_kind"].get(kind, {}).get("tried", 0) for part in parts.values())] for kind in kinds]
    stops = "; ".join(
        f"{name}: {part['graceful_stops']} stops of the whole studio, {part['graceful_stop_s']['median']} s (median), {part['graceful_stop_s']['longest']} s at the longest"
        for name, part in parts.items()
        if part["graceful_stops"]
    )
    met = "; ".join(f"{name}: " + ", ".join(f"{what} {count}" for what, count in part["full_disk_met"].items()) for name, part in parts.items())
    found = [f"- {name}: {words}" for name, part in parts.items() for words in part["violations"]] or ["Nothing was found."]
    said = [f"`{'` and `'.join(result['commands'])}`, {result['at'][:10]}, {result['cpus']} cores that others kept busy, {result['minutes']} minutes:", table(["", *parts], rows), "\n".join(found)]
    if any(part["ended_by"] == "time" for part in parts.values()):
        said.append("Its time limit ended it before all that were asked for had been played.")
    left_out = [f"Left out: {name} ({words})." for name, words in result["skipped"].items()]
    return "\n\n".join([*said, *left_out, f"{stops}.", f"Where a full disk was met — {met}.", table(["Kind of fault, how often", *parts], by_kind)])


def fuzz(result: dict[str, Any]) -> str:
    head = f"`{result['command']}`, {result['at'][:10]}: {result['cases']} cases, {result['failed']} tests failed; the memory of the process ended at {result['memory_bytes'] / 1e6:.0f} MB."
    failures = "".join(f" Found: {words}." for words in result.get("failures", []))
    again = "".join(f" After it was mended: `{run['command']}`, {run['cases']} cases, {run['failed']} failed." for run in result.get("after_mending", []))
    return head + failures + again + "\n\n" + table(["What", "cases"], result["by_kind"].items())


def big_files(result: dict[str, Any]) -> str:
    rows = [
        [
            row["part"] + (f" → {row['answer']}" if row.get("answer") else ""),
            f"{row['seconds']:.1f}",
            row["interruptions"],
            {True: "yes", False: "NO", None: "–"}[row["equal"]],
            f"{row['peak_bytes'] / 1e6:.0f} MB",
        ]
        for row in result["results"]
    ]
    said = f"`{result['command']}`, {result['machine']['at'][:10]}, {result['machine']['cpus']} cores at a load of {result['machine']['load']:.0f} when it ended; the seconds are no speed test."
    return said + "\n\n" + table([f"{result['size_bytes'] / 1e9:g} GB", "seconds", "interruptions", "arrived equal", "peak of the web process"], rows)


BLOCKS: dict[str, tuple[str, str, Callable[[dict[str, Any]], str]]] = {
    "faults": ("docs/faults.md", "faults.json", faults),
    "fuzz": ("docs/faults.md", "fuzz.json", fuzz),
    "memory": ("docs/uploads.md", "big_files.json", big_files),
    **{f"growth of {name}": ("docs/growth.md", "growth.json", partial(growth.render, name=name)) for name in growth.CURVES},
}


def filled(document: str) -> str:
    """A document with each of its marked blocks as the results say."""
    text = (ROOT / document).read_text()
    for name, (where, source, render) in BLOCKS.items():
        if where == document:
            block = f"<!-- {name}: python -m tests.faults.report -->\n{render(json.loads((RESULTS / source).read_text()))}\n<!-- /{name} -->"
            text, count = re.subn(rf"<!-- {name}: .*?<!-- /{name} -->", lambda match, block=block: block, text, flags=re.DOTALL)
            if count != 1:
                raise ValueError(f"{document} must have one block {name}, and has {count}")
    return text


def main() -> None:
    for document in {where for where, _, _ in BLOCKS.values()}:
        (ROOT / document).write_text(filled(document))


if __name__ == "__main__":
    main()
