"""Fine-tuning runs."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import Field, Query, Router, Schema, Status
from pydantic import ConfigDict

from audioldm_site.accounts.sharing import require_change
from audioldm_site.api.problems import Problem
from audioldm_site.api.shapes import (
    EventQuery,
    Events,
    FinetuneParameters,
    JobShape,
    Name,
    PageOf,
    PageQuery,
    Strict,
    Text,
    accepted,
    answers,
    given,
    once,
    page_of,
)
from datasets_app.models import Dataset
from gpu.config import PRESETS, FinetuneConfig
from training_app import preflight, selectors, services, storage, views
from training_app.models import TrainingRun

router = Router(tags=["Runs"])


class RunShape(JobShape):
    task: Literal["finetune", "pretrain"]
    name: str
    dataset: uuid.UUID | None = Field(alias="dataset_id", description="None: it was deleted since.")
    dataset_name: str
    base_checkpoint: uuid.UUID | None = Field(alias="base_checkpoint_id")
    parent: uuid.UUID | None = Field(alias="parent_id", description="The run that this one continues.")
    clip_count: int
    manifest_digest: str
    global_step: int
    max_train_steps: int
    epoch: int
    latest_loss: float | None
    best_validation_loss: float | None
    tags: str
    notes: str
    archived: bool
    place: int | None = Field(description="In line: 1 is next. None when it does not wait.")

    @staticmethod
    def resolve_place(row: Any, context: dict[str, Any]) -> int | None:
        return once(context, "runs_in_line", selectors.places_in_line).get(row.pk) if row.status == "queued" else None


class RunRequest(Strict):
    dataset: uuid.UUID
    checkpoint: uuid.UUID = Field(description="What to start from.")
    name: Name | None = Field(None, description="Made of the dataset's and the checkpoint's when absent.")
    tags: str = Field("", max_length=300, pattern=r"^[^\x00]*$")
    notes: Text = ""
    preset: Literal["quick", "standard", "full"] | None = None
    parameters: FinetuneParameters = Field(default_factory=dict)
    force: bool = Field(False, description="Also a run that memory or disk seem too small for.")


class RunChange(Strict):
    name: Name | None = None
    tags: str | None = Field(None, max_length=300, pattern=r"^[^\x00]*$")
    notes: Text | None = None
    archived: bool | None = None


class Stop(Strict):
    save: bool = Field(True, description="Save a checkpoint first.")


class More(Strict):
    more_steps: int = Field(ge=1, le=10_000_000)


class RunValues(Schema):
    """What a new run with the same options is made from."""

    model_config = ConfigDict(extra="forbid")
    dataset: uuid.UUID | None
    checkpoint: uuid.UUID | None
    name: str
    parameters: FinetuneParameters


class RunQuery(PageQuery):
    q: str = Field("", max_length=500)
    status: Literal["", "queued", "running", "succeeded", "failed", "cancelled"] = ""
    sort: Literal["-created", "created", "name", "-name", "loss", "-loss", "validation", "-validation", "step", "-step"] = "-created"
    archived: bool = False


@router.get("", response=answers(200, PageOf[RunShape]))
def list_runs(request: HttpRequest, wanted: Query[RunQuery]):
    """The runs that you see."""
    page = selectors.run_page(
        request.user, query=wanted.q, status=wanted.status, sort=wanted.sort, archived=wanted.archived, page=wanted.page, per_page=wanted.per_page
    )
    return page_of(request, page, wanted)


@router.post("", response=answers(202, RunShape))
def create_run(request: HttpRequest, response: HttpResponse, body: RunRequest):
    """Put a run in line. Its clips and parameters are frozen now."""
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=body.dataset)
    checkpoint = selectors.visible_checkpoint(request.user, body.checkpoint)
    values = {**PRESETS.get(body.preset or "", {}), **body.parameters}
    run = services.create_run(
        owner=request.user, dataset=dataset, base_checkpoint=checkpoint, values=values, name=body.name, notes=body.notes, tags=body.tags,
        force=body.force,
    )  # fmt: skip
    return accepted(response, "runs", run)


@router.post("/estimate", response=answers(200, dict[str, Any]))
def estimate_run(request: HttpRequest, body: RunRequest):
    """What such a run would need here: memory by part, disk, time, what they rest on, and smaller values that fit. Nothing is made."""
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=body.dataset)
    checkpoint = selectors.visible_checkpoint(request.user, body.checkpoint)
    values = {**FinetuneConfig.known(storage.recommended(checkpoint)), **PRESETS.get(body.preset or "", {}), **body.parameters}
    found = preflight.check(dataset=dataset, checkpoint=checkpoint, config=FinetuneConfig.parse(values))
    if found is None:
        raise Problem("checkpoint.missing", f"the files of {checkpoint.name} cannot be read, so nothing can be said")
    return found.as_dict()


@router.get("/{uuid:pk}", response=answers(200, RunShape))
def get_run(request: HttpRequest, pk: uuid.UUID):
    return selectors.visible_run(request.user, pk)


@router.patch("/{uuid:pk}", response=answers(200, RunShape))
def change_run(request: HttpRequest, pk: uuid.UUID, body: RunChange):
    """Change its name, tags or notes, or move it to the archive."""
    return services.update_run(_own(request, pk), **given(body))


@router.get("/{uuid:pk}/values", response=answers(200, RunValues))
def run_values(request: HttpRequest, pk: uuid.UUID):
    """What to send for a run like this one."""
    values = services.clone_values(selectors.visible_run(request.user, pk))
    return {"dataset": values.pop("dataset"), "checkpoint": values.pop("base_checkpoint"), "name": values.pop("name"), "parameters": values}


@router.get("/{uuid:pk}/events", response=answers(200, Events))
def run_events(request: HttpRequest, pk: uuid.UUID, wanted: Query[EventQuery]):
    """What it said after event `after`, in order and without gaps."""
    return {"events": selectors.events_after(selectors.visible_run(request.user, pk), wanted.after)}


@router.post("/{uuid:pk}/stop", response=answers(202, RunShape))
def stop_run(request: HttpRequest, response: HttpResponse, pk: uuid.UUID, body: Stop = Stop()):  # noqa: B008
    """Ask it to end: at once where it waits, at the next step where it runs."""
    run = _own(request, pk)
    return _done(response, run, services.request_stop(run, save=body.save), "run.ended", f"{run.name} has ended already")


@router.post("/{uuid:pk}/save", response=answers(202, RunShape))
def save_run(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    """Ask for a checkpoint at the next step."""
    run = _own(request, pk)
    return _done(response, run, services.request_save(run), "api.conflict", f"{run.name} is {run.get_status_display()}, not running")


@router.post("/{uuid:pk}/sample", response=answers(202, RunShape))
def sample_run(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    """Ask for the validation sounds at the next step."""
    run = _own(request, pk)
    return _done(response, run, services.request_sample(run), "api.conflict", f"{run.name} is {run.get_status_display()}, not running")


@router.post("/{uuid:pk}/resume", response=answers(202, RunShape))
def resume_run(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    """Put a stopped or failed run back in line; it goes on from its last checkpoint."""
    run = _own(request, pk)
    return _done(response, run, services.resume(run), "api.conflict", f"{run.name} is {run.get_status_display()}: only a stopped or failed run is resumed")


@router.post("/{uuid:pk}/continue", response=answers(202, RunShape))
def continue_run(request: HttpRequest, response: HttpResponse, pk: uuid.UUID, body: More):
    """A new run that goes on where this one ended."""
    run = selectors.visible_run(request.user, pk)
    require_change(request.user, run)
    return accepted(response, "runs", services.continue_run(run, more_steps=body.more_steps, owner=request.user))


@router.get("/{uuid:pk}/files/{path:path}", response=answers(200), openapi_extra={"responses": {"200": {"content": {"audio/wav": {}, "application/json": {}, "text/plain": {}}}}})
def run_file(request: HttpRequest, pk: uuid.UUID, path: str):
    """A sound or a text file of its folder, with ranges: `samples/…wav`, `log.txt`, `events.jsonl`, `config.json`."""
    return views.file(request, pk=pk, path=path)


def _own(request: HttpRequest, pk: uuid.UUID) -> TrainingRun:
    run = selectors.visible_run(request.user, pk)
    require_change(request.user, run)
    return run


def _done(response: HttpResponse, run: TrainingRun, done: bool, code: str, otherwise: str) -> Status:
    """The run as it is now, with where to watch it; or why nothing happened."""
    if not done:
        raise Problem(code, otherwise)
    run.refresh_from_db()
    return accepted(response, "runs", run)
