"""Sounds made from a prompt."""

from __future__ import annotations

import uuid
from typing import Any

from django.db.models import prefetch_related_objects
from django.http import HttpRequest, HttpResponse
from ninja import Field, Query, Router, Schema, Status

from audioldm_site.accounts.sharing import require_change
from audioldm_site.api.problems import Problem
from audioldm_site.api.shapes import (
    EventQuery,
    Events,
    GenerateParameters,
    JobShape,
    PageOf,
    PageQuery,
    Strict,
    accepted,
    answers,
    once,
    page_of,
)
from generation_app import selectors, services, views
from generation_app.models import Generation
from training_app.selectors import visible_checkpoint

router = Router(tags=["Generations"])


class Sound(Schema):
    index: int = Field(description="0 ranks best.")
    seed: int
    file: str = Field(alias="audio", description="For …/files/{path}.")
    sha256: str
    duration_s: float
    sample_rate_hz: int
    clap_score: float | None
    flags: list[str] = Field(description="What sounds wrong.")


class GenerationShape(JobShape):
    checkpoint: uuid.UUID | None = Field(alias="checkpoint_id")
    prompt: str
    favourite: bool
    notes: str
    elapsed_s: float | None
    sounds: list[Sound]
    place: int | None = Field(description="In line: 1 is next. None when it does not wait.")

    @staticmethod
    def resolve_sounds(row: Any) -> list[Any]:
        return list(row.waveforms.all())

    @staticmethod
    def resolve_place(row: Any, context: dict[str, Any]) -> int | None:
        return once(context, "generations_in_line", selectors.places_in_line).get(row.pk) if row.status == "queued" else None


class GenerationRequest(Strict):
    checkpoint: uuid.UUID
    parameters: GenerateParameters = Field(description="`prompt` must be among them.")


class GenerationChange(Strict):
    favourite: bool


class GenerationQuery(PageQuery):
    q: str = Field("", max_length=500)
    favourites: bool = False
    checkpoint: uuid.UUID | None = None


@router.get("", response=answers(200, PageOf[GenerationShape]))
def list_generations(request: HttpRequest, wanted: Query[GenerationQuery]):
    """What was made and is being made, the newest first."""
    page = selectors.generation_page(
        request.user, query=wanted.q, favourites=wanted.favourites, checkpoint=wanted.checkpoint, page=wanted.page, per_page=wanted.per_page
    )
    page.object_list = list(page.object_list)
    prefetch_related_objects(page.object_list, "waveforms")
    return page_of(request, page, wanted)


@router.post("", response=answers(202, GenerationShape))
def create_generation(request: HttpRequest, response: HttpResponse, body: GenerationRequest):
    """Ask for sounds: watch `status`, or the events."""
    checkpoint = visible_checkpoint(request.user, body.checkpoint)
    made = services.create_generation(owner=request.user, checkpoint=checkpoint, values=body.parameters)
    return accepted(response, "generations", made)


@router.get("/{uuid:pk}", response=answers(200, GenerationShape))
def get_generation(request: HttpRequest, pk: uuid.UUID):
    return selectors.visible_generation(request.user, pk)


@router.patch("/{uuid:pk}", response=answers(200, GenerationShape))
def change_generation(request: HttpRequest, pk: uuid.UUID, body: GenerationChange):
    """Make it a favourite, or not."""
    generation = _own(request, pk)
    services.set_favourite(generation, favourite=body.favourite)
    return generation


@router.delete("/{uuid:pk}", response=answers(204))
def delete_generation(request: HttpRequest, pk: uuid.UUID):
    """Delete it with its sounds; refused while it waits or runs."""
    services.delete_generation(_own(request, pk))
    return HttpResponse(status=204)


@router.post("/{uuid:pk}/stop", response=answers(202, GenerationShape))
def stop_generation(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    generation = _own(request, pk)
    return _done(response, generation, services.request_stop(generation), "run.ended", "it has ended already")


@router.post("/{uuid:pk}/retry", response=answers(202, GenerationShape))
def retry_generation(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    """Put a stopped or failed one back in line."""
    generation = _own(request, pk)
    return _done(response, generation, services.retry(generation), "api.conflict", f"it is {generation.get_status_display()}: only what was stopped or failed is tried again")


@router.get("/{uuid:pk}/events", response=answers(200, Events))
def generation_events(request: HttpRequest, pk: uuid.UUID, wanted: Query[EventQuery]):
    """What it said after event `after`, in order and without gaps."""
    return {"events": selectors.events_after(selectors.visible_generation(request.user, pk), wanted.after)}


@router.get("/{uuid:pk}/files/{path:path}", response=answers(200), openapi_extra={"responses": {"200": {"content": {"audio/wav": {}}}}})
def generation_file(request: HttpRequest, pk: uuid.UUID, path: str):
    """A sound, with ranges; its recipe and licence are written into it."""
    return views.file(request, pk=pk, path=path)


def _own(request: HttpRequest, pk: uuid.UUID) -> Generation:
    generation = selectors.visible_generation(request.user, pk)
    require_change(request.user, generation)
    return generation


def _done(response: HttpResponse, generation: Generation, done: bool, code: str, otherwise: str) -> Status:
    if not done:
        raise Problem(code, otherwise)
    generation.refresh_from_db()
    return accepted(response, "generations", generation)
