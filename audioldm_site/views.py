"""The start page."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.views.decorators.http import require_safe

from audioldm_site import machine
from audioldm_site.jobs.models import Status
from datasets_app.models import Dataset
from generation_app import selectors as generations
from generation_app.models import Generation
from training_app import selectors as training
from training_app.models import Checkpoint, TrainingRun

RUNS_ON_HOME = 10


@require_safe
@login_not_required
def favicon(request: HttpRequest) -> HttpResponse:
    """For browsers that ask here instead of reading the page, as they do for answers that are no page."""
    return redirect(static("audioldm_site/icon.svg"))


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """What runs, what waits, what was, and how the machine is."""
    filters = {"query": request.GET.get("q", ""), "status": request.GET.get("status", ""), "sort": request.GET.get("sort", "")}
    context = {
        "running": training.running_runs(request.user),
        "waiting": training.waiting_runs(request.user),
        "generations": generations.active_generations(request.user),
        "conversions": training.active_conversions(request.user),
        "recent_sounds": generations.recent_generations(request.user),
        "page": training.run_page(request.user, **filters, page=request.GET.get("page"), per_page=RUNS_ON_HOME),
        **filters,
        "statuses": Status.choices,
        "queues": machine.queue_states(),
        "disk": machine.disk(),
        "steps": _first_steps(request.user),
    }
    return render(request, "home/home.html", context)


def _first_steps(user) -> list[dict]:
    """What a newcomer does first, with what is done already; empty when all is done."""
    steps = [
        {
            "title": "Hear the model",
            "text": "Type what you want to hear; three candidates come back, ranked.",
            "address": "generation:index",
            "action": "Make a sound",
            "done": Generation.objects.visible_to(user).filter(status=Status.SUCCEEDED).exists(),
        },
        {
            "title": "Bring your sounds",
            "text": "A zip with metadata.csv (file name, caption) and the audio. Every file is checked before it is used.",
            "address": "datasets:index",
            "action": "Open datasets",
            "done": Dataset.objects.visible_to(user).filter(owner=user).exists(),
        },
        {
            "title": "Fine-tune",
            "text": "Start with the quick preset. Sounds before, during and after training appear on the run's page.",
            "address": "training:new",
            "action": "New run",
            "done": TrainingRun.objects.visible_to(user).filter(owner=user).exists(),
        },
        {
            "title": "Generate with your checkpoint",
            "text": "Every checkpoint of a run can make sounds at once, and every sound keeps its recipe.",
            "address": "checkpoints:index",
            "action": "Open checkpoints",
            "done": Generation.objects.visible_to(user).filter(checkpoint__origin=Checkpoint.Origin.RUN).exists(),
        },
    ]
    return [] if all(step["done"] for step in steps) else steps
