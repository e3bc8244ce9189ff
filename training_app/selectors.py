"""What pages read about runs and checkpoints. Every function costs a fixed number of queries."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import Count, F, OuterRef, Q, QuerySet, Subquery, Window
from django.db.models.functions import RowNumber
from django.shortcuts import get_object_or_404

from audioldm_site import search
from audioldm_site.jobs.models import ENDED, Job, Status
from gpu.events import CHECKPOINT, PROGRESS, SAMPLE, STARTED, VALIDATED, WAITING
from training_app import storage
from training_app.models import Checkpoint, Conversion, ConversionEvent, TrainingEvent, TrainingRun

RUNS_PER_PAGE = 20
CHECKPOINTS_PER_PAGE = 25
CONVERSIONS_PER_PAGE = 25
CHART_POINTS = 1_500
LOG_EVENTS = 200
LOG_TAIL_BYTES = 16_000
EVENT_BATCH = 500
MAX_GENERATIONS, MAX_CHILDREN = 20, 12
SERIES = ("step", "loss", "loss_smooth", "learning_rate", "grad_norm", "clips_per_second")
LAYOUT_WORDS = {
    "A": "an original AudioLDM checkpoint",
    "B": "a checkpoint of the AudioLDM training code",
    "C": "an original AudioLDM checkpoint with T5",
    "D": "an original AudioLDM 2 checkpoint",
}
RUN_ORDERS = {
    "-created": ("-created_at",),
    "created": ("created_at",),
    "name": ("name", "-created_at"),
    "-name": ("-name", "-created_at"),
    "loss": (F("latest_loss").asc(nulls_last=True), "-created_at"),
    "-loss": (F("latest_loss").desc(nulls_last=True), "-created_at"),
    "validation": (F("best_validation_loss").asc(nulls_last=True), "-created_at"),
    "-validation": (F("best_validation_loss").desc(nulls_last=True), "-created_at"),
    "step": ("global_step", "-created_at"),
    "-step": ("-global_step", "-created_at"),
}


@dataclass(frozen=True)
class Ancestor:
    """One link of a chain: a checkpoint, or a run; `linked` where the reader may see it."""

    checkpoint: Checkpoint | None = None
    run: TrainingRun | None = None
    linked: bool = False


def run_page(
    user,
    *,
    query: str = "",
    status: str = "",
    sort: str = "",
    archived: bool = False,
    page: str | int | None = 1,
    per_page: int = RUNS_PER_PAGE,
) -> Page:
    """One page of the runs that `user` may see. `query` looks in names, tags, notes and dataset names."""
    runs = TrainingRun.objects.visible_to(user).filter(archived=archived).select_related("base_checkpoint", "owner")
    for word in search.words(query):
        runs = runs.filter(Q(name__icontains=word) | Q(tags__icontains=word) | Q(notes__icontains=word) | Q(dataset_name__icontains=word))
    if status in Status.values:
        runs = runs.filter(status=status)
    runs = runs.order_by(*RUN_ORDERS.get(sort, RUN_ORDERS["-created"]))
    return Paginator(runs, per_page).get_page(page)


def running_runs(user) -> list[TrainingRun]:
    """Runs that a worker has now, each with `latest`: the data of its newest progress or waiting event."""
    newest = TrainingEvent.objects.filter(job=OuterRef("pk")).order_by("-seq")
    return list(
        TrainingRun.objects.visible_to(user)
        .filter(status=Status.RUNNING)
        .select_related("base_checkpoint")
        .annotate(
            progress=Subquery(newest.filter(type=PROGRESS).values("data")[:1]),
            newest_type=Subquery(newest.values("type")[:1]),
            newest_data=Subquery(newest.values("data")[:1]),
        )
        .order_by("started_at")
    )


def waiting_runs(user) -> list[TrainingRun]:
    """The visible runs in line, each with `place`: 1 is next. The runs of others count, unnamed."""
    places = places_in_line()
    runs = list(TrainingRun.objects.visible_to(user).in_line().select_related("base_checkpoint"))
    for run in runs:
        run.place = places.get(run.pk)
    return runs


def places_in_line() -> dict[uuid.UUID, int]:
    return {pk: place for place, pk in enumerate(TrainingRun.objects.in_line().values_list("pk", flat=True), start=1)}


def visible_run(user, pk: uuid.UUID) -> TrainingRun:
    """Raises Http404 for a stranger's run."""
    runs = TrainingRun.objects.visible_to(user).select_related("dataset", "base_checkpoint", "parent", "resume_from", "owner")
    return get_object_or_404(runs, pk=pk)


def run_checkpoints(run: TrainingRun) -> list[Checkpoint]:
    return list(run.checkpoints.order_by("-global_step"))


def run_snapshot(run: TrainingRun) -> dict[str, Any]:
    """The run at event `run.last_seq`, in the shape that js/run_state.js continues from; at most CHART_POINTS of progress.

    What an earlier attempt said about steps after the one that a later attempt resumed from is history, and left out.
    """
    events = run.events.filter(seq__lte=run.last_seq)
    told = list(events.filter(type__in=[STARTED, VALIDATED, SAMPLE, CHECKPOINT]).order_by("seq"))
    started = [event for event in told if event.type == STARTED]
    holds = kept_steps(started)
    progress = [event for event in _thinned(events.filter(type=PROGRESS)) if holds(event)]
    latest = progress[-1] if progress else None
    newest = events.order_by("-seq").first()
    return {
        "seq": run.last_seq,
        "attempt": run.attempt,
        "status": run.status,
        "step": run.global_step,
        "max_steps": run.config.get("max_train_steps"),
        "epoch": run.epoch,
        "started": started[-1].data if started else None,
        "latest": {**latest.data, "at": latest.at.isoformat()} if latest else None,
        "waiting": newest.data if newest and newest.type == WAITING else None,
        "progress": {name: [event.data.get(name) for event in progress] for name in SERIES},
        "validations": [event.data for event in told if event.type == VALIDATED and holds(event)],
        "samples": list(
            {(event.data["step"], event.data["index"]): event.data for event in told if event.type == SAMPLE and holds(event)}.values()
        ),
        "checkpoints": [event.data["step"] for event in told if event.type == CHECKPOINT],
        "error": {"code": run.error_code, "detail": run.error_detail} if run.error_code else None,
    }


def kept_steps(started: list[TrainingEvent]) -> Callable[[TrainingEvent], bool]:
    """Whether what an event says of its step still holds, given the run's `started` events: a later attempt may have gone back before it."""
    resumed_at = [(event.attempt, event.data.get("step") or 0) for event in started]

    def holds(event: TrainingEvent) -> bool:
        step = event.data.get("step")
        return step is not None and all(event.attempt >= attempt or step <= resumed for attempt, resumed in resumed_at)

    return holds


def sample_rows(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sounds of a run by prompt, each prompt's takes from the first step to the last."""
    rows: dict[int, dict[str, Any]] = {}
    for sample in sorted(samples, key=lambda sample: (sample["index"], sample["step"])):
        rows.setdefault(sample["index"], {"prompt": sample["prompt"], "takes": []})["takes"].append(sample)
    return list(rows.values())


def run_log(run: TrainingRun) -> list[TrainingEvent]:
    """What happened, newest first, without the ticking of progress."""
    return list(run.events.filter(seq__lte=run.last_seq).exclude(type__in=[PROGRESS, WAITING]).order_by("-seq")[:LOG_EVENTS])


def events_after(run: TrainingRun, seq: int) -> list[dict[str, Any]]:
    """The next batch of events, for a page whose socket cannot connect."""
    return [event.as_message() for event in run.events.filter(seq__gt=seq).order_by("seq")[:EVENT_BATCH]]


def log_tail(job: Job) -> str:
    """The end of a job's log.txt; "" when there is none."""
    try:
        with open(job.folder / "log.txt", "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if size > LOG_TAIL_BYTES else text


def checkpoint_page(
    user, *, query: str = "", origin: str = "", page: str | int | None = 1, per_page: int = CHECKPOINTS_PER_PAGE, retired: bool = False
) -> Page:
    """One page of the checkpoints that `user` may see, each with `generation_count` and `run_count`."""
    checkpoints = (
        Checkpoint.objects.visible_to(user)
        .filter(retired=retired)
        .select_related("run", "base", "owner")
        .annotate(generation_count=Count("generations", distinct=True), run_count=Count("runs", distinct=True))
        .order_by("-created_at")
    )
    for word in search.words(query):
        checkpoints = checkpoints.filter(Q(name__icontains=word) | Q(notes__icontains=word) | Q(run__name__icontains=word))
    if origin in Checkpoint.Origin.values:
        checkpoints = checkpoints.filter(origin=origin)
    return Paginator(checkpoints, per_page).get_page(page)


def visible_checkpoint(user, pk: uuid.UUID) -> Checkpoint:
    """Raises Http404 for a stranger's checkpoint."""
    return get_object_or_404(Checkpoint.objects.visible_to(user).select_related("run__dataset", "run__base_checkpoint", "run__resume_from", "base", "owner"), pk=pk)


def playable_checkpoints(user) -> QuerySet[Checkpoint]:
    """Checkpoints to make sounds with, as a form offers them: whole models first, then the newest."""
    return Checkpoint.objects.visible_to(user).playable().order_by("format", "-created_at")


def trainable_checkpoints(user) -> QuerySet[Checkpoint]:
    """Checkpoints to start a run from, in the same order."""
    return Checkpoint.objects.visible_to(user).trainable().order_by("format", "-created_at")


def recommendations(checkpoints: QuerySet[Checkpoint]) -> dict[str, dict[str, Any]]:
    """What each checkpoint recommends, by id. Two queries, however long the chains of fine-tunes below them."""
    rows = {row.pk: row for row in Checkpoint.objects.only("base", "format", "defaults")}
    for row in rows.values():
        row.base = rows.get(row.base_id)
    return {str(pk): storage.recommended(rows[pk]) for pk in checkpoints.values_list("pk", flat=True)}


def descendants(user, checkpoint: Checkpoint) -> list[TrainingRun]:
    """Visible runs that started from this checkpoint, the newest first."""
    return list(
        TrainingRun.objects.visible_to(user).filter(Q(base_checkpoint=checkpoint) | Q(resume_from=checkpoint)).order_by("-created_at")[:20]
    )


def ancestors(user, checkpoint: Checkpoint) -> list[Ancestor]:
    """What a checkpoint was made from, the oldest first: models, and the run after each with its dataset. Of a stranger's only the name."""
    chain: list[Ancestor] = []
    row: Checkpoint | None = checkpoint
    for _ in range(MAX_GENERATIONS):
        run = row.run
        parent = (run.resume_from or run.base_checkpoint if run else None) or row.base
        if run:
            chain.append(Ancestor(run=run))
        if parent is None or parent.pk == row.pk:
            break
        chain.append(Ancestor(checkpoint=parent))
        row = Checkpoint.objects.select_related("base", "run__dataset", "run__base_checkpoint", "run__resume_from").get(pk=parent.pk)
    models = set(Checkpoint.objects.visible_to(user).filter(pk__in=[item.checkpoint.pk for item in chain if item.checkpoint]).values_list("pk", flat=True))
    runs = set(TrainingRun.objects.visible_to(user).filter(pk__in=[item.run.pk for item in chain if item.run]).values_list("pk", flat=True))
    return [replace(item, linked=(item.checkpoint or item.run).pk in models | runs) for item in reversed(chain)]


def children(user, checkpoint: Checkpoint) -> list[Checkpoint]:
    """Visible checkpoints that were made from this one directly, the newest first."""
    rows = Checkpoint.objects.visible_to(user).filter(retired=False)
    trained = Q(run__resume_from=checkpoint) | Q(run__resume_from=None, run__base_checkpoint=checkpoint)
    return list(rows.filter(trained | Q(run=None, base=checkpoint)).order_by("-created_at")[: MAX_CHILDREN + 1])


def _thinned(events: QuerySet[TrainingEvent]) -> list[TrainingEvent]:
    """At most CHART_POINTS of the events, evenly spaced, and always the newest."""
    count = events.count()
    stride = -(-count // CHART_POINTS) if count > CHART_POINTS else 1
    if stride == 1:
        return list(events.order_by("seq"))
    # Counted from the newest, so that it is always among them.
    rows = events.annotate(row=Window(RowNumber(), order_by=F("seq").asc()))
    return list(rows.annotate(turn=F("row") % stride).filter(turn=count % stride).order_by("seq"))


def visible_conversion(user, pk: uuid.UUID) -> Conversion:
    """Raises Http404 for a stranger's conversion."""
    return get_object_or_404(Conversion.objects.visible_to(user).select_related("checkpoint", "base", "owner"), pk=pk)


def conversion_page(user, *, page: str | int | None = 1) -> Page:
    """One page of the imports and exports that `user` may see, the newest first."""
    rows = Conversion.objects.visible_to(user).select_related("checkpoint", "owner").order_by("-created_at")
    return Paginator(rows, CONVERSIONS_PER_PAGE).get_page(page)


def active_conversions(user) -> list[Conversion]:
    """What comes in or goes out now, each with `waiting`: the data of its newest event."""
    newest = ConversionEvent.objects.filter(job=OuterRef("pk"), type=WAITING).order_by("-seq")
    rows = Conversion.objects.visible_to(user).active().select_related("checkpoint").annotate(waiting=Subquery(newest.values("data")[:1]))
    return list(rows.order_by("created_at"))


def exports_of(user, checkpoint: Checkpoint) -> list[Conversion]:
    """Exports of a checkpoint that wait, run or can be downloaded."""
    rows = Conversion.objects.visible_to(user).filter(checkpoint=checkpoint, direction=Conversion.Direction.EXPORT)
    return list(rows.exclude(status__in=ENDED, result="").order_by("-created_at")[:20])


def conversion_snapshot(conversion: Conversion) -> dict[str, Any]:
    """The conversion at event `conversion.last_seq`, in the shape that js/conversion_state.js continues from."""
    events = conversion.events.filter(seq__lte=conversion.last_seq)
    newest = events.order_by("-seq").first()
    stage = None
    if newest and newest.type == WAITING:
        first = events.filter(type=WAITING, attempt=newest.attempt, data__stage=newest.data.get("stage")).order_by("seq").first() or newest
        stage = {**newest.data, "at": newest.at.isoformat(), "first_at": first.at.isoformat(), "first_done": first.data.get("done") or 0}
    return {"seq": conversion.last_seq, "attempt": conversion.attempt, "status": conversion.status, "stage": stage}


def seconds_left(stage: dict[str, Any] | None) -> float | None:
    """How long a stage will still take at the pace that it has had; None while nobody can tell. js/conversion_state.js says the same."""
    if not stage or not stage.get("total"):
        return None
    passed = (datetime.fromisoformat(stage["at"]) - datetime.fromisoformat(stage["first_at"])).total_seconds()
    gone = (stage.get("done") or 0) - stage["first_done"]
    if passed < 1 or gone <= 0:
        return None
    return (stage["total"] - stage["done"]) * passed / gone


def conversion_places() -> dict[uuid.UUID, int]:
    return {pk: place for place, pk in enumerate(Conversion.objects.in_line().values_list("pk", flat=True), start=1)}


def conversion_events_after(conversion: Conversion, seq: int) -> list[dict[str, Any]]:
    """The next batch of events, for a page whose socket cannot connect."""
    return [event.as_message() for event in conversion.events.filter(seq__gt=seq).order_by("seq")[:EVENT_BATCH]]


def facts_in_words(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """What a checkpoint is, in people's words: (name, value), as far as it is known."""
    facts, original = checkpoint.facts, checkpoint.facts.get("original") or {}
    rate, unet = facts.get("sample_rate_hz"), (facts.get("parameters") or {}).get("unet")
    heads = original.get("heads")
    weights = {"ema": "the moving average (EMA)", "raw": "raw, as the last training step left them"}.get(original.get("weights"), "")
    lines = [
        ("variant", facts.get("variant") or checkpoint.get_family_display()),
        ("family", f"{checkpoint.get_family_display()} ({checkpoint.family})"),
        ("sample rate", f"{rate / 1000:g} kHz" if rate else ""),
        ("UNet", f"{unet / 1e6:.1f} million weights" if unet else ""),
        ("attention heads", ", ".join(map(str, heads)) if heads else ""),
        ("predicts", facts.get("prediction_type") or ""),
        # What makes no sounds has none to rank.
        ("ranks candidates", ("yes, by CLAP" if facts.get("ranks_by_clap") else "no: it has no CLAP that hears") if checkpoint.can_generate else ""),
        ("came from", LAYOUT_WORDS.get(original.get("layout"), original.get("layout") or "")),
        ("file", original.get("source_name") or ""),
        ("weights", weights),
        ("trained for", f"{original['global_step']} steps, as its file says" if original.get("global_step") else ""),
    ]
    return [(name, str(value)) for name, value in lines if value]
