"""Runs side by side: their curves, what was asked of each, what came of it, and how they sound."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from audioldm_site import search
from gpu.config import FinetuneConfig
from gpu.events import PROGRESS, STARTED, VALIDATED
from training_app import selectors
from training_app.models import TrainingRun

MAX_RUNS = 6
"""As many colours as can be told apart."""
MAX_OFFERED = 60
CSV_COLUMNS = ("run_id", "run", "step", "loss", "loss_smooth", "learning_rate", "grad_norm", "clips_per_second", "validation_loss", "validation_loss_ema")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table with a column for each run; `best` is the place of the one value that is better than the others."""

    label: str
    values: list[Any]
    style: str = ""
    best: int | None = None


def compared_runs(user, ids: Sequence[uuid.UUID]) -> list[TrainingRun]:
    """The runs of these ids that `user` may see, in that order, each once. Pretrainings are left out: their losses mean other things."""
    rows = TrainingRun.objects.visible_to(user).filter(task=TrainingRun.Task.FINETUNE, pk__in=ids).select_related("base_checkpoint", "owner")
    found = {run.pk: run for run in rows}
    return [found[pk] for pk in dict.fromkeys(ids) if pk in found]


def offered_runs(user, *, query: str, chosen: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Runs to choose from: those of the same dataset as the first chosen one, then the newest."""
    runs = TrainingRun.objects.visible_to(user).filter(task=TrainingRun.Task.FINETUNE, archived=False).select_related("base_checkpoint")
    for word in search.words(query):
        runs = runs.filter(Q(name__icontains=word) | Q(tags__icontains=word) | Q(dataset_name__icontains=word))
    newest = list(runs.exclude(pk__in=[run.pk for run in chosen]).order_by("-created_at")[:MAX_OFFERED])
    if chosen:
        newest.sort(key=lambda run: run.dataset_name != chosen[0].dataset_name)
    return newest


def curves(run: TrainingRun, snapshot: dict[str, Any]) -> dict[str, Any]:
    """What the page's script draws of a run."""
    progress, validations = snapshot["progress"], snapshot["validations"]
    return {
        "id": str(run.pk),
        "name": run.name,
        "loss": [progress["step"], progress["loss_smooth"]],
        "validation": [[point["step"] for point in validations], [point["loss"] for point in validations]],
    }


def outcomes(runs: Sequence[TrainingRun], snapshots: Sequence[dict[str, Any]]) -> list[Row]:
    """What came of the runs. The lowest validation loss is marked only where all were validated on the same clips."""
    best = [run.best_validation_loss for run in runs]
    last = [snapshot["validations"][-1]["loss"] if snapshot["validations"] else None for snapshot in snapshots]
    smooth = [(snapshot["latest"] or {}).get("loss_smooth") for snapshot in snapshots]
    scores = [_mean_score(snapshot["samples"]) for snapshot in snapshots]
    comparable = same_clips(runs)
    return [
        Row(label="steps", values=[run.global_step for run in runs], style="whole"),
        Row(label="best validation loss", values=best, style="figure", best=_first(best, min) if comparable else None),
        Row(label="last validation loss", values=last, style="figure", best=_first(last, min) if comparable else None),
        Row(label="training loss, smoothed", values=smooth, style="figure"),
        Row(label="CLAP score of the last sounds", values=scores, style="figure", best=_first(scores, max)),
        Row(label="clips a second", values=[(snapshot["latest"] or {}).get("clips_per_second") for snapshot in snapshots], style="figure"),
        Row(label="memory", values=[(snapshot["latest"] or {}).get("memory_bytes") for snapshot in snapshots], style="bytes"),
        Row(label="time, last attempt", values=[_seconds(run) for run in runs], style="duration"),
    ]


def options(runs: Sequence[TrainingRun]) -> tuple[list[Row], list[Row]]:
    """What was asked of the runs: the lines in which they differ, and those in which they are alike."""
    rows = [
        Row(label="dataset", values=[f"{run.dataset_name}, {run.clip_count} clips" for run in runs]),
        Row(label="clips and captions", values=[run.manifest_digest for run in runs], style="hash"),
        Row(label="base", values=[run.base_checkpoint.name if run.base_checkpoint else "a deleted checkpoint" for run in runs]),
        *(
            Row(label=parameter.label, values=[run.config.get(parameter.name) for run in runs], style="option")
            for parameter in FinetuneConfig.parameters()
        ),
    ]
    differ = [row for row in rows if any(value != row.values[0] for value in row.values)]
    return differ, [row for row in rows if row not in differ]


def same_clips(runs: Sequence[TrainingRun]) -> bool:
    """Whether the runs learn from, and are validated on, the same clips with the same captions."""
    return len({run.manifest_digest for run in runs}) <= 1


def sounds(runs: Sequence[TrainingRun], snapshots: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest sound of each run for each prompt; what most runs share comes first.

    Returns:
        {"prompt", "takes", "one_seed"}; takes: what the run said of the sound with its address and title, one a run, None where it has none.
    """
    newest: dict[str, list[dict[str, Any] | None]] = {}
    for place, (run, snapshot) in enumerate(zip(runs, snapshots, strict=True)):
        for sample in sorted(snapshot["samples"], key=lambda sample: sample["step"]):
            address = reverse("training:file", args=[run.pk, sample["audio"]])
            take = {**sample, "address": address, "title": f"{run.name}: {sample['prompt']}"}
            newest.setdefault(sample["prompt"], [None] * len(runs))[place] = take
    rows = [{"prompt": prompt, "takes": takes, "one_seed": _one_seed(takes)} for prompt, takes in newest.items()]
    return sorted(rows, key=lambda row: sum(take is None for take in row["takes"]))


def csv_rows(run: TrainingRun) -> Iterator[list[Any]]:
    """Every step that the run told of, not thinned, in the order of CSV_COLUMNS."""
    events = run.events.filter(seq__lte=run.last_seq)
    holds = selectors.kept_steps(list(events.filter(type=STARTED)))
    names = CSV_COLUMNS[2:8]
    for event in events.filter(type__in=[PROGRESS, VALIDATED]).order_by("seq").iterator():
        if not holds(event):
            continue
        start = [str(run.pk), _cell(run.name)]
        if event.type == PROGRESS:
            yield [*start, *(event.data.get(name) for name in names), None, None]
        else:
            yield [*start, event.data["step"], *[None] * (len(names) - 1), event.data.get("loss"), event.data.get("loss_ema")]


def _cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _one_seed(takes: Sequence[dict[str, Any] | None]) -> bool:
    return len({take.get("seed") for take in takes if take}) <= 1


def _mean_score(samples: Sequence[dict[str, Any]]) -> float | None:
    last = max((sample["step"] for sample in samples), default=None)
    scores = [sample["clap_score"] for sample in samples if sample["step"] == last and sample.get("clap_score") is not None]
    return mean(scores) if scores else None


def _seconds(run: TrainingRun) -> float | None:
    return ((run.finished_at or timezone.now()) - run.started_at).total_seconds() if run.started_at else None


def _first(values: Sequence[float | None], choose: Callable[..., float]) -> int | None:
    """The place of the lowest or highest of at least two values, if it stands alone."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or known.count(choose(known)) > 1:
        return None
    return values.index(choose(known))

