"""The tus protocol 1.0.0 (https://tus.io/protocols/resumable-upload): core, creation, checksum, expiration, termination.

A request's bytes are read by the view itself, after everything about it has been judged (`audioldm_site.web.Inflow`); what is refused is
never stored. Refusals are problem+json, as the API's.
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Callable
from functools import partial, wraps

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.utils.http import http_date, url_has_allowed_host_and_scheme
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from audioldm_site import faults
from audioldm_site.api import problems
from audioldm_site.api.auth import Session, Token
from audioldm_site.api.problems import Problem
from audioldm_site.uploads import services
from audioldm_site.uploads.models import Upload
from audioldm_site.uploads.services import ALGORITHMS, BodyLost, Checksum
from gpu.errors import Fault

VERSION = "1.0.0"
EXTENSIONS = "creation,checksum,expiration,termination"
BODY_TYPE = "application/offset+octet-stream"
INFLOW = "studio.inflow"
"""Where in an ASGI scope the body is that nobody has read yet."""
NUMBER = re.compile(r"\d{1,15}", re.ASCII)
STATUSES = {
    "upload.version": 412,
    "upload.content_type": 415,
    "upload.too_large": 413,
    "upload.too_long": 413,
    "upload.quota": 413,
    "upload.offset": 409,
    "upload.locked": 423,
    "upload.gone": 410,
    "upload.checksum": 460,
    "upload.invalid": 400,
}


def _tus(*methods: str) -> Callable:
    """Who asks (a session with its CSRF token, or an API token), for what, in which version; and every refusal in one shape."""

    def decorate(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        return csrf_exempt(login_not_required(wraps(view)(partial(_answer, view, methods))))

    return decorate


def _answer(view: Callable[..., HttpResponse], methods: tuple[str, ...], request: HttpRequest, **named) -> HttpResponse:
    try:
        # For clients behind something that lets no PATCH through.
        request.method = request.headers.get("X-HTTP-Method-Override", request.method).upper()
        if not (Token()(request) or Session()(request)):
            raise Problem("api.not_logged_in", "send a session's cookie or an API token")
        if request.method not in methods:
            raise Problem("api.method", f"{request.method[:20]} is none of {', '.join(methods)}", headers={"Allow": ", ".join(methods)})
        if request.method not in ("OPTIONS", "GET") and request.headers.get("Tus-Resumable") != VERSION:
            raise Fault("upload.version", f"Tus-Resumable ({request.headers.get('Tus-Resumable', '')[:20]!r}) must be {VERSION}")
        response = view(request, **named)
    except Fault as fault:
        response = problems.problem(fault.code, fault.message, status=STATUSES.get(fault.code))
    except Exception as error:
        response = problems.of_exception(error)
    if response.status_code == 412:
        response.headers["Tus-Version"] = VERSION
    response.headers["Tus-Resumable"] = VERSION
    response.headers["Cache-Control"] = "no-store"
    return response


@_tus("POST", "OPTIONS")
def uploads(request: HttpRequest) -> HttpResponse:
    """POST begins an upload; OPTIONS says what is offered."""
    if request.method == "OPTIONS":
        return HttpResponse(
            status=204,
            headers={
                "Tus-Version": VERSION,
                "Tus-Extension": EXTENSIONS,
                "Tus-Max-Size": str(int(settings.ENVIRONMENT.upload_max_gb * 10**9)),
                "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
            },
        )
    sent = _metadata(request.headers.get("Upload-Metadata", ""))
    upload = services.create_upload(
        owner=request.user,
        kind=sent.get("kind", ""),
        filename=sent.get("filename", ""),
        label=sent.get("name", "").strip(),
        length=_number(request, "Upload-Length"),
        metadata=request.headers.get("Upload-Metadata", ""),
    )
    response = _state(upload, status=201)
    # Without the host: behind a proxy only the client knows what that is called.
    response.headers["Location"] = reverse("uploads:upload", args=[upload.pk])
    return response


@_tus("HEAD", "PATCH", "DELETE", "GET", "OPTIONS")
def upload(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """HEAD: how much has arrived. PATCH: more of it. DELETE: forget it. GET: the same as HEAD and what came of it, as JSON."""
    if request.method == "OPTIONS":
        return HttpResponse(status=204, headers={"Tus-Version": VERSION, "Tus-Extension": EXTENSIONS})
    found = get_object_or_404(Upload.objects.of(request.user), pk=pk)
    if request.method == "PATCH":
        return _state(_receive(request, found))
    if request.method == "DELETE":
        services.remove(found)
        return HttpResponse(status=204)
    # A process may have been killed between the last byte and what follows it.
    services.finish(found)
    return _state(found, status=200) if request.method == "HEAD" else _described(found)


@require_POST
def discard(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """DELETE for pages without JavaScript."""
    try:
        services.remove(get_object_or_404(Upload.objects.of(request.user), pk=pk))
    except Fault as fault:
        messages.error(request, fault.message)
    back = request.POST.get("next", "")
    return redirect(back if back.startswith("/") and url_has_allowed_host_and_scheme(back, allowed_hosts=None) else "home")


def _receive(request: HttpRequest, found: Upload) -> Upload:
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != BODY_TYPE:
        raise Fault("upload.content_type", f"the Content-Type must be {BODY_TYPE}")
    offset = _number(request, "Upload-Offset")
    checksum = _checksum(request.headers.get("Upload-Checksum", ""))
    announced = request.headers.get("Content-Length", "")
    if NUMBER.fullmatch(announced) and offset + int(announced) > found.length and offset == services.arrived(found):
        raise Fault("upload.too_long", f"{found.filename} has {found.length} bytes; {offset} have arrived and {announced} more are sent")
    inflow = getattr(request, "scope", {}).get(INFLOW)
    try:
        return services.receive(found, inflow.read if inflow else request.read, offset=offset, checksum=checksum)
    except BodyLost:
        raise Problem("api.unreadable", "the connection ended before the whole request had come") from None


def _state(found: Upload, *, status: int = 204) -> HttpResponse:
    response = HttpResponse(status=status)
    response.headers["Upload-Offset"] = str(services.arrived(found))
    if status == 200:
        response.headers["Upload-Length"] = str(found.length)
        if found.metadata:
            response.headers["Upload-Metadata"] = found.metadata
    if not found.finished_at:
        response.headers["Upload-Expires"] = http_date(found.expires_at.timestamp())
    return response


def _described(found: Upload) -> HttpResponse:
    about = {
        "id": str(found.pk),
        "kind": found.kind,
        "filename": found.filename,
        "length": found.length,
        "offset": services.arrived(found),
        "finished": found.finished_at is not None,
        "location": found.location,
        "expires_at": found.expires_at.isoformat(),
        "error": None,
    }
    if found.error_code:
        words = faults.explain(found.error_code, found.error_detail)
        about["error"] = {"code": words.code, "title": words.title, "detail": words.detail, "explanation": words.explanation, "remedy": words.remedy}
    return JsonResponse(about)


def _metadata(header: str) -> dict[str, str]:
    """`kind ZGF0YXNldA==,filename cmFpbi56aXA=` → {"kind": "dataset", "filename": "rain.zip"}."""
    if len(header) > 4000:
        raise Fault("upload.invalid", f"Upload-Metadata has {len(header)} characters; 4000 are the most")
    found: dict[str, str] = {}
    for pair in filter(None, (pair.strip() for pair in header.split(","))):
        key, _, value = pair.partition(" ")
        try:
            text = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            raise Fault("upload.invalid", f"Upload-Metadata: the value of {key[:40]!r} is no base64 of UTF-8") from None
        if key in found:
            raise Fault("upload.invalid", f"Upload-Metadata names {key[:40]!r} twice")
        found[key] = text
    return found


def _checksum(header: str) -> Checksum | None:
    if not header:
        return None
    algorithm, _, value = header.strip().partition(" ")
    try:
        digest = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if algorithm not in ALGORITHMS or not digest:
        raise Fault("upload.invalid", f"Upload-Checksum ({header[:40]!r}) must be one of {', '.join(ALGORITHMS)}, and a digest in base64")
    return Checksum(algorithm, digest)


def _number(request: HttpRequest, name: str) -> int:
    text = request.headers.get(name, "")
    if not NUMBER.fullmatch(text):
        raise Fault("upload.invalid", f"{name} ({text[:20]!r}) must be a number of bytes")
    return int(text)
