"""What pages and commands read about datasets, each in a fixed number of queries."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import Count, F, Max, Min, Q, QuerySet, Sum, TextField
from django.db.models.functions import Cast, Coalesce

from datasets_app.models import Clip, Dataset, Split

USABLE = Q(clips__excluded=False) & ~Q(clips__caption="")
HISTOGRAM_BARS = 24
PROGRESS_FILE = "progress.json"
SORTS = {
    "position": ("position",),
    "name": ("original_name", "position"),
    "shortest": ("duration_s", "position"),
    "longest": ("-duration_s", "position"),
    "quietest": (F("loudness_lufs").asc(nulls_first=True), "position"),
    "loudest": (F("loudness_lufs").desc(nulls_last=True), "position"),
    "caption": ("caption", "position"),
}


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over a dataset's clips; `usable` counts those that a run would take."""

    clips: int
    usable: int
    train: int
    validation: int
    excluded_count: int
    uncaptioned: int
    total_duration_s: float
    usable_duration_s: float
    total_size_bytes: int
    shortest_s: float
    longest_s: float
    rates: list[tuple[str, int]]
    formats: list[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Clips that a running import has measured, of those that metadata.csv lists."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a histogram: clips from `start_s` up to `end_s`; `height` is 0..100 of the highest."""

    start_s: float
    end_s: float
    count: int
    height: float

    @property
    def top(self) -> float:
        return 100 - self.height


@dataclass(frozen=True, kw_only=True)
class ClipFilter:
    """What the clip list shows. `flag` is a flag, `any` for clips with one, or "" for all."""

    search: str = ""
    flag: str = ""
    split: str = ""
    state: str = ""
    sort: str = "position"


def dataset_list(user) -> QuerySet[Dataset]:
    """The datasets that a user sees, newest first, with `clip_count`, `usable_count`, `validation_count` and `duration_s`."""
    return (
        Dataset.objects.visible_to(user)
        .defer("problems", "notes")
        .annotate(
            clip_count=Count("clips"),
            usable_count=Count("clips", filter=USABLE),
            validation_count=Count("clips", filter=USABLE & Q(clips__split=Split.VALIDATION)),
            duration_s=Coalesce(Sum("clips__duration_s"), 0.0),
        )
        .order_by("-created_at", "pk")
    )


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """A dataset as commands and programs see it."""
    sums = dataset.clips.aggregate(clips=Count("id"), duration_s=Coalesce(Sum("duration_s"), 0.0))
    return {"id": str(dataset.pk), "name": dataset.name, "status": dataset.status, **sums, "problems": dataset.problems}


def import_progress(dataset: Dataset) -> Progress | None:
    """How far a running import is; None while it waits."""
    try:
        return Progress(**json.loads((settings.DATA_DIR / "uploads" / str(dataset.pk) / PROGRESS_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def totals(dataset: Dataset) -> Totals:
    usable = Q(excluded=False) & ~Q(caption="")
    sums = dataset.clips.aggregate(
        clips=Count("id"),
        usable=Count("id", filter=usable),
        train=Count("id", filter=usable & Q(split=Split.TRAIN)),
        validation=Count("id", filter=usable & Q(split=Split.VALIDATION)),
        excluded_count=Count("id", filter=Q(excluded=True)),
        uncaptioned=Count("id", filter=Q(caption="")),
        total_duration_s=Coalesce(Sum("duration_s"), 0.0),
        usable_duration_s=Coalesce(Sum("duration_s", filter=usable), 0.0),
        total_size_bytes=Coalesce(Sum("size_bytes"), 0),
        shortest_s=Coalesce(Min("duration_s"), 0.0),
        longest_s=Coalesce(Max("duration_s"), 0.0),
    )
    mix = dataset.clips.order_by().values_list("sample_rate_hz", "channels", "subtype").annotate(count=Count("id"))
    rates: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for rate_hz, channels, subtype, count in mix:
        rates[f"{rate_hz / 1000:g} kHz {_channels(channels)}"] += count
        formats[subtype] += count
    return Totals(**sums, rates=rates.most_common(), formats=formats.most_common())


def duration_histogram(dataset: Dataset) -> list[Bar]:
    """How many clips last how long, in up to 24 bars of a round width."""
    durations = list(dataset.clips.order_by().values_list("duration_s", flat=True))
    if not durations:
        return []
    width = _round_width(max(durations) / HISTOGRAM_BARS)
    counts = Counter(int(duration / width) for duration in durations)
    highest = max(counts.values())
    return [
        Bar(start_s=bar * width, end_s=(bar + 1) * width, count=counts[bar], height=100 * counts[bar] / highest)
        for bar in range(max(counts) + 1)
    ]


def flag_counts(dataset: Dataset) -> list[tuple[str, int]]:
    """The flags that occur, the most frequent first."""
    flagged = dataset.clips.order_by().exclude(flags=[]).values_list("flags", flat=True)
    return Counter(flag for flags in flagged for flag in flags).most_common()


def clip_list(dataset: Dataset, wanted: ClipFilter) -> QuerySet[Clip]:
    clips = dataset.clips.all()
    if wanted.search:
        clips = clips.filter(Q(caption__icontains=wanted.search) | Q(original_name__icontains=wanted.search))
    if wanted.split:
        clips = clips.filter(split=wanted.split)
    if wanted.flag == "any":
        clips = clips.exclude(flags=[])
    elif wanted.flag:
        # As text: SQLite cannot look into a JSON list.
        clips = clips.annotate(flags_text=Cast("flags", TextField())).filter(flags_text__contains=f'"{wanted.flag}"')
    if wanted.state == "usable":
        clips = clips.usable()
    elif wanted.state == "unused":
        clips = clips.filter(Q(excluded=True) | Q(caption=""))
    return clips.order_by(*SORTS.get(wanted.sort, SORTS["position"]))


def _channels(count: int) -> str:
    return {1: "mono", 2: "stereo"}.get(count, f"{count} channels")


def _round_width(least: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    magnitude = 10.0 ** math.floor(math.log10(least))
    return next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude >= least * (1 - 1e-9))
