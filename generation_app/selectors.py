"""What pages read about generations. Every function costs a fixed number of queries."""

from __future__ import annotations

import uuid
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import OuterRef, Prefetch, Q, Subquery
from django.shortcuts import get_object_or_404

from audioldm_site import search
from audioldm_site.jobs.models import Status
from generation_app.models import Generation, GenerationEvent, Waveform
from gpu.events import PROGRESS, STARTED, WAITING

GENERATIONS_PER_PAGE = 20
EVENT_BATCH = 500


def generation_page(
    user, *, query: str = "", favourites: bool = False, checkpoint: uuid.UUID | None = None, page: str | int | None = 1, per_page: int = GENERATIONS_PER_PAGE
) -> Page:
    """One page of the generations that `user` may see, each with `best`: its first-ranked waveform in a list, or an empty list."""
    best = Prefetch("waveforms", Waveform.objects.filter(index=0), to_attr="best")
    generations = Generation.objects.visible_to(user).select_related("checkpoint", "owner").prefetch_related(best)
    for word in search.words(query):
        generations = generations.filter(Q(prompt__icontains=word) | Q(notes__icontains=word) | Q(checkpoint__name__icontains=word))
    if favourites:
        generations = generations.filter(favourite=True)
    if checkpoint:
        generations = generations.filter(checkpoint=checkpoint)
    return Paginator(generations, per_page).get_page(page)


def active_generations(user) -> list[Generation]:
    """Running and waiting ones, with `progress` (newest progress data) and `place` in line (1 is next, None when running)."""
    newest = GenerationEvent.objects.filter(job=OuterRef("pk"), type=PROGRESS).order_by("-seq")
    places = places_in_line()
    found = list(
        Generation.objects.visible_to(user)
        .active()
        .select_related("checkpoint")
        .annotate(progress=Subquery(newest.values("data")[:1]))
        .order_by("queued_at")
    )
    for generation in found:
        generation.place = places.get(generation.pk)
    return sorted(found, key=lambda generation: generation.place or 0)


def recent_generations(user, count: int = 5) -> list[Generation]:
    """The newest finished ones, each with `best`."""
    best = Prefetch("waveforms", Waveform.objects.filter(index=0), to_attr="best")
    return list(
        Generation.objects.visible_to(user).filter(status=Status.SUCCEEDED).select_related("checkpoint").prefetch_related(best)[:count]
    )


def last_checkpoint_id(user) -> uuid.UUID | None:
    """The checkpoint that `user` made a sound with last."""
    return Generation.objects.filter(owner=user).order_by("-created_at").values_list("checkpoint", flat=True).first()


def places_in_line() -> dict[uuid.UUID, int]:
    return {pk: place for place, pk in enumerate(Generation.objects.in_line().values_list("pk", flat=True), start=1)}


def visible_generation(user, pk: uuid.UUID) -> Generation:
    """Raises Http404 for a stranger's generation."""
    return get_object_or_404(Generation.objects.visible_to(user).select_related("checkpoint__run", "checkpoint__base", "owner"), pk=pk)


def generation_snapshot(generation: Generation) -> dict[str, Any]:
    """The generation at event `generation.last_seq`, in the shape that js/generation_state.js continues from."""
    events = list(generation.events.filter(seq__lte=generation.last_seq, type__in=[STARTED, PROGRESS, WAITING]).order_by("-seq")[:1])
    newest = events[0] if events else None
    return {
        "seq": generation.last_seq,
        "attempt": generation.attempt,
        "status": generation.status,
        "latest": newest.data if newest and newest.type == PROGRESS else None,
        "waiting": newest.data if newest and newest.type == WAITING else None,
        "waveforms": generation.waveforms.count(),
    }


def events_after(generation: Generation, seq: int) -> list[dict[str, Any]]:
    """The next batch of events, for a page whose socket cannot connect."""
    return [event.as_message() for event in generation.events.filter(seq__gt=seq).order_by("seq")[:EVENT_BATCH]]
