"""What pages read about evaluations and listening tests. Every function costs a fixed number of queries."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import Count, Prefetch, Q
from django.shortcuts import get_object_or_404

from audioldm_site import search
from audioldm_site.jobs.models import Job, Status
from datasets_app.models import Clip, Dataset, DatasetStatus
from generation_app.listenings import Tally, tally
from generation_app.models import Evaluation, Listening, ListeningSession
from gpu.errors import Fault
from gpu.evaluation.report import CLAP_CHANCE, CLAP_SCORE, FRECHET, KAD, Figure, Report, SoundRow
from gpu.events import PROGRESS, STARTED, WAITING

PER_PAGE = 20
EVENT_BATCH = 500
FIGURE_WORDS = {
    CLAP_SCORE: ("CLAP score", "How well each sound fits its prompt in CLAP's ears: mean cosine, −1 to 1. Higher is better."),
    CLAP_CHANCE: ("the same by chance", "What the same sounds score for other prompts: a score near it means that the prompt was ignored."),
    KAD: ("kernel audio distance", "How far the set of sounds is from the held-out real ones: 100 × unbiased MMD². Lower is better; near 0, or below, means not told apart."),
    FRECHET: ("Fréchet distance", "The same with Gaussians. Lower is better; needs many sounds."),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FigureRow:
    """One line of the report's table: a figure, of each subject in order, and the difference of the first two."""

    name: str
    label: str
    help: str
    cells: list[Figure | None]
    difference: Figure | None

    @property
    def has_difference(self) -> bool:
        return self.difference is not None and self.difference.value is not None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The sounds of one prompt and seed, and the training clips nearest to them, where the reader may hear those."""

    index: int
    prompt: str
    sounds: list[tuple[str, SoundRow, Clip | None]]


def evaluation_page(user, *, query: str = "", page: str | int | None = 1) -> Page:
    evaluations = Evaluation.objects.visible_to(user).select_related("checkpoint", "against", "owner")
    for word in search.words(query):
        evaluations = evaluations.filter(Q(checkpoint__name__icontains=word) | Q(against__name__icontains=word) | Q(dataset_name__icontains=word))
    return Paginator(evaluations, PER_PAGE).get_page(page)


def visible_evaluation(user, pk: uuid.UUID) -> Evaluation:
    """Raises Http404 for a stranger's."""
    rows = Evaluation.objects.visible_to(user).select_related("checkpoint__run", "against", "dataset", "owner")
    return get_object_or_404(rows, pk=pk)


def usable_datasets(user):
    return Dataset.objects.visible_to(user).filter(status=DatasetStatus.READY).order_by("name")


def read_report(evaluation: Evaluation) -> Report | None:
    """None while there is none, or where its file is gone or damaged."""
    if evaluation.status != Status.SUCCEEDED:
        return None
    try:
        return Report.read(evaluation.folder)
    except Fault:
        return None


def figure_rows(report: Report) -> list[FigureRow]:
    differences = {figure.name: figure for figure in report.differences}
    return [
        FigureRow(
            name=name, label=label, help=help, cells=[subject.figure(name) for subject in report.subjects], difference=differences.get(name)
        )
        for name, (label, help) in FIGURE_WORDS.items()
    ]


def pairs(user, evaluation: Evaluation, report: Report) -> list[Pair]:
    """Both checkpoints' sounds, prompt by prompt. The nearest training clip is given only to somebody who may hear the dataset."""
    may_hear = Dataset.objects.visible_to(user).filter(pk=evaluation.dataset_id)
    wanted = {sound.nearest.sha256 for subject in report.subjects for sound in subject.sounds if sound.nearest}
    clips = {clip.sha256: clip for clip in Clip.objects.filter(dataset__in=may_hear) if clip.sha256 in wanted}
    made = [subject for subject in report.subjects if subject.sounds]
    return [
        Pair(
            index=rows[0].index,
            prompt=rows[0].prompt,
            sounds=[(subject.name, row, clips.get(row.nearest.sha256) if row.nearest else None) for subject, row in zip(made, rows, strict=True)],
        )
        for rows in zip(*(subject.sounds for subject in made), strict=True)
    ]


def job_snapshot(job: Job) -> dict[str, Any]:
    """The job at event `job.last_seq`, in the shape that js/generation_state.js continues from."""
    newest = job.events.filter(seq__lte=job.last_seq, type__in=[STARTED, PROGRESS, WAITING]).order_by("-seq").first()
    return {
        "seq": job.last_seq,
        "attempt": job.attempt,
        "status": job.status,
        "latest": newest.data if newest and newest.type == PROGRESS else None,
        "waiting": newest.data if newest and newest.type == WAITING else None,
        "waveforms": 0,
    }


def events_after(job: Job, seq: int) -> list[dict[str, Any]]:
    """The next batch of events, for a page whose socket cannot connect."""
    return [event.as_message() for event in job.events.filter(seq__gt=seq).order_by("seq")[:EVENT_BATCH]]


def listening_page(user, *, page: str | int | None = 1) -> Page:
    """Each with `mine`: the reader's own session in a list, or an empty one, and `done_count`: finished listeners."""
    mine = Prefetch("sessions", ListeningSession.objects.filter(listener=user).annotate(answered=Count("answers")), to_attr="mine")
    rows = (
        Listening.objects.visible_to(user)
        .select_related("owner", "checkpoint", "against")
        .annotate(done_count=Count("sessions", filter=Q(sessions__finished_at__isnull=False)))
        .prefetch_related(mine)
        .order_by("-created_at")  # a count takes the model's own order away
    )
    return Paginator(rows, PER_PAGE).get_page(page)


def visible_listening(user, pk: uuid.UUID) -> Listening:
    """Raises Http404 for a stranger's."""
    return get_object_or_404(Listening.objects.visible_to(user).select_related("checkpoint", "against", "owner"), pk=pk)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What finished listeners preferred: together, one by one, and pair by pair (without their names)."""

    together: Tally
    listeners: list[tuple[str, Tally]]
    by_pair: list[tuple[int, str, Tally]]


def results(listening: Listening) -> Results:
    """Of the sessions that are finished; the answers of the others stay out until they are."""
    sessions = list(listening.sessions.exclude(finished_at=None).select_related("listener").prefetch_related("answers"))
    answers = [item for session in sessions for item in session.answers.all()]
    prompts = listening.config["prompts"]
    return Results(
        together=tally(answers),
        listeners=[(session.listener.get_username(), tally(session.answers.all())) for session in sessions],
        by_pair=[(pair, prompt, tally([item for item in answers if item.pair == pair])) for pair, prompt in enumerate(prompts)],
    )


