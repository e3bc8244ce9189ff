"""The studio itself: who asks, who works, what waits, what parameters there are, what is shared, what a code means."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

from django.http import Http404, HttpRequest
from ninja import Field, Router, Schema

from audioldm_site import faults, hardware, machine
from audioldm_site.accounts import sharing
from audioldm_site.api.shapes import answers
from audioldm_site.jobs.lifecycle import job_models
from audioldm_site.jobs.models import Status
from gpu.config import PRESETS, EvaluateConfig, FinetuneConfig, GenerateConfig

router = Router(tags=["Studio"])
CONFIGS = {"finetune": FinetuneConfig, "generate": GenerateConfig, "evaluate": EvaluateConfig}


class Me(Schema):
    name: str
    is_staff: bool
    shares_everything: bool


class Queue(Schema):
    queue: str
    alive: bool
    device: str
    seen_at: datetime | None


class Counts(Schema):
    kind: str
    queued: int
    running: int


class Gpu(Schema):
    name: str
    memory_bytes: int
    free_bytes: int


class State(Schema):
    queues: list[Queue]
    jobs: list[Counts] = Field(description="Of everybody.")
    disk_total_bytes: int
    disk_free_bytes: int
    gpus: list[Gpu]


class Explanation(Schema):
    code: str
    title: str
    explanation: str
    remedy: str
    whose: str


class Sharing(Schema):
    id: uuid.UUID
    shared: bool


@router.get("/me", response=answers(200, Me))
def me(request: HttpRequest):
    """Who the token, or the session, belongs to."""
    user = request.user
    return {"name": user.get_username(), "is_staff": user.is_staff, "shares_everything": sharing.shares_everything(user)}


@router.get("/state", response=answers(200, State))
def state(request: HttpRequest):
    """Workers, queues, disk and GPUs."""
    disk = machine.disk()
    jobs = [
        {"kind": model.kind, "queued": model.objects.filter(status=Status.QUEUED).count(), "running": model.objects.filter(status=Status.RUNNING).count()}
        for model in job_models()
    ]
    return {
        "queues": machine.queue_states(),
        "jobs": jobs,
        "disk_total_bytes": disk.total_bytes,
        "disk_free_bytes": disk.free_bytes,
        "gpus": hardware.gpus(),
    }


@router.get("/schemas/{kind}", response=answers(200, dict[str, Any]))
def parameter_schema(request: HttpRequest, kind: Literal["finetune", "generate", "evaluate"]):
    """JSON Schema of the parameters, with their words, defaults and limits."""
    return CONFIGS[kind].json_schema()


@router.get("/presets", response=answers(200, dict[str, dict[str, Any]]))
def presets(request: HttpRequest):
    """Named starting points for a run's parameters."""
    return PRESETS


@router.get("/problems/{code}", response=answers(200, Explanation))
def explain_problem(request: HttpRequest, code: str):
    """The words for a code: what a problem's `type` leads to."""
    if code not in faults.WORDS:
        raise Http404("no problem has this code")
    return faults.explain(code)


@router.put("/shares/{uuid:pk}", response=answers(200, Sharing))
def share(request: HttpRequest, pk: uuid.UUID):
    """Let everybody here see one dataset, checkpoint, run or generation of yours."""
    sharing.share(_own(request, pk))
    return {"id": pk, "shared": True}


@router.delete("/shares/{uuid:pk}", response=answers(200, Sharing))
def unshare(request: HttpRequest, pk: uuid.UUID):
    """Back to its owner alone."""
    sharing.unshare(_own(request, pk))
    return {"id": pk, "shared": False}


def _own(request: HttpRequest, pk: uuid.UUID) -> Any:
    owned = sharing.find_owned(request.user, pk)
    if owned is None:
        raise Http404("there is nothing with this id")
    sharing.require_change(request.user, owned)
    return owned
