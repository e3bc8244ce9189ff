"""Evaluations: how good a checkpoint is, and beside what it came from."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import Field, Query, Router, Status
from pydantic import WithJsonSchema

from audioldm_site.accounts.sharing import require_change
from audioldm_site.api.problems import Problem
from audioldm_site.api.shapes import EventQuery, Events, JobShape, PageOf, PageQuery, Strict, accepted, answers, config_schema, page_of
from datasets_app.models import Dataset
from generation_app import evaluation_selectors as selectors
from generation_app import evaluation_views as views
from generation_app import evaluations
from generation_app.models import Evaluation
from gpu.config import EvaluateConfig
from training_app.models import Checkpoint
from training_app.selectors import visible_checkpoint

router = Router(tags=["Evaluations"])
EvaluateParameters = Annotated[dict[str, Any], WithJsonSchema(config_schema(EvaluateConfig))]


class EvaluationShape(JobShape):
    checkpoint: uuid.UUID | None = Field(alias="checkpoint_id")
    against: uuid.UUID | None = Field(alias="against_id")
    dataset: uuid.UUID | None = Field(alias="dataset_id")
    dataset_name: str
    ears: str = Field(alias="ears_name", description="Whose CLAP judges.")
    summary: dict[str, Any] = Field(description="The report's figures; empty until it has finished.")
    elapsed_s: float | None


class EvaluationRequest(Strict):
    checkpoint: uuid.UUID
    dataset: uuid.UUID
    against: uuid.UUID | None = Field(None, description="Compared with; what a run's checkpoint was trained from when absent.")
    parameters: EvaluateParameters = Field(default_factory=dict)


@router.get("", response=answers(200, PageOf[EvaluationShape]))
def list_evaluations(request: HttpRequest, wanted: Query[PageQuery]):
    """The evaluations that you see, the newest first."""
    return page_of(request, Evaluation.objects.visible_to(request.user).select_related("owner").order_by("-created_at", "pk"), wanted)


@router.post("", response=answers(202, EvaluationShape))
def create_evaluation(request: HttpRequest, response: HttpResponse, body: EvaluationRequest):
    """Put an evaluation in line."""
    checkpoint = visible_checkpoint(request.user, body.checkpoint)
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=body.dataset)
    against = get_object_or_404(Checkpoint.objects.visible_to(request.user), pk=body.against) if body.against else evaluations.base_of(checkpoint)
    made = evaluations.create_evaluation(owner=request.user, checkpoint=checkpoint, dataset=dataset, values=body.parameters, against=against)
    return accepted(response, "evaluations", made)


@router.get("/{uuid:pk}", response=answers(200, EvaluationShape))
def get_evaluation(request: HttpRequest, pk: uuid.UUID):
    return selectors.visible_evaluation(request.user, pk)


@router.get("/{uuid:pk}/events", response=answers(200, Events))
def evaluation_events(request: HttpRequest, pk: uuid.UUID, wanted: Query[EventQuery]):
    """What it said after event `after`, in order and without gaps."""
    return {"events": selectors.events_after(selectors.visible_evaluation(request.user, pk), wanted.after)}


@router.get("/{uuid:pk}/files/{path:path}", response=answers(200), openapi_extra={"responses": {"200": {"content": {"audio/wav": {}, "application/json": {}, "text/plain": {}, "text/html": {}, "text/csv": {}}}}})
def evaluation_file(request: HttpRequest, pk: uuid.UUID, path: str):
    """A sound, or the report, as its page offers them."""
    return views.file(request, pk=pk, path=path)


@router.post("/{uuid:pk}/stop", response=answers(202, EvaluationShape))
def stop_evaluation(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    found = _own(request, pk)
    return _done(response, found, evaluations.request_stop(found), "run.ended", "it has ended already")


@router.post("/{uuid:pk}/retry", response=answers(202, EvaluationShape))
def retry_evaluation(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    """Put a stopped or failed one back in line; it goes on with what it has made."""
    found = _own(request, pk)
    return _done(response, found, evaluations.retry(found), "api.conflict", f"it is {found.get_status_display()}: only what was stopped or failed is tried again")


@router.delete("/{uuid:pk}", response=answers(204))
def delete_evaluation(request: HttpRequest, pk: uuid.UUID):
    """Delete it with its sounds; refused while it waits or runs."""
    evaluations.delete(_own(request, pk))
    return HttpResponse(status=204)


def _own(request: HttpRequest, pk: uuid.UUID) -> Evaluation:
    found = selectors.visible_evaluation(request.user, pk)
    require_change(request.user, found)
    return found


def _done(response: HttpResponse, found: Evaluation, done: bool, code: str, otherwise: str) -> Status:
    if not done:
        raise Problem(code, otherwise)
    found.refresh_from_db()
    return accepted(response, "evaluations", found)
