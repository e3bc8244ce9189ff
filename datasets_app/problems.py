"""What an import found, in the shape in which a dataset keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

MAX_KEPT = 2_000


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing about one row or file.

    Args:
        file: the clip as metadata.csv writes it, or metadata.csv itself.
        line: where the row starts in metadata.csv, counted as a text editor does from 1; None when it is about no row.
        code: stable; its remedy is in `audioldm_site.faults`.
        message: one sentence with the value and the limit.
    """

    file: str
    line: int | None
    code: str
    message: str


def as_json(problems: list[Problem]) -> list[dict]:
    """The first problems in the order of the file, and how many more there were."""
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    kept = [asdict(problem) for problem in ordered[:MAX_KEPT]]
    if len(ordered) > MAX_KEPT:
        more = f"{len(ordered) - MAX_KEPT} more problems are not listed"
        kept.append(asdict(Problem(file="", line=None, code="problems.more", message=more)))
    return kept
