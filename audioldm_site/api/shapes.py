"""The shapes that go in and out, shared by all subjects. Parameters of runs and sounds are those of gpu.config, never listed here."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from ninja import Field, Schema, Status
from pydantic import ConfigDict, WithJsonSchema

from audioldm_site import faults
from audioldm_site.accounts import sharing
from gpu.config import Config, FinetuneConfig, GenerateConfig

PER_PAGE, MOST_PER_PAGE = 50, 200
LARGEST = 2**31 - 1
REFUSALS = frozenset({400, 401, 403, 404, 405, 409, 413, 422, 429, 500, 503, 507})

T = TypeVar("T")


class Problem(Schema):
    """RFC 9457: why a request was refused."""

    type: str = Field(description="Address of the code's explanation.")
    title: str
    status: int
    detail: str = Field(description="What, where, which limit.")
    code: str = Field(description="Stable; the same as in pages and in the terminal.")
    explanation: str
    remedy: str = Field(description="What to do now.")
    request_id: str
    errors: dict[str, str] | None = Field(None, description="What is wrong, by field.")


def answers(status: int = 200, shape: Any = None, **more: Any) -> dict[Any, Any]:
    """An operation's `response=`: its own answer, and the problems that any may end with."""
    return {status: shape, REFUSALS: Problem, **more}


class Strict(Schema):
    """What is sent: an unknown field is a mistake, not a wish that is ignored."""

    model_config = ConfigDict(extra="forbid")


class PageQuery(Schema):
    page: int = Field(1, ge=1, le=LARGEST)
    per_page: int = Field(PER_PAGE, ge=1, le=MOST_PER_PAGE)


class PageOf(Schema, Generic[T]):
    """One page of a list; `next` is the address of the following one."""

    items: list[T]
    count: int = Field(description="How many there are in all.")
    page: int
    pages: int
    next: str | None
    previous: str | None


def page_of(request: HttpRequest, rows: QuerySet | Page, wanted: PageQuery) -> dict[str, Any]:
    """A `PageOf` of a list; beyond its end the last page."""
    page = rows if isinstance(rows, Page) else Paginator(rows, wanted.per_page).get_page(wanted.page)

    def address(number: int) -> str:
        query = request.GET.copy()
        query["page"] = str(number)
        return f"{request.path}?{query.urlencode()}"

    return {
        "items": list(page),
        "count": page.paginator.count,
        "page": page.number,
        "pages": page.paginator.num_pages,
        "next": address(page.number + 1) if page.has_next() else None,
        "previous": address(page.number - 1) if page.has_previous() else None,
    }


def config_schema(config: type[Config]) -> dict[str, Any]:
    """A body's `parameters`, as the configuration class describes itself."""
    return {**config.json_schema(), "title": config.__name__, "description": "Absent ones take the checkpoint's own recommendation, then the default."}


FinetuneParameters = Annotated[dict[str, Any], WithJsonSchema(config_schema(FinetuneConfig))]
GenerateParameters = Annotated[dict[str, Any], WithJsonSchema(config_schema(GenerateConfig))]


class Failure(Schema):
    """Why a job or an import failed."""

    code: str
    title: str
    detail: str
    remedy: str


def failure(code: str, detail: str) -> dict[str, str] | None:
    if not code:
        return None
    words = faults.explain(code, detail)
    return {"code": code, "title": words.title, "detail": detail, "remedy": words.remedy}


class Owned(Schema):
    """What everything that belongs to somebody says about that."""

    id: uuid.UUID
    owner: str | None = Field(description="None: it belongs to everybody.")
    shared: bool = Field(description="Shared by itself with everybody here.")
    created_at: datetime

    @staticmethod
    def resolve_owner(row: Any) -> str | None:
        return row.owner.get_username() if row.owner_id else None

    @staticmethod
    def resolve_shared(row: Any, context: dict[str, Any]) -> bool:
        return row.pk in once(context, "shared_ids", sharing.shared_ids)


class JobShape(Owned):
    """What every job says of itself."""

    kind: str
    status: str = Field(description="queued, running, succeeded, failed or cancelled")
    parameters: dict[str, Any]
    attempt: int
    last_seq: int = Field(description="Number of the newest event.")
    stopping: bool
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: Failure | None

    @staticmethod
    def resolve_parameters(row: Any) -> dict[str, Any]:
        return row.config

    @staticmethod
    def resolve_stopping(row: Any) -> bool:
        return row.status == "running" and row.stop_requested_at is not None

    @staticmethod
    def resolve_error(row: Any) -> dict[str, str] | None:
        return failure(row.error_code, row.error_detail)


class Event(Schema):
    """One thing that a job said; docs/architecture.md tells what `data` holds for each type."""

    seq: int
    attempt: int
    type: str
    at: datetime
    data: dict[str, Any]


class Events(Schema):
    """At most 500 at a time: ask again after the last one's `seq`."""

    events: list[Event]


class EventQuery(Schema):
    after: int = Field(0, ge=0, le=LARGEST, description="Number of the last event that is known.")


class Ignored(Schema):
    path: str
    message: str


def accepted(response: HttpResponse, address: str, row: Any) -> Status:
    """202, with where to watch what was begun."""
    response.headers["Location"] = f"/api/v1/{address}/{row.pk}"
    return Status(202, row)


def once(context: dict[str, Any], name: str, ask: Callable[[], T]) -> T:
    """What a whole list needs, asked once for each request."""
    request = context["request"]
    if not hasattr(request, name):
        setattr(request, name, ask())
    return getattr(request, name)


def given(body: Schema) -> dict[str, Any]:
    """The fields that were sent: an absent one is not to be changed."""
    return body.dict(exclude_unset=True)


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


Text = Annotated[str, Field(max_length=5_000, pattern=r"^[^\x00]*$")]
"""PostgreSQL cannot keep NUL."""
Name = Annotated[str, Field(min_length=1, max_length=115, pattern=r"^[^\x00]*$")]
