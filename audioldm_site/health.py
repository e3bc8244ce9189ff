"""Whether the site lives and whether it can work, for whatever watches over it. No login, no secrets."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

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
    """200 when the database answers and every queue has a worker, else 503. `workers`: seconds since each was seen, null for never."""
    now = timezone.now()
    try:
        seen = {worker.queue: (now - worker.seen_at).total_seconds() for worker in Worker.objects.order_by("seen_at")}
    except DatabaseError:
        return JsonResponse({"status": "unavailable", "database": "does not answer"}, status=503)
    ages = {queue: round(seen[queue], 1) if queue in seen else None for queue in QUEUES}
    missing = [queue for queue, age in ages.items() if age is None or age > ALIVE_FOR_S]
    content = {"status": "unavailable" if missing else "ok", "database": "ok", "workers": ages}
    return JsonResponse(content, status=503 if missing else 200)
