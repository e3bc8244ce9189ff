"""Checkpoints: what sounds are made with and runs start from."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

from django.http import HttpRequest
from ninja import Field, Query, Router, Schema

from audioldm_site.accounts.sharing import require_change
from audioldm_site.api.shapes import Name, Owned, PageOf, PageQuery, Strict, Text, answers, given, page_of
from training_app import selectors, services, storage, views
from training_app.models import Checkpoint

router = Router(tags=["Checkpoints"])


class CheckpointShape(Owned):
    name: str
    family: str
    format: str = Field(description="diffusers (a whole model) or run (weights on top of `base`)")
    origin: str
    run: uuid.UUID | None = Field(alias="run_id")
    base: uuid.UUID | None = Field(alias="base_id")
    method: str
    global_step: int | None
    metrics: dict[str, Any]
    facts: dict[str, Any]
    size_bytes: int
    sha256: str
    licence: str
    notes: str
    can_generate: bool
    can_finetune: bool
    has_resume_state: bool
    is_best: bool
    pinned: bool = Field(description="Retention never deletes it.")
    retired: bool = Field(description="Out of use.")
    missing: bool = Field(description="Its files were not there at the last look.")
    verified_at: datetime | None


class CheckpointChange(Strict):
    name: Name | None = None
    licence: str | None = Field(None, max_length=200, pattern=r"^[^\x00]*$")
    notes: Text | None = None
    pinned: bool | None = None
    retired: bool | None = None


class CheckpointQuery(PageQuery):
    q: str = Field("", max_length=500)
    origin: Literal["", "builtin", "uploaded", "imported", "scanned", "hub", "run"] = ""
    retired: bool = False


class Verdict(Schema):
    whole: bool = Field(description="The files' hash is the recorded one.")
    checkpoint: CheckpointShape


class Recommendation(Schema):
    """Parameters that suit it, for runs and sounds; what is absent is left to the defaults."""

    parameters: dict[str, Any]


@router.get("", response=answers(200, PageOf[CheckpointShape]))
def list_checkpoints(request: HttpRequest, wanted: Query[CheckpointQuery]):
    """The checkpoints that you see, the newest first."""
    page = selectors.checkpoint_page(
        request.user, query=wanted.q, origin=wanted.origin, retired=wanted.retired, page=wanted.page, per_page=wanted.per_page
    )
    return page_of(request, page, wanted)


@router.get("/{uuid:pk}", response=answers(200, CheckpointShape))
def get_checkpoint(request: HttpRequest, pk: uuid.UUID):
    return selectors.visible_checkpoint(request.user, pk)


@router.patch("/{uuid:pk}", response=answers(200, CheckpointShape))
def change_checkpoint(request: HttpRequest, pk: uuid.UUID, body: CheckpointChange):
    """Rename it, write about it, keep it for good (`pinned`) or take it out of use (`retired`)."""
    checkpoint = _own(request, pk)
    changes = given(body)
    pinned = changes.pop("pinned", None)
    services.update_checkpoint(checkpoint, **changes)
    if pinned is not None:
        services.set_pinned(checkpoint, pinned=pinned)
    return selectors.visible_checkpoint(request.user, pk)


@router.get("/{uuid:pk}/recommended", response=answers(200, Recommendation))
def recommended_parameters(request: HttpRequest, pk: uuid.UUID):
    return {"parameters": storage.recommended(selectors.visible_checkpoint(request.user, pk))}


@router.post("/{uuid:pk}/verify", response=answers(200, Verdict))
def verify_checkpoint(request: HttpRequest, pk: uuid.UUID):
    """Hash the files again and compare; the answer is recorded."""
    whole = storage.verify(_own(request, pk))
    return {"whole": whole, "checkpoint": selectors.visible_checkpoint(request.user, pk)}


@router.get("/{uuid:pk}/download", response=answers(200), openapi_extra={"responses": {"200": {"content": {"application/octet-stream": {}}}}})
def download_checkpoint(request: HttpRequest, pk: uuid.UUID):
    """The trained weights of a run's checkpoint, with ranges so that a broken download goes on."""
    return views.download(request, pk=pk)


def _own(request: HttpRequest, pk: uuid.UUID) -> Checkpoint:
    checkpoint = selectors.visible_checkpoint(request.user, pk)
    require_change(request.user, checkpoint)
    return checkpoint
