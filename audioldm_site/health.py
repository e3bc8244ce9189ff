"""Whether the site lives and whether it can work, for whatever watches over it. No login, no secrets."""

from __future__ import annotations

import os

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from audioldm_site import machine
from audioldm_site.jobs.models import Worker
from audioldm_site.jobs.queue import ALIVE_FOR_S, QUEUES


@login_not_required
@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """The web process answers."""
    return JsonResponse({"status": "ok"})


@login_not_required
@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """200 when the database answers, every queue has a worker and something can still be written, else 503.

    `workers`: seconds since each was seen, null for never. `disk`: `low` below what a checkpoint may need, which alone is no 503.
    """
    now = timezone.now()
    try:
        seen = {worker.queue: (now - worker.seen_at).total_seconds() for worker in Worker.objects.order_by("seen_at")}
    except DatabaseError:
        return JsonResponse({"status": "unavailable", "database": "does not answer"}, status=503)
    ages = {queue: round(seen[queue], 1) if queue in seen else None for queue in QUEUES}
    missing = [queue for queue, age in ages.items() if age is None or age > ALIVE_FOR_S]
    writable = os.access(settings.DATA_DIR, os.W_OK | os.X_OK)
    content = {
        "status": "unavailable" if missing or not writable else "ok",
        "database": "ok",
        "workers": ages,
        "disk": ("low" if machine.disk().is_low else "ok") if writable else "cannot be written to",
    }
    return JsonResponse(content, status=200 if content["status"] == "ok" else 503)
