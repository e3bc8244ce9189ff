"""/metrics for Prometheus: jobs, queues, workers, disk, GPUs and events, in its text format. For this machine, or with METRICS_TOKEN or a token of staff."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from datetime import timedelta

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Min, Sum
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from django_q.models import OrmQ

from audioldm_site import hardware, machine
from audioldm_site.accounts import tokens
from audioldm_site.accounts.address import is_this_machine
from audioldm_site.jobs.lifecycle import job_models
from audioldm_site.jobs.models import Status, Worker
from audioldm_site.jobs.queue import QUEUES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RATE_OVER = timedelta(minutes=1)


@login_not_required
@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    if not _may_look(request):
        raise PermissionDenied("metrics are for this machine, or for whoever has METRICS_TOKEN")
    return HttpResponse("".join(_lines()), content_type=CONTENT_TYPE)


def _may_look(request: HttpRequest) -> bool:
    text = tokens.bearer_text(request.headers.get("Authorization", ""))
    if text is not None:
        expected, token = settings.ENVIRONMENT.metrics_token, tokens.find_token(text)
        return (bool(expected) and hmac.compare_digest(text.encode(), expected.encode())) or (token is not None and token.user.is_staff)
    return is_this_machine(request) or request.user.is_staff


def _lines() -> Iterator[str]:
    counts = {model: dict(model.objects.values_list("status").annotate(count=Count("pk")).order_by()) for model in job_models()}
    yield from _metric("studio_jobs", "Jobs by kind and status.", [({"kind": model.kind, "status": status}, found.get(status, 0)) for model, found in counts.items() for status in Status.values])
    yield from _metric("studio_queue_depth", "Entries that wait in a queue or are worked on.", [({"queue": queue}, depth) for queue, depth in _depths().items()])
    yield from _metric("studio_queue_oldest_seconds", "How long the first in line has waited.", _oldest())
    yield from _metric("studio_heartbeat_age_seconds", "Since the supervisor of a running job was last heard, the longest.", _heartbeats())
    yield from _metric("studio_worker_seen_seconds", "Since a queue's worker was last seen.", _workers())
    yield from _metric("studio_worker_alive", "1 where somebody works on a queue.", [({"queue": state.queue}, int(state.alive)) for state in machine.queue_states()])
    yield from _metric("studio_events_total", "Events that jobs have said, since the first.", _events(), kind="counter")
    yield from _metric("studio_events_per_second", "Events recorded in the last minute, by the second.", _rates())
    disk = machine.disk()
    yield from _metric("studio_disk_free_bytes", "Free under DATA_DIR.", [({}, disk.free_bytes)])
    yield from _metric("studio_disk_total_bytes", "Size of the disk under DATA_DIR.", [({}, disk.total_bytes)])
    gpus = list(enumerate(hardware.gpus()))
    yield from _metric("studio_gpu_memory_bytes", "Memory of a GPU.", [({"gpu": str(index), "name": gpu.name}, gpu.memory_bytes) for index, gpu in gpus])
    yield from _metric("studio_gpu_memory_free_bytes", "Free memory of a GPU.", [({"gpu": str(index), "name": gpu.name}, gpu.free_bytes) for index, gpu in gpus])


def _metric(name: str, words: str, samples: list[tuple[Mapping[str, str], float]], *, kind: str = "gauge") -> Iterator[str]:
    if not samples:
        return
    yield f"# HELP {name} {words}\n# TYPE {name} {kind}\n"
    for labels, value in samples:
        inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{name}{{{inner}}} {value:.15g}\n" if inner else f"{name} {value:.15g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _depths() -> dict[str, int]:
    found = dict(OrmQ.objects.values_list("key").annotate(count=Count("pk")).order_by())
    return {queue: found.get(queue, 0) for queue in QUEUES}


def _oldest() -> list[tuple[dict[str, str], float]]:
    firsts = [(model.kind, model.objects.filter(status=Status.QUEUED).aggregate(first=Min("queued_at"))["first"]) for model in job_models()]
    return [({"kind": kind}, _age(first) if first else 0.0) for kind, first in firsts]


def _heartbeats() -> list[tuple[dict[str, str], float]]:
    oldest = [(model.kind, model.objects.filter(status=Status.RUNNING).aggregate(oldest=Min("heartbeat_at"))["oldest"]) for model in job_models()]
    return [({"kind": kind}, _age(moment)) for kind, moment in oldest if moment]


def _workers() -> list[tuple[dict[str, str], float]]:
    return [({"queue": row.queue, "worker": row.name, "device": row.device}, _age(row.seen_at)) for row in Worker.objects.order_by("name")]


def _events() -> list[tuple[dict[str, str], float]]:
    return [({"kind": model.kind}, model.objects.aggregate(total=Sum("last_seq"))["total"] or 0) for model in job_models()]


def _rates() -> list[tuple[dict[str, str], float]]:
    """Of jobs that run: an index leads to their events, and there are few of them."""
    since = timezone.now() - RATE_OVER
    rates = []
    for model in job_models():
        events = model._meta.get_field("events").related_model
        running = model.objects.filter(status=Status.RUNNING).values("pk")
        rates.append(({"kind": model.kind}, events.objects.filter(job__in=running, at__gte=since).count() / RATE_OVER.total_seconds()))
    return rates


def _age(moment) -> float:
    return max(0.0, (timezone.now() - moment).total_seconds())
