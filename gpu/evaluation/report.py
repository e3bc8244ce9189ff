"""What an evaluation found, as `report.json` holds it, and as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu.errors import Fault
from gpu.sound import atomic_file

REPORT_FILE = "report.json"
REPORT_VERSION = 1
CHECKPOINT, AGAINST, HELD_OUT, TRAINING = "checkpoint", "against", "held_out", "training"
"""Whose sounds a figure is about. The last two are real ones: the ceiling, and what no model's distance need be below."""
CLAP_SCORE, CLAP_CHANCE, KAD, FRECHET = "clap_score", "clap_chance", "kad", "frechet"
NEAR_DUPLICATE, NEAR_TRAINING = "near_duplicate", "near_training"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of the report.

    Args:
        value: None where it was refused; then `why_not` says why.
        low, high: 95 % interval, None where there is none.
        n: sounds that it was measured on.
        reference_n: real sounds that they were compared with, 0 where with none.
        warning: what to keep in mind.
    """

    name: str
    n: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reference_n: int = 0
    why_not: str = ""
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The training sound that an output is most like.

    Args:
        sha256: of the training clip's file.
        similarity: cosine in the report's embedding.
    """

    sha256: str
    caption: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class SoundRow:
    """One sound that was made. `flags` are those of gpu.sound, and `near_duplicate`, `near_training`.

    Args:
        audio: relative to the evaluation's folder.
        duplicate_of: index of the output that it is nearly the same as.
    """

    index: int
    prompt: str
    seed: int
    audio: str
    sha256: str
    duration_s: float
    sample_rate_hz: int
    peaks: list[int]
    flags: list[str]
    clap_score: float
    nearest: Nearest | None = None
    duplicate_of: int | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whose sounds were measured: a checkpoint, or a set of real sounds (`sounds` is empty then)."""

    key: str
    name: str
    figures: list[Figure]
    sounds: list[SoundRow] = field(default_factory=list)
    model_sha256: str = ""

    def figure(self, name: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.name == name), None)

    @property
    def flag_counts(self) -> dict[str, int]:
        return dict(Counter(flag for sound in self.sounds for flag in sound.flags).most_common())

    @property
    def flagged(self) -> int:
        return sum(bool(sound.flags) for sound in self.sounds)


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """In whose ears the figures hold."""

    name: str
    sha256: str
    dimensions: int
    sample_rate_hz: int
    heard_rate_hz: int
    heard_s: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What "suspiciously near" means here: learnt from held-out real sounds, which cannot be copies.

    Args:
        threshold: above it an output is flagged `near_training`.
        false_alarm_share: of innocent sounds that may be flagged all the same.
        held_out_median: how near a held-out sound lies to its nearest training sound, in the middle.
    """

    threshold: float
    false_alarm_share: float
    held_out_median: float
    held_out_n: int
    training_n: int
    duplicate_threshold: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that an evaluation found, and everything that is needed to repeat it.

    Args:
        differences: checkpoint minus the other one, on the same prompts and seeds.
        settings: the evaluation's parameters by name.
    """

    subjects: list[Subject]
    differences: list[Figure]
    embedding: Embedding
    dataset: str
    manifest_digest: str
    prompts: int
    captions: int
    seed: int
    kernel: str
    memory: Memory | None
    settings: dict[str, Any]
    versions: dict[str, str]
    made_at: str
    notes: list[str] = field(default_factory=list)
    version: int = REPORT_VERSION

    def subject(self, key: str) -> Subject | None:
        return next((subject for subject in self.subjects if subject.key == key), None)

    def summary(self) -> dict[str, Any]:
        """The figures alone, by subject and name, for a list and for choosing the best checkpoint."""
        return {
            "embedding": self.embedding.name,
            "embedding_sha256": self.embedding.sha256,
            "manifest_digest": self.manifest_digest,
            "seed": self.seed,
            "prompts": self.prompts,
            "subjects": {
                subject.key: {"flagged": subject.flagged, **{figure.name: asdict(figure) for figure in subject.figures}}
                for subject in self.subjects
            },
            "differences": {figure.name: asdict(figure) for figure in self.differences},
        }

    def write(self, folder: Path) -> None:
        with atomic_file(folder / REPORT_FILE) as file:
            file.write(json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False).encode())

    @classmethod
    def read(cls, folder: Path) -> Report:
        """Raises Fault `evaluation.report_unreadable`."""
        path = folder / REPORT_FILE
        try:
            return _report(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Fault("evaluation.report_unreadable", f"{path}: {error}", operator=True) from error

    def csv(self) -> str:
        """One line a figure, then one line a sound."""
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["whose", "figure", "value", "low", "high", "n", "reference_n", "embedding", "reference", "seed", "remark"])
        for name, figures in [*((s.name, s.figures) for s in self.subjects), ("difference", self.differences)]:
            for item in figures:
                rows.writerow([_cell(name), item.name, item.value, item.low, item.high, item.n, item.reference_n, _cell(self.embedding.name),
                               _cell(self.dataset), self.seed, item.why_not or item.warning])  # fmt: skip
        rows.writerow([])
        rows.writerow(["whose", "index", "prompt", "seed", "clap_score", "flags", "nearest_caption", "nearest_similarity", "audio", "sha256"])
        for subject in self.subjects:
            for sound in subject.sounds:
                near = sound.nearest
                rows.writerow([_cell(subject.name), sound.index, _cell(sound.prompt), sound.seed, sound.clap_score, " ".join(sound.flags),
                               _cell(near.caption) if near else "", near.similarity if near else "", sound.audio, sound.sha256])  # fmt: skip
        return text.getvalue()


def _cell(text: str) -> str:
    """Words that people wrote, kept from being taken for a formula by a spreadsheet."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _report(raw: dict[str, Any]) -> Report:
    if raw["version"] != REPORT_VERSION:
        raise ValueError(f"version {raw['version']} is not {REPORT_VERSION}")
    return Report(
        **{
            **raw,
            "subjects": [_subject(subject) for subject in raw["subjects"]],
            "differences": [Figure(**figure) for figure in raw["differences"]],
            "embedding": Embedding(**raw["embedding"]),
            "memory": Memory(**raw["memory"]) if raw["memory"] else None,
        }
    )


def _subject(raw: dict[str, Any]) -> Subject:
    sounds = [SoundRow(**{**row, "nearest": Nearest(**row["nearest"]) if row["nearest"] else None}) for row in raw["sounds"]]
    return Subject(**{**raw, "figures": [Figure(**figure) for figure in raw["figures"]], "sounds": sounds})
