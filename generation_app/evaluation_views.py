"""Pages of evaluations: fetch, form, service, respond."""

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
from audioldm_site.jobs.live import event_number
from audioldm_site.jobs.models import Status
from audioldm_site.names import id_or_none
from generation_app import evaluation_selectors as selectors
from generation_app import evaluations
from generation_app.evaluation_forms import BASE, EvaluationForm
from generation_app.models import Evaluation
from gpu.config import EvaluateConfig
from gpu.errors import Fault
from gpu.evaluation.report import REPORT_FILE
from gpu.evaluation.statistics import wilson_interval
from training_app import storage
from training_app.selectors import recommendations
from training_app.views import spectrogram_response


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    query = request.GET.get("q", "")
    return render(request, "evaluation/index.html", {"page": selectors.evaluation_page(request.user, query=query, page=request.GET.get("page")), "query": query})


def new(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        form = EvaluationForm(request.POST, user=request.user)
        if form.is_valid() and (made := _create(request, form)):
            return redirect("evaluation:evaluation", made.pk)
    else:
        form = EvaluationForm(user=request.user, initial=_initial(request))
    chosen = {"defaults": EvaluateConfig().to_dict(), "recommended": recommendations(form.fields["checkpoint"].queryset)}
    return render(request, "evaluation/new.html", {"form": form, "chosen": chosen}, status=422 if form.is_bound else 200)


@require_safe
def evaluation(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_evaluation(request.user, pk)
    report = selectors.read_report(found)
    context = {
        "evaluation": found,
        "snapshot": selectors.job_snapshot(found),
        "report": report,
        "rows": selectors.figure_rows(report) if report else [],
        "pairs": selectors.pairs(request.user, found, report) if report else [],
        "shares": [_share(subject) for subject in report.subjects if subject.sounds] if report else [],
        "fault": faults.explain(found.error_code, found.error_detail) if found.status == Status.FAILED else None,
        "parameters": [(parameter, found.config.get(parameter.name)) for parameter in EvaluateConfig.parameters()],
        "addresses": {"socket": f"/ws/evaluation/{found.pk}/", "events": reverse("evaluation:events", args=[found.pk])},
    }
    return render(request, "evaluation/evaluation.html", context)


@require_safe
def events(request: HttpRequest, pk: uuid.UUID) -> JsonResponse:
    """What the socket would send, for networks that let no socket through."""
    found = selectors.visible_evaluation(request.user, pk)
    return JsonResponse({"events": selectors.events_after(found, event_number(request.GET.get("after", "0")))})


@require_POST
def stop(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_evaluation(request.user, pk)
    if evaluations.request_stop(found):
        messages.success(request, "Stopped." if found.status == Status.CANCELLED else "Stopping; what was made is kept.")
    else:
        messages.warning(request, "This evaluation had ended already.")
    return redirect("evaluation:evaluation", pk)


@require_POST
def retry(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_evaluation(request.user, pk)
    if evaluations.retry(found):
        messages.success(request, "Back in line: it goes on with the sounds that it has made.")
    else:
        messages.warning(request, "Only a stopped or failed evaluation can be taken up again.")
    return redirect("evaluation:evaluation", pk)


@require_POST
def delete(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_evaluation(request.user, pk)
    try:
        evaluations.delete(found)
    except Fault as fault:
        messages.error(request, fault.message)
        return redirect("evaluation:evaluation", pk)
    messages.success(request, "Deleted, with its sounds.")
    return redirect("evaluation:index")


@require_safe
def file(request: HttpRequest, pk: uuid.UUID, path: str) -> HttpResponseBase:
    """A sound, or report.json."""
    found = selectors.visible_evaluation(request.user, pk)
    if path == REPORT_FILE:
        target, kind = file_in(found.folder, path), "application/json"
    else:
        target, kind = file_in(found.folder / "sounds", path.removeprefix("sounds/")), "audio/wav"
        if target.suffix != ".wav":
            raise Http404(f"{path} is no sound")
    name = f"{slugify(str(found))[:60] or 'evaluation'}-{target.parent.name if kind == 'audio/wav' else 'report'}-{target.name}"
    return file_response(request, target, filename=name, content_type=kind, as_attachment="download" in request.GET)


@require_safe
def table(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """The report for a spreadsheet."""
    found = selectors.visible_evaluation(request.user, pk)
    report = selectors.read_report(found)
    if report is None:
        raise Http404("there is no report")
    name = f"{slugify(str(found))[:60] or 'evaluation'}.csv"
    return HttpResponse(report.csv(), content_type="text/csv; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="{name}"'})


@require_safe
def spectrogram(request: HttpRequest, pk: uuid.UUID, path: str) -> HttpResponse:
    found = selectors.visible_evaluation(request.user, pk)
    return spectrogram_response(file_in(found.folder / "sounds", path.removeprefix("sounds/")))


def _share(subject) -> dict[str, Any]:
    """How many of a checkpoint's sounds were flagged, with the interval of that share."""
    low, high = wilson_interval(subject.flagged, len(subject.sounds))
    return {"subject": subject, "flagged": subject.flagged, "count": len(subject.sounds), "low": 100 * low, "high": 100 * high}


def _create(request: HttpRequest, form: EvaluationForm) -> Evaluation | None:
    """The new evaluation, or None with the reason in the form."""
    chosen = form.cleaned_data
    try:
        return evaluations.create_evaluation(
            owner=request.user,
            checkpoint=chosen["checkpoint"],
            against=form.chosen_against(),
            dataset=chosen["dataset"],
            ears=chosen["ears"],
            values=form.values(),
        )
    except Fault as fault:
        form.add_error(None, fault.message)
    except ValidationError as error:
        form.add_error(None, error)
    return None


def _initial(request: HttpRequest) -> dict[str, Any]:
    """`?checkpoint=` with its own defaults and the dataset that it was trained on, `?dataset=`, `?against=`."""
    values = {parameter.name: parameter.default for parameter in EvaluateConfig.parameters()} | {"against": BASE}
    form = EvaluationForm(user=request.user)
    playable = form.fields["checkpoint"].queryset
    # Some checkpoint is chosen in any case: its own duration and sampler are the ones to start from.
    checkpoint = playable.filter(pk=id_or_none(request.GET.get("checkpoint"))).select_related("run").first() or playable.first()
    dataset = id_or_none(request.GET.get("dataset"))
    if checkpoint:
        values |= EvaluateConfig.known(storage.recommended(checkpoint)) | {"checkpoint": checkpoint.pk}
        dataset = dataset or (checkpoint.run.dataset_id if checkpoint.run else None)
    if against := id_or_none(request.GET.get("against")):
        values["against"] = str(against)
    dataset = dataset or form.fields["dataset"].queryset.values_list("pk", flat=True).first()
    if dataset:
        values["dataset"] = dataset
    return values
