"""Pages of generations: fetch, form, service, respond."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.text import slugify
from django.views.decorators.http import require_POST, require_safe

from audioldm_site import faults
from audioldm_site.files import file_in, file_response
from audioldm_site.forms import command_line
from audioldm_site.jobs.live import event_number
from audioldm_site.jobs.models import Status
from audioldm_site.names import id_or_none
from generation_app import selectors, services
from generation_app.forms import GenerationForm, initial_values
from generation_app.models import Generation
from gpu.config import GenerateConfig
from gpu.errors import Fault
from training_app.selectors import playable_checkpoints, recommendations
from training_app.views import spectrogram_response


def index(request: HttpRequest) -> HttpResponse:
    """The form, and below it everything that was made."""
    if request.method == "POST":
        form = GenerationForm(request.POST, user=request.user)
        if form.is_valid() and (made := _create(request, form)):
            return redirect("generation:generation", made.pk)
    else:
        form = GenerationForm(user=request.user, initial=_initial(request))
    filters = {"query": request.GET.get("q", ""), "favourites": request.GET.get("favourites") == "1"}
    context = {
        "form": form,
        "page": selectors.generation_page(request.user, **filters, page=request.GET.get("page")),
        "active": selectors.active_generations(request.user),
        **filters,
        "chosen": {
            "defaults": GenerateConfig().to_dict(),
            "recommended": recommendations(form.fields["checkpoint"].queryset),
        },
    }
    return render(request, "generation/index.html", context, status=422 if form.is_bound else 200)


@require_safe
def generation(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_generation(request.user, pk)
    context = {
        "generation": found,
        "snapshot": selectors.generation_snapshot(found),
        "waveforms": list(found.waveforms.all()),
        "fault": faults.explain(found.error_code, found.error_detail) if found.status == Status.FAILED else None,
        "place": selectors.places_in_line().get(found.pk) if found.status == Status.QUEUED else None,
        "parameters": [(parameter, found.config.get(parameter.name)) for parameter in GenerateConfig.parameters()],
        "command": _command(found),
        "addresses": {"socket": f"/ws/generation/{found.pk}/", "events": reverse("generation:events", args=[found.pk])},
    }
    return render(request, "generation/generation.html", context)


@require_safe
def events(request: HttpRequest, pk: uuid.UUID) -> JsonResponse:
    """What the socket would send, for networks that let no socket through."""
    found = selectors.visible_generation(request.user, pk)
    return JsonResponse({"events": selectors.events_after(found, event_number(request.GET.get("after", "0")))})


@require_POST
def stop(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_generation(request.user, pk)
    if services.request_stop(found):
        messages.success(request, "Stopped." if found.status == Status.CANCELLED else "Stopping.")
    else:
        messages.warning(request, "This generation had ended already.")
    return redirect("generation:generation", pk)


@require_POST
def retry(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_generation(request.user, pk)
    if services.retry(found):
        messages.success(request, "Back in line.")
    else:
        messages.warning(request, "Only a stopped or failed generation can be tried again.")
    return redirect("generation:generation", pk)


@require_POST
def favourite(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_generation(request.user, pk)
    services.set_favourite(found, favourite=not found.favourite)
    back = request.POST.get("back") == "index"
    return redirect("generation:index") if back else redirect("generation:generation", pk)


@require_POST
def delete(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_generation(request.user, pk)
    try:
        services.delete_generation(found)
    except Fault as fault:
        messages.error(request, fault.message)
        return redirect("generation:generation", pk)
    messages.success(request, "Deleted, with its sounds.")
    return redirect("generation:index")


@require_safe
def file(request: HttpRequest, pk: uuid.UUID, path: str) -> HttpResponseBase:
    """A sound; `?download` saves it under a name that says what it is."""
    found = selectors.visible_generation(request.user, pk)
    target = file_in(found.folder, path)
    if target.suffix != ".wav":
        raise Http404(f"{path} is no sound")
    name = f"{slugify(found.prompt)[:60] or 'sound'}-{target.stem}.wav"
    return file_response(request, target, filename=name, content_type="audio/wav", as_attachment="download" in request.GET)


@require_safe
def spectrogram(request: HttpRequest, pk: uuid.UUID, path: str) -> HttpResponse:
    found = selectors.visible_generation(request.user, pk)
    return spectrogram_response(file_in(found.folder, path))


def _create(request: HttpRequest, form: GenerationForm) -> Generation | None:
    """The new generation, or None with the reason in the form."""
    try:
        return services.create_generation(owner=request.user, checkpoint=form.cleaned_data["checkpoint"], values=form.values())
    except Fault as fault:
        form.add_error(None, fault.message)
    except ValidationError as error:
        form.add_error(None, error)
    return None


def _initial(request: HttpRequest) -> dict[str, Any]:
    """`?from=` an earlier generation's settings, `?checkpoint=` that checkpoint with its own defaults; else the last used checkpoint."""
    earlier = selectors.visible_generation(request.user, wanted) if (wanted := id_or_none(request.GET.get("from"))) else None
    usable = playable_checkpoints(request.user)
    wished = id_or_none(request.GET.get("checkpoint")) or (earlier.checkpoint_id if earlier else selectors.last_checkpoint_id(request.user))
    checkpoint = usable.filter(pk=wished).first() or usable.first()
    values = initial_values(checkpoint=checkpoint, earlier=earlier.config if earlier else None)
    if prompt := request.GET.get("prompt"):
        values["prompt"] = prompt
    if checkpoint:
        values["checkpoint"] = checkpoint.pk
    return values


def _command(generation: Generation) -> str:
    arguments = {"prompt": generation.prompt, "--checkpoint": generation.checkpoint.name if generation.checkpoint else "…"}
    return command_line("generate", arguments, generation.config, GenerateConfig, leave_out=("prompt",))
