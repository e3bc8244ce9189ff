"""Every refusal of the API as one shape: problem+json (RFC 9457), with the codes and words of `audioldm_site.faults`."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig, SuspiciousOperation, ValidationError
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase

from audioldm_site import faults
from audioldm_site.logs import request_id
from gpu.config import ConfigError
from gpu.errors import Fault

log = logging.getLogger(__name__)

ROOT = "/api/v1/"
CONTENT_TYPE = "application/problem+json"
STATUSES = {
    "api.token_refused": 401,
    "api.not_logged_in": 401,
    "api.csrf": 403,
    "api.read_only": 403,
    "api.not_yours": 403,
    "api.not_found": 404,
    "api.method": 405,
    "api.too_large": 413,
    "api.too_many": 429,
    "api.unreadable": 400,
    "lookup.not_found": 404,
    "disk.full": 507,
    "disk.low": 507,
    "database.unusable": 503,
    "internal": 500,
}
"""What a code means in HTTP; the others by whose fault they are."""
CONFLICTS = frozenset(
    {"run.active", "run.ended", "run.taken", "run.no_resume_state", "dataset.in_use", "dataset.not_ready", "dataset.name_taken",
     "checkpoint.retired", "checkpoint.not_playable", "checkpoint.not_trainable", "checkpoint.not_exportable", "checkpoint.known", "checkpoint.missing", "checkpoint.changed", "share.of_nobody", "api.conflict"}
)  # fmt: skip
"""The request is fine, and the thing is not in a state for it."""
BY_STATUS = {400: "api.unreadable", 401: "api.not_logged_in", 403: "api.not_yours", 404: "api.not_found", 405: "api.method", 413: "api.too_large", 429: "api.too_many"}


class Problem(Exception):
    """Ends a request of the API with a code of its own."""

    def __init__(self, code: str, detail: str, *, errors: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.errors, self.headers = code, detail, errors, headers


def status_of(code: str) -> int:
    if code in STATUSES:
        return STATUSES[code]
    if code in CONFLICTS:
        return 409
    return {faults.OWNER: 422, faults.OPERATOR: 503}.get(faults.explain(code).whose, 500)


def problem(code: str, detail: str = "", *, status: int | None = None, errors: Mapping[str, str] | None = None) -> HttpResponse:
    """The answer. `errors`: what is wrong by field, where fields are."""
    words = faults.explain(code)
    status = status or status_of(code)
    content: dict[str, Any] = {
        "type": f"{ROOT}problems/{code}",
        "title": words.title,
        "status": status,
        "detail": detail or words.explanation,
        "code": code,
        "explanation": words.explanation,
        "remedy": words.remedy,
        "request_id": request_id.get(),
    }
    if errors:
        content["errors"] = dict(errors)
    response = HttpResponse(json.dumps(content, ensure_ascii=False), status=status, content_type=CONTENT_TYPE)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def of_exception(error: Exception) -> HttpResponse:
    """The answer to whatever an operation raised. An error of our own is logged and not told."""
    if isinstance(error, Problem):
        response = problem(error.code, error.detail, errors=error.errors)
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response
    if isinstance(error, ConfigError):
        return problem(error.code, error.message, errors=error.errors)
    if isinstance(error, Fault):
        return problem(error.code, error.message)
    if isinstance(error, ValidationError):
        return problem("config.invalid", " ".join(error.messages), errors=_by_field(error))
    if isinstance(error, Http404):
        return problem("api.not_found", str(error))
    if isinstance(error, PermissionDenied):
        return problem("api.not_yours", str(error))
    if isinstance(error, RequestDataTooBig):
        return problem("api.too_large", str(error))
    if isinstance(error, BadRequest | SuspiciousOperation | MultiPartParserError | UnicodeError):
        return problem("api.unreadable", str(error))
    if isinstance(error, UnreadablePostError):
        return problem("api.unreadable", "the connection ended before the whole request had come")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return problem("disk.full", str(error))
    log.exception("an operation of the API failed", exc_info=error)
    return problem("database.unusable" if isinstance(error, DatabaseError) and _is_away(error) else "internal")


class ApiProblems:
    """Gives what Django itself refuses under /api/v1/ (no such address, no such method, too large) the same shape."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest):
        if iscoroutinefunction(self):
            return self._later(request)
        return _reshaped(request, self.get_response(request))

    async def _later(self, request: HttpRequest) -> HttpResponseBase:
        return _reshaped(request, await self.get_response(request))


def _reshaped(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    shaped = response.status_code < 400 or response.headers.get("Content-Type", "") == CONTENT_TYPE or response.status_code == 416
    if shaped or not request.path.startswith(ROOT):
        return response
    code = BY_STATUS.get(response.status_code, "internal" if response.status_code >= 500 else "api.unreadable")
    answer = problem(code, status=response.status_code)
    for name in ("Allow", "Retry-After"):
        if name in response.headers:
            answer.headers[name] = response.headers[name]
    return answer


def _by_field(error: ValidationError) -> dict[str, str]:
    return {field: " ".join(messages) for field, messages in error.message_dict.items()} if hasattr(error, "error_dict") else {}


def _is_away(error: DatabaseError) -> bool:
    return type(error).__name__ in ("OperationalError", "InterfaceError")
