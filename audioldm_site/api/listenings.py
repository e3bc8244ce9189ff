"""Blind listening tests. Until a listener is done, no answer names a checkpoint."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Annotated, Any, Literal

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import Field, Query, Router, Schema, Status
from pydantic import WithJsonSchema

from audioldm_site.accounts.sharing import require_change
from audioldm_site.api.problems import ROOT, Problem
from audioldm_site.api.shapes import (
    EventQuery,
    Events,
    JobShape,
    Name,
    PageOf,
    PageQuery,
    Strict,
    accepted,
    answers,
    config_schema,
    page_of,
)
from generation_app import evaluation_selectors as selectors
from generation_app import evaluations, listenings
from generation_app import listening_views as views
from generation_app.models import Listening
from gpu.config import ListenConfig
from training_app.models import Checkpoint

router = Router(tags=["Listening"])
ListenParameters = Annotated[dict[str, Any], WithJsonSchema(config_schema(ListenConfig))]


class ListeningShape(JobShape):
    name: str
    pair_count: int
    answered: int = Field(description="Pairs that you have answered.")
    done: bool = Field(description="Whether your part has ended; only then the checkpoints are named.")
    checkpoint: uuid.UUID | None
    against: uuid.UUID | None

    @staticmethod
    def resolve_answered(row: Listening, context: dict[str, Any]) -> int:
        session = _session(row, context)
        return session.answers.count() if session else 0

    @staticmethod
    def resolve_done(row: Listening, context: dict[str, Any]) -> bool:
        session = _session(row, context)
        return bool(session and session.finished_at)

    @staticmethod
    def resolve_checkpoint(row: Listening, context: dict[str, Any]) -> uuid.UUID | None:
        return row.checkpoint_id if ListeningShape.resolve_done(row, context) else None

    @staticmethod
    def resolve_against(row: Listening, context: dict[str, Any]) -> uuid.UUID | None:
        return row.against_id if ListeningShape.resolve_done(row, context) else None


class ListeningRequest(Strict):
    checkpoint: uuid.UUID
    against: uuid.UUID
    name: Name | None = Field(None, description="Listeners read it before they may know what they hear.")
    parameters: ListenParameters = Field(default_factory=dict)


class Pair(Schema):
    """The next pair as you meet it: the order of pairs and sides is drawn for each listener."""

    pair: int | None = Field(description="What to answer with; null when nothing is left.")
    prompt: str | None = None
    a: str | None = Field(None, description="Address of one sound.")
    b: str | None = Field(None, description="Address of the other.")


class Answer(Strict):
    pair: int = Field(ge=0, le=100_000)
    choice: Literal["a", "b", "neither"]


class Results(Schema):
    """Of the listeners who are done: counts, share of wins with its 95 % interval (Wilson), two-sided binomial p."""

    together: dict[str, Any]
    listeners: dict[str, dict[str, Any]]


@router.get("", response=answers(200, PageOf[ListeningShape]))
def list_listenings(request: HttpRequest, wanted: Query[PageQuery]):
    """The tests that you see, the newest first."""
    return page_of(request, Listening.objects.visible_to(request.user).select_related("owner").order_by("-created_at", "pk"), wanted)


@router.post("", response=answers(202, ListeningShape))
def create_listening(request: HttpRequest, response: HttpResponse, body: ListeningRequest):
    """Put the making of a test's sounds in line."""
    visible = Checkpoint.objects.visible_to(request.user)
    made = listenings.create_listening(
        owner=request.user,
        checkpoint=get_object_or_404(visible, pk=body.checkpoint),
        against=get_object_or_404(visible, pk=body.against),
        name=body.name or "",
        values=body.parameters,
    )
    return accepted(response, "listenings", made)


@router.get("/{uuid:pk}", response=answers(200, ListeningShape))
def get_listening(request: HttpRequest, pk: uuid.UUID):
    return selectors.visible_listening(request.user, pk)


@router.get("/{uuid:pk}/events", response=answers(200, Events))
def listening_events(request: HttpRequest, pk: uuid.UUID, wanted: Query[EventQuery]):
    """What it said after event `after`, in order and without gaps."""
    return {"events": selectors.events_after(selectors.visible_listening(request.user, pk), wanted.after)}


@router.get("/{uuid:pk}/next", response=answers(200, Pair))
def next_pair(request: HttpRequest, pk: uuid.UUID):
    """The first pair that you have not answered."""
    found = selectors.visible_listening(request.user, pk)
    if found.status != "succeeded":
        raise Problem("listening.not_ready", f"the sounds of {found.name} are not ready")
    session = listenings.session_of(found, request.user)
    pair = listenings.next_pair(session)
    if pair is None:
        return {"pair": None}
    number = listenings.pair_order(session).index(pair) + 1
    addresses = {side: f"{ROOT}listenings/{pk}/sounds/{number}/{side}" for side in listenings.SIDES}
    return {"pair": pair, "prompt": found.config["prompts"][pair], **addresses}


@router.get("/{uuid:pk}/sounds/{int:number}/{side}", response=answers(200), openapi_extra={"responses": {"200": {"content": {"audio/wav": {}}}}})
def listening_sound(request: HttpRequest, pk: uuid.UUID, number: int, side: str):
    """One sound of a pair that `next` named."""
    return views.sound(request, pk=pk, number=number, side=side)


@router.post("/{uuid:pk}/answers", response=answers(200, ListeningShape))
def answer(request: HttpRequest, pk: uuid.UUID, body: Answer):
    """Say which sound of a pair you prefer; an answer is never changed."""
    found = selectors.visible_listening(request.user, pk)
    if not listenings.answer(listenings.session_of(found, request.user), pair=body.pair, choice=body.choice):
        raise Problem("api.conflict", f"pair {body.pair} has your answer already, or your part has ended")
    return found


@router.post("/{uuid:pk}/finish", response=answers(200, ListeningShape))
def finish(request: HttpRequest, pk: uuid.UUID):
    """End your part before the last pair."""
    found = selectors.visible_listening(request.user, pk)
    session = listenings.session_of(found, request.user)
    if not session.answers.exists():
        raise Problem("api.conflict", "answer at least one pair first")
    listenings.finish(session)
    return found


@router.get("/{uuid:pk}/results", response=answers(200, Results))
def results(request: HttpRequest, pk: uuid.UUID):
    """What was preferred; refused until your own part has ended."""
    found = selectors.visible_listening(request.user, pk)
    if not found.sessions.filter(listener=request.user).exclude(finished_at=None).exists():
        raise Problem("api.conflict", "the names are hidden until you have answered every pair, or ended your part")
    told = selectors.results(found)
    return {"together": _figures(told.together), "listeners": {name: _figures(tally) for name, tally in told.listeners}}


@router.post("/{uuid:pk}/stop", response=answers(202, ListeningShape))
def stop_listening(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    found = _own(request, pk)
    return _done(response, found, evaluations.request_stop(found), "run.ended", "it has ended already")


@router.post("/{uuid:pk}/retry", response=answers(202, ListeningShape))
def retry_listening(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    """Put a stopped or failed one back in line; it goes on with what it has made."""
    found = _own(request, pk)
    return _done(response, found, evaluations.retry(found), "api.conflict", f"it is {found.get_status_display()}: only what was stopped or failed is tried again")


@router.delete("/{uuid:pk}", response=answers(204))
def delete_listening(request: HttpRequest, pk: uuid.UUID):
    """Delete it with its sounds and answers; refused while it waits or runs."""
    evaluations.delete(_own(request, pk))
    return HttpResponse(status=204)


def _session(row: Listening, context: dict[str, Any]):
    """The asking listener's, or None before they have begun."""
    return row.sessions.filter(listener=context["request"].user).first()


def _figures(tally: listenings.Tally) -> dict[str, Any]:
    return {**asdict(tally), "win_rate": tally.win_rate, "interval": tally.interval, "p": tally.p, "verdict": tally.verdict}


def _own(request: HttpRequest, pk: uuid.UUID) -> Listening:
    found = selectors.visible_listening(request.user, pk)
    require_change(request.user, found)
    return found


def _done(response: HttpResponse, found: Listening, done: bool, code: str, otherwise: str) -> Status:
    if not done:
        raise Problem(code, otherwise)
    found.refresh_from_db()
    return accepted(response, "listenings", found)
