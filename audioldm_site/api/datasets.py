"""Datasets and their clips."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import Field, File, Form, Query, Router, Schema
from ninja.files import UploadedFile as Upload

from audioldm_site.accounts.sharing import require_change
from audioldm_site.api.shapes import (
    LARGEST,
    Failure,
    Ignored,
    Name,
    Owned,
    PageOf,
    PageQuery,
    Strict,
    Text,
    accepted,
    answers,
    failure,
    given,
    page_of,
)
from datasets_app import selectors, services, views
from datasets_app.models import Clip, Dataset, Origin
from datasets_app.selectors import ClipFilter

router = Router(tags=["Datasets"])


class DatasetShape(Owned):
    name: str
    status: str = Field(description="importing, ready or failed")
    origin: str
    source_name: str
    licence: str
    notes: str
    split_seed: int
    validation_share: float
    clip_count: int
    usable_count: int = Field(description="Clips that a run would take.")
    validation_count: int
    duration_s: float
    error: Failure | None

    @staticmethod
    def resolve_error(row: Any) -> dict[str, str] | None:
        return failure(row.error_code, row.error_detail)


class Problems(Schema):
    problems: list[dict[str, Any]] = Field(description="What the import found: file, line, code, message.")


class ClipShape(Schema):
    id: int
    position: int
    name: str = Field(alias="original_name")
    caption: str
    split: str
    excluded: bool
    flags: list[str]
    duration_s: float
    sample_rate_hz: int
    channels: int
    size_bytes: int
    sha256: str
    peak_dbfs: float | None
    loudness_lufs: float | None


class UploadForm(Schema):
    name: str = Field("", max_length=115, pattern=r"^[^\x00]*$", description="The file's own when empty.")


class DatasetChange(Strict):
    name: Name | None = None
    licence: Text | None = None
    notes: Text | None = None


class SplitChange(Strict):
    seed: int = Field(0, ge=0, le=LARGEST)
    validation_share: float = Field(0.1, ge=0, le=services.MAX_SHARE)


class ClipChange(Strict):
    caption: Text | None = None
    split: Literal["train", "validation"] | None = None
    excluded: bool | None = None


class ClipQuery(PageQuery):
    q: str = Field("", max_length=500)
    flag: str = Field("", max_length=40, description="A flag, or `any`.")
    split: Literal["", "train", "validation"] = ""
    state: Literal["", "usable", "unused"] = ""
    sort: Literal["position", "name", "shortest", "longest", "quietest", "loudest", "caption"] = "position"


class DatasetScan(Schema):
    imported: list[DatasetShape]
    ignored: list[Ignored]


@router.get("", response=answers(200, PageOf[DatasetShape]))
def list_datasets(request: HttpRequest, wanted: Query[PageQuery]):
    """The datasets that you see, the newest first."""
    return page_of(request, _listed(request), wanted)


@router.post("", response=answers(202, DatasetShape))
def upload_dataset(request: HttpRequest, response: HttpResponse, archive: File[Upload], form: Form[UploadForm]):
    """Bring a zip with metadata.csv and WAV files. It is read in the background: watch `status`."""
    source = views.on_disk(archive)
    try:
        dataset = services.create_dataset(
            source=source, source_name=archive.name, name=form.name or None, owner=request.user, origin=Origin.UPLOADED, move=True
        )
    finally:
        source.unlink(missing_ok=True)
    return accepted(response, "datasets", _shown(request, dataset.pk))


@router.post("/scan", response=answers(200, DatasetScan))
def scan_datasets(request: HttpRequest):
    """Import what lies in DATA_DIR/incoming/datasets."""
    scan = services.scan_incoming(owner=request.user)
    return {"imported": [_shown(request, dataset.pk) for dataset in scan.imported], "ignored": scan.ignored}


@router.get("/{uuid:pk}", response=answers(200, DatasetShape))
def get_dataset(request: HttpRequest, pk: uuid.UUID):
    return _shown(request, pk)


@router.patch("/{uuid:pk}", response=answers(200, DatasetShape))
def change_dataset(request: HttpRequest, pk: uuid.UUID, body: DatasetChange):
    """Change its name, licence or notes."""
    services.update_dataset(_own(request, pk), **given(body))
    return _shown(request, pk)


@router.delete("/{uuid:pk}", response=answers(204))
def delete_dataset(request: HttpRequest, pk: uuid.UUID):
    """Delete it with its sounds; refused while a run needs it."""
    dataset = _own(request, pk)
    if not views.may_delete(request.user, dataset):
        raise PermissionDenied("only its owner, or staff, may delete a dataset")
    services.delete_dataset(dataset)
    return HttpResponse(status=204)


@router.get("/{uuid:pk}/problems", response=answers(200, Problems))
def dataset_problems(request: HttpRequest, pk: uuid.UUID):
    """What was wrong with single files and lines."""
    return {"problems": _seen(request, pk).problems}


@router.post("/{uuid:pk}/split", response=answers(200, DatasetShape))
def split_dataset(request: HttpRequest, pk: uuid.UUID, body: SplitChange):
    """Split all clips again; choices made by hand are forgotten."""
    services.resplit(_own(request, pk), seed=body.seed, validation_share=body.validation_share)
    return _shown(request, pk)


@router.get("/{uuid:pk}/clips", response=answers(200, PageOf[ClipShape]))
def list_clips(request: HttpRequest, pk: uuid.UUID, wanted: Query[ClipQuery]):
    filters = ClipFilter(search=wanted.q.replace("\0", " ").strip(), flag=wanted.flag.replace("\0", " "), split=wanted.split, state=wanted.state, sort=wanted.sort)
    return page_of(request, selectors.clip_list(_seen(request, pk), filters), wanted)


@router.patch("/{uuid:pk}/clips/{int:clip_id}", response=answers(200, ClipShape))
def change_clip(request: HttpRequest, pk: uuid.UUID, clip_id: int, body: ClipChange):
    """Change its caption or split, or leave it out. Runs that exist keep what they were made with."""
    return services.update_clip(_clip(_own(request, pk), clip_id), **given(body))


@router.get("/{uuid:pk}/clips/{int:clip_id}/audio", response=answers(200), openapi_extra={"responses": {"200": {"content": {"audio/wav": {}}}}})
def clip_audio(request: HttpRequest, pk: uuid.UUID, clip_id: int):
    """The sound, as browsers play it; with ranges."""
    return views.clip_audio(request, pk=pk, clip_id=clip_id)


def _listed(request: HttpRequest):
    return selectors.dataset_list(request.user).select_related("owner")


def _shown(request: HttpRequest, pk: uuid.UUID) -> Dataset:
    return get_object_or_404(_listed(request), pk=pk)


def _seen(request: HttpRequest, pk: uuid.UUID) -> Dataset:
    return get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)


def _own(request: HttpRequest, pk: uuid.UUID) -> Dataset:
    dataset = _seen(request, pk)
    require_change(request.user, dataset)
    return dataset


def _clip(dataset: Dataset, clip_id: int) -> Clip:
    return get_object_or_404(dataset.clips.select_related("dataset"), pk=min(clip_id, 2**63 - 1))
