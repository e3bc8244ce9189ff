"""How models come in and checkpoints go out."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import Field, Query, Router, Status

from audioldm_site.accounts.sharing import require_change
from audioldm_site.api.problems import Problem
from audioldm_site.api.shapes import EventQuery, Events, JobShape, PageOf, PageQuery, Strict, accepted, answers, page_of
from training_app import conversion_views, conversions, selectors, sources
from training_app.models import Checkpoint, Conversion

router = Router(tags=["Conversions"])
HUB = "hub:"


class ConversionShape(JobShape):
    direction: str = Field(description="import or export")
    name: str
    source: str
    format: str
    checkpoint: uuid.UUID | None = Field(alias="checkpoint_id", description="What an import made, or an export writes.")
    already_here: bool = Field(description="An import found its model registered already, as `checkpoint`; nothing was stored twice.")
    size_bytes: int
    sha256: str
    elapsed_s: float | None
    downloadable: bool = Field(description="…/file has what the export wrote.")

    @staticmethod
    def resolve_downloadable(row: Any) -> bool:
        return row.is_export and row.result_path is not None and row.result_path.is_file()


class ImportRequest(Strict):
    source: str = Field(max_length=400, pattern=r"^[^\x00]+$", description="hub:OWNER/NAME[@REVISION], or the name of a file or folder in DATA_DIR/incoming/checkpoints.")
    name: str = Field("", max_length=115, pattern=r"^[^\x00]*$")
    weights: Literal["auto", "ema", "raw"] = "auto"
    keep_original: bool = True
    licence: str = Field("", max_length=200, pattern=r"^[^\x00]*$")
    base: uuid.UUID | None = Field(None, description="The whole model that a LoRA lies on.")


class ExportRequest(Strict):
    checkpoint: uuid.UUID
    format: Literal["ckpt", "diffusers", "safetensors", "lora"]
    dtype: Literal["fp32", "fp16"] = "fp32"


@router.get("", response=answers(200, PageOf[ConversionShape]))
def list_conversions(request: HttpRequest, wanted: Query[PageQuery]):
    """Imports and exports that you see, the newest first."""
    rows = Conversion.objects.visible_to(request.user).select_related("checkpoint", "owner").order_by("-created_at", "pk")
    return page_of(request, rows, wanted)


@router.post("/import", response=answers(202, ConversionShape))
def import_model(request: HttpRequest, response: HttpResponse, body: ImportRequest):
    """Bring a model in. What lies in the common folder becomes everybody's; one of the hub is yours."""
    from_hub = body.source.startswith(HUB)
    found = sources.look_at_hub(body.source) if from_hub else sources.look_at(sources.incoming_path(body.source), label=body.source)
    base = get_object_or_404(Checkpoint.objects.visible_to(request.user), pk=body.base) if body.base else None
    made = conversions.import_model(
        found,
        owner=request.user if from_hub else None,
        origin=Checkpoint.Origin.HUB if from_hub else Checkpoint.Origin.SCANNED,
        name=body.name,
        weights=body.weights,
        keep_original=body.keep_original,
        licence=body.licence,
        base=base,
    )
    return accepted(response, "conversions", made)


@router.post("/export", response=answers(202, ConversionShape))
def export_checkpoint(request: HttpRequest, response: HttpResponse, body: ExportRequest):
    """Write a checkpoint as another tool reads it."""
    checkpoint = selectors.visible_checkpoint(request.user, body.checkpoint)
    return accepted(response, "conversions", conversions.export_model(checkpoint, owner=request.user, format=body.format, dtype=body.dtype))


@router.get("/{uuid:pk}", response=answers(200, ConversionShape))
def get_conversion(request: HttpRequest, pk: uuid.UUID):
    return selectors.visible_conversion(request.user, pk)


@router.get("/{uuid:pk}/events", response=answers(200, Events))
def conversion_events(request: HttpRequest, pk: uuid.UUID, wanted: Query[EventQuery]):
    """What it said after event `after`, in order and without gaps."""
    return {"events": selectors.conversion_events_after(selectors.visible_conversion(request.user, pk), wanted.after)}


@router.get("/{uuid:pk}/file", response=answers(200), openapi_extra={"responses": {"200": {"content": {"application/octet-stream": {}}}}})
def conversion_file(request: HttpRequest, pk: uuid.UUID):
    """What an export wrote: one file, with ranges so that a broken download goes on."""
    return conversion_views.file(request, pk=pk)


@router.post("/{uuid:pk}/stop", response=answers(202, ConversionShape))
def stop_conversion(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    found = _own(request, pk)
    return _done(response, found, conversions.request_stop(found), "run.ended", "it has ended already")


@router.post("/{uuid:pk}/retry", response=answers(202, ConversionShape))
def retry_conversion(request: HttpRequest, response: HttpResponse, pk: uuid.UUID):
    """Put a stopped or failed one back in line, from its beginning."""
    found = _own(request, pk)
    return _done(response, found, conversions.retry(found), "api.conflict", f"it is {found.get_status_display()}: only what was stopped or failed is tried again")


@router.delete("/{uuid:pk}", response=answers(204))
def delete_conversion(request: HttpRequest, pk: uuid.UUID):
    """Delete it with the file that it wrote; a checkpoint that came of it stays."""
    found = _own(request, pk)
    if not conversions.may_delete(request.user, found):
        raise PermissionDenied("only its owner, or staff, may delete it")
    conversions.delete_conversion(found)
    return HttpResponse(status=204)


def _own(request: HttpRequest, pk: uuid.UUID) -> Conversion:
    found = selectors.visible_conversion(request.user, pk)
    require_change(request.user, found)
    return found


def _done(response: HttpResponse, found: Conversion, done: bool, code: str, otherwise: str) -> Status:
    if not done:
        raise Problem(code, otherwise)
    found.refresh_from_db()
    return accepted(response, "conversions", found)
