"""The uploads of whoever looks at a page that have begun and wait."""

from __future__ import annotations

from typing import Any

from django import template
from django.db.models import Q

from audioldm_site.uploads.models import Upload

register = template.Library()

SHOWN = 10


@register.inclusion_tag("uploads/unfinished.html", takes_context=True)
def unfinished_uploads(context: dict[str, Any], kind: str) -> dict[str, Any]:
    """Those of a kind that still miss bytes, and models whose owner has not said yet how they shall come in."""
    request = context["request"]
    waits = Q(finished_at=None) | Q(kind=Upload.Kind.CHECKPOINT, error_code="")
    found = []
    for upload in Upload.objects.of(request.user).filter(waits, kind=kind)[: SHOWN * 2]:
        upload.choose = upload.finished_at is not None
        if not upload.choose or upload.folder.is_dir():
            found.append(upload)
    return {"uploads": found[:SHOWN], "next": request.get_full_path(), "csrf_token": context.get("csrf_token"), "request": request}
