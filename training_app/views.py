"""Pages of runs and checkpoints: fetch, form, service, respond."""

from __future__ import annotations

import uuid
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.text import slugify
from django.views.decorators.http import require_POST, require_safe

from audioldm_site import faults
from audioldm_site.files import file_in, file_response
from audioldm_site.jobs import queue
from audioldm_site.jobs.live import event_number
from audioldm_site.jobs.models import ENDED, Status
from audioldm_site.names import id_or_none
from gpu.config import PRESETS, FinetuneConfig
from gpu.errors import Fault
from gpu.sound import spectrogram_png
from training_app import conversions, preflight, pretraining, selectors, services, storage
from training_app.forms import ContinueForm, NotesForm, RunForm, initial_values, preset_cards
from training_app.models import Checkpoint, TrainingRun

SPECTROGRAM = {"width": 800, "height": 160}
SHOWN_FILES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
A_WEEK_S = 7 * 24 * 3600


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    filters = {"query": request.GET.get("q", ""), "status": request.GET.get("status", ""), "sort": request.GET.get("sort", "")}
    archived = request.GET.get("archived") == "1"
    page = selectors.run_page(request.user, **filters, archived=archived, page=request.GET.get("page"))
    context = {
        "page": page,
        **filters,
        "archived": archived,
        "statuses": Status.choices,
        "running": selectors.running_runs(request.user),
        "waiting": selectors.waiting_runs(request.user),
    }
    return render(request, "training/index.html", context)


def new(request: HttpRequest) -> HttpResponse:
    fit: dict[str, Any] = {}
    if request.method == "POST":
        form = RunForm(request.POST, user=request.user)
        if form.is_valid():
            if "check" not in request.POST and (run := _create(request, form)):
                messages.success(request, _queued_words(run))
                messages.info(request, f"Estimate: {preflight.of_run(run)}.")
                return redirect("training:run", run.pk)
            fit = _fit(request, form)
        else:
            fit = {"unchecked": _to_mend(form)}
    else:
        form = RunForm(user=request.user, initial=_initial(request))
    preset = request.GET.get("preset", "")
    context = {
        **fit,
        "form": form,
        "cards": preset_cards(preset),
        "chosen": {
            "presets": PRESETS,
            "defaults": FinetuneConfig().to_dict(),
            "recommended": selectors.recommendations(form.fields["checkpoint"].queryset),
        },
    }
    # A check is only a question; a browser notes a 4xx in its console, and asks while somebody types.
    return render(request, "training/new.html", context, status=422 if form.errors and "check" not in request.POST else 200)


@require_safe
def run(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_run(request.user, pk)
    failed = found.status == Status.FAILED
    checkpoints = selectors.run_checkpoints(found)
    snapshot = selectors.run_snapshot(found)
    context = {
        "run": found,
        "snapshot": snapshot,
        "sample_rows": selectors.sample_rows(snapshot["samples"]),
        "log": selectors.run_log(found),
        "stages": pretraining.stage_list(found, snapshot) if found.is_pretraining else [],
        "preflight": preflight.measured(found),
        "checkpoints": checkpoints,
        "fault": faults.explain(found.error_code, found.error_detail) if failed else None,
        "log_tail": selectors.log_tail(found) if failed else "",
        "place": selectors.places_in_line().get(found.pk) if found.status == Status.QUEUED else None,
        "spent": _spent(found),
        "price_per_hour": settings.ENVIRONMENT.price_per_hour,
        "worker_alive": queue.workers_alive("training"),
        "can_resume": found.status in (Status.FAILED, Status.CANCELLED),
        "can_continue": found.status in ENDED and any(row.has_resume_state and not row.missing for row in checkpoints),
        "parameters": [(parameter, found.config.get(parameter.name)) for parameter in FinetuneConfig.parameters()],
        "notes_form": NotesForm(instance=found),
        "continue_form": ContinueForm(),
        "addresses": {
            "socket": f"/ws/training/{found.pk}/",
            "events": reverse("training:events", args=[found.pk]),
            "files": reverse("training:file", args=[found.pk, "_"])[:-1],
            "spectrograms": reverse("training:spectrogram", args=[found.pk, "_"])[:-1],
        },
    }
    return render(request, "training/run.html", context)


@require_safe
def events(request: HttpRequest, pk: uuid.UUID) -> JsonResponse:
    """What the socket would send, for networks that let no socket through."""
    found = selectors.visible_run(request.user, pk)
    return JsonResponse({"events": selectors.events_after(found, event_number(request.GET.get("after", "0")))})


@require_POST
def stop(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_run(request.user, pk)
    waiting = found.status == Status.QUEUED
    save = request.POST.get("how") != "now"
    if services.request_stop(found, save=save):
        text = (
            "Taken out of the line."
            if waiting
            else "Stopping: a checkpoint is saved first."
            if save
            else "Stopping at the next step, without saving."
        )
        messages.success(request, text)
    else:
        messages.warning(request, "This run had ended already.")
    return redirect("training:run", pk)


@require_POST
def save(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_run(request.user, pk)
    _say(request, services.request_save(found), "A checkpoint is saved at the next step.", "Nothing to save: this run is not running.")
    return redirect("training:run", pk)


@require_POST
def sample(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_run(request.user, pk)
    _say(request, services.request_sample(found), "The validation sounds are made at the next step.", "No sounds: this run is not running.")
    return redirect("training:run", pk)


@require_POST
def resume(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_run(request.user, pk)
    _say(
        request,
        services.resume(found),
        "Back in line: the run goes on from its last checkpoint.",
        "Only a stopped or failed run can be resumed.",
    )
    return redirect("training:run", pk)


@require_POST
def continue_run(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_run(request.user, pk)
    form = ContinueForm(request.POST)
    if not form.is_valid():
        messages.error(request, f"Steps more: {' '.join(form.errors['more_steps'])}")
        return redirect("training:run", pk)
    try:
        child = services.continue_run(found, more_steps=form.cleaned_data["more_steps"], owner=request.user)
    except Fault as fault:
        messages.error(request, fault.message)
        return redirect("training:run", pk)
    messages.success(request, _queued_words(child))
    return redirect("training:run", child.pk)


@require_safe
def clone(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    if selectors.visible_run(request.user, pk).is_pretraining:
        raise Http404("a pretraining starts from a recipe")
    return redirect(f"{reverse('training:new')}?clone={pk}")


@require_POST
def edit(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_run(request.user, pk)
    form = NotesForm(request.POST, instance=found)
    if form.is_valid():
        services.update_run(found, **form.cleaned_data)
        messages.success(request, "Saved.")
    else:
        messages.error(request, " ".join(f"{field}: {' '.join(errors)}" for field, errors in form.errors.items()))
    return redirect("training:run", pk)


@require_POST
def archive(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_run(request.user, pk)
    services.update_run(found, archived=not found.archived)
    messages.success(request, "Moved to the archive." if found.archived else "Back among the runs.")
    return redirect("training:run", pk)


@require_safe
def file(request: HttpRequest, pk: uuid.UUID, path: str) -> HttpResponseBase:
    found = selectors.visible_run(request.user, pk)
    target = file_in(found.folder, path)
    if target.suffix not in SHOWN_FILES or target.is_relative_to((found.folder / "checkpoints").resolve()):
        raise Http404(f"{path} is not shown here")
    name = "-".join([slugify(found.name) or "run", *target.relative_to(found.folder.resolve()).parts[-2:]])
    return file_response(request, target, filename=name, content_type=SHOWN_FILES[target.suffix])


@require_safe
def spectrogram(request: HttpRequest, pk: uuid.UUID, path: str) -> HttpResponse:
    found = selectors.visible_run(request.user, pk)
    return spectrogram_response(file_in(found.folder / "samples", path.removeprefix("samples/")))


def spectrogram_response(sound) -> HttpResponse:
    """The picture of a sound. Its address carries the sound's hash, so a browser may keep it.

    Raises:
        Http404: the file is no sound.
    """
    try:
        picture = spectrogram_png(sound, **SPECTROGRAM)
    except Fault as fault:
        raise Http404(fault.message) from None
    return HttpResponse(picture, content_type="image/png", headers={"Cache-Control": f"private, max-age={A_WEEK_S}"})


@require_safe
def checkpoints(request: HttpRequest) -> HttpResponse:
    filters = {"query": request.GET.get("q", ""), "origin": request.GET.get("origin", "")}
    page = selectors.checkpoint_page(request.user, **filters, page=request.GET.get("page"))
    context = {"page": page, **filters, "origins": Checkpoint.Origin.choices, "active": selectors.active_conversions(request.user)}
    return render(request, "checkpoints/index.html", context)


@require_safe
def checkpoint(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_checkpoint(request.user, pk)
    context = {
        "checkpoint": found,
        "runs": selectors.descendants(request.user, found),
        "ancestors": selectors.ancestors(request.user, found),
        "children": selectors.children(request.user, found),
        "recommended": storage.recommended(found),
        "is_run": found.format == Checkpoint.Format.RUN,
        "facts": selectors.facts_in_words(found),
        "choices": [] if found.missing else conversions.export_choices(found),
        "exports": selectors.exports_of(request.user, found),
    }
    return render(request, "checkpoints/checkpoint.html", context)


@require_safe
def download(request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
    """The trained weights of a run's checkpoint: one file, with ranges so that a broken download goes on."""
    found = selectors.visible_checkpoint(request.user, pk)
    if found.format != Checkpoint.Format.RUN:
        raise Http404("a whole model is a folder; copy it from DATA_DIR")
    try:
        weights = storage.weights_file(found)
    except Fault as fault:
        raise Http404(fault.message) from None
    name = f"{slugify(found.name) or found.pk}.{weights.name}"
    return file_response(request, weights, filename=name, content_type="application/octet-stream", as_attachment=True)


@require_POST
def pin(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_checkpoint(request.user, pk)
    services.set_pinned(found, pinned=not found.pinned)
    messages.success(request, f"{found.name} is {'pinned: it stays' if found.pinned else 'no longer pinned'}.")
    return _back(request, reverse("checkpoints:checkpoint", args=[pk]))


@require_POST
def verify(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_checkpoint(request.user, pk)
    if not storage.is_quick(found.size_bytes):
        queue.enqueue_call("datasets", "training_app.tasks.verify_checkpoint", str(found.pk))
        messages.info(request, "The worker reads all of its files; the answer will stand here.")
    elif storage.verify(found):
        messages.success(request, "The files are whole: their hash is the one that was recorded.")
    else:
        messages.error(request, "The files are missing or were changed: their hash is not the one that was recorded.")
    return redirect("checkpoints:checkpoint", pk)


@require_POST
def scan(request: HttpRequest) -> HttpResponse:
    found = conversions.scan(owner=request.user)
    for row in found.registered:
        messages.success(request, f"{row.name} was found and registered.")
    for made in found.started:
        messages.success(request, f"{made.source} is being brought in by the worker.")
    for item in found.ignored:
        messages.warning(request, f"{item['path']} was left alone: {item['message']}")
    if found.offered:
        messages.info(request, "Files wait for your choice below.")
        return redirect("checkpoints:import")
    if not found.registered and not found.started and not found.ignored:
        messages.info(request, "Nothing new in DATA_DIR/incoming/checkpoints.")
    return redirect("checkpoints:index")


def _create(request: HttpRequest, form: RunForm) -> TrainingRun | None:
    """The new run, or None with the reason in the form."""
    chosen = form.cleaned_data
    try:
        return services.create_run(
            owner=request.user,
            dataset=chosen["dataset"],
            base_checkpoint=chosen["checkpoint"],
            values=form.values(),
            name=chosen["name"],
            tags=chosen["tags"],
            force="force" in request.POST,
        )
    except Fault as fault:
        form.add_error(None, fault.message)
    except ValidationError as error:
        form.add_error(None, error)
    return None


def _fit(request: HttpRequest, form: RunForm) -> dict[str, Any]:
    """What the run of a checked form would need here."""
    chosen = form.cleaned_data
    config = FinetuneConfig.parse(form.values())
    found = preflight.check(dataset=chosen["dataset"], checkpoint=chosen["checkpoint"], config=config)
    for finding in found.stops if found else []:
        if finding.about == "precision":
            form.add_error("mixed_precision", finding.message)
    return preflight.shown(found, forced="force" in request.POST)


def _to_mend(form: RunForm) -> str:
    """Which values keep the estimate from being made."""
    labels = [form.fields[name].label for name in form.errors if name in form.fields]
    return f"Nothing was counted yet: mend what is marked ({', '.join(labels)}), then check again." if labels else "Mend what is marked, then check again."


def _initial(request: HttpRequest) -> dict[str, Any]:
    cloned = None
    if wanted := id_or_none(request.GET.get("clone")):
        try:
            cloned = services.clone_values(selectors.visible_run(request.user, wanted))
        except Fault as fault:
            raise Http404(fault.message) from None
    usable = selectors.trainable_checkpoints(request.user)
    checkpoint = usable.filter(pk=id_or_none(request.GET.get("checkpoint")) or (cloned or {}).get("base_checkpoint")).first()
    if checkpoint is None and cloned is None:
        # The newest whole model: its own duration and sampler are the ones to start from.
        checkpoint = usable.filter(format=Checkpoint.Format.DIFFUSERS).first()
    values = initial_values(checkpoint=checkpoint, preset=request.GET.get("preset", ""), cloned=cloned)
    if dataset := id_or_none(request.GET.get("dataset")):
        values["dataset"] = dataset
    if checkpoint:
        values["checkpoint"] = checkpoint.pk
    return values


def _spent(run: TrainingRun) -> float | None:
    """What the newest attempt has cost until now; None where no price is set."""
    if not settings.ENVIRONMENT.price_per_hour or run.started_at is None:
        return None
    until = run.finished_at or timezone.now()
    return (until - run.started_at).total_seconds() / 3600 * settings.ENVIRONMENT.price_per_hour


def _queued_words(run: TrainingRun) -> str:
    place = selectors.places_in_line().get(run.pk)
    if not queue.workers_alive("training"):
        return "In line, but no training worker is running yet."
    return "In line: next." if place == 1 else f"In line: number {place}." if place else "Started."


def _say(request: HttpRequest, done: bool, yes: str, no: str) -> None:
    messages.success(request, yes) if done else messages.warning(request, no)


def _back(request: HttpRequest, otherwise: str) -> HttpResponse:
    """To the page of a run that the form was on, when it says so."""
    origin = id_or_none(request.POST.get("run"))
    return redirect("training:run", origin) if origin else redirect(otherwise)
