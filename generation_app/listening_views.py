"""Pages of blind listening tests. Until a listener is done, nothing that is sent to them names a checkpoint."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from audioldm_site import faults
from audioldm_site.accounts.sharing import team_may_change
from audioldm_site.files import file_in, file_response
from audioldm_site.jobs.live import event_number
from audioldm_site.jobs.models import Status
from audioldm_site.names import id_or_none
from generation_app import evaluation_selectors as selectors
from generation_app import evaluations, listenings
from generation_app.evaluation_forms import ListeningForm
from generation_app.models import Listening, ListeningSession
from gpu.config import ListenConfig
from gpu.errors import Fault
from training_app import storage
from training_app.selectors import recommendations


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "listening/index.html", {"page": selectors.listening_page(request.user, page=request.GET.get("page"))})


def new(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        form = ListeningForm(request.POST, user=request.user)
        if form.is_valid() and (made := _create(request, form)):
            return redirect("listening:listening", made.pk)
    else:
        form = ListeningForm(user=request.user, initial=_initial(request))
    chosen = {"defaults": ListenConfig().to_dict(), "recommended": recommendations(form.fields["checkpoint"].queryset)}
    return render(request, "listening/new.html", {"form": form, "chosen": chosen}, status=422 if form.is_bound else 200)


@require_safe
def listening(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """While the sounds are made: how far it is. Then the pairs, one after the other. Then what was behind the letters."""
    found = selectors.visible_listening(request.user, pk)
    if found.status != Status.SUCCEEDED:
        return render(request, "listening/making.html", _making(found))
    session = listenings.session_of(found, request.user)
    if session.finished_at:
        context = {"listening": found, "session": session, "results": selectors.results(found), "mine": listenings.tally(session.answers.all())}
        return render(request, "listening/results.html", context)
    pair = listenings.next_pair(session)
    number = listenings.pair_order(session).index(pair) + 1
    context = {
        "listening": found,
        "pair": pair,
        "number": number,
        "answered": session.answers.count(),
        "prompt": found.config["prompts"][pair],
        "sides": [(side, reverse("listening:sound", args=[pk, number, side])) for side in listenings.SIDES],
        "duration_s": found.config["audio_length_in_s"],
    }
    return render(request, "listening/pair.html", context)


@require_safe
def events(request: HttpRequest, pk: uuid.UUID) -> JsonResponse:
    """What the socket would send, for networks that let no socket through."""
    found = selectors.visible_listening(request.user, pk)
    return JsonResponse({"events": selectors.events_after(found, event_number(request.GET.get("after", "0")))})


@require_safe
def sound(request: HttpRequest, pk: uuid.UUID, number: int, side: str) -> HttpResponseBase:
    """Sound `a` or `b` of the `number`-th pair as this listener meets them; addresses and headers say no more than that.

    The file's own ETag and date are the same for both sides and left out.
    """
    found = selectors.visible_listening(request.user, pk)
    session = ListeningSession.objects.filter(listening=found, listener=request.user).select_related("listening").first()
    if session is None or side not in listenings.SIDES or not 1 <= number <= found.pair_count:
        raise Http404("there is no such pair")
    pair = listenings.pair_order(session)[number - 1]
    target = listenings.sound_file(session, pair, side)
    response = file_response(request, file_in(found.folder, str(target.relative_to(found.folder))), filename=f"{number}{side}.wav", content_type="audio/wav")
    for header in ("ETag", "Last-Modified"):
        response.headers.pop(header, None)
    response.headers["Cache-Control"] = "private, no-store"
    return response


@require_safe
def revealed(request: HttpRequest, pk: uuid.UUID, pair: int, subject: int) -> HttpResponseBase:
    """A sound by its checkpoint (0 the first, 1 the other), for a listener who is done."""
    found = selectors.visible_listening(request.user, pk)
    if not found.sessions.filter(listener=request.user).exclude(finished_at=None).exists():
        raise Http404("the names are still hidden")
    return file_response(request, file_in(found.folder, f"{listenings.PAIRS}/{pair:04d}-{subject}.wav"), filename=f"{pair}-{subject}.wav", content_type="audio/wav")


@require_POST
@team_may_change
def answer(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_listening(request.user, pk)
    session = listenings.session_of(found, request.user)
    pair, choice = request.POST.get("pair", ""), request.POST.get("choice", "")
    try:
        listenings.answer(session, pair=int(pair) if pair.isascii() and pair.isdigit() and len(pair) < 6 else -1, choice=choice)
    except Fault as fault:
        messages.error(request, fault.message)
    return redirect("listening:listening", pk)


@require_POST
@team_may_change
def finish(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """End this listener's part before the last pair."""
    found = selectors.visible_listening(request.user, pk)
    session = listenings.session_of(found, request.user)
    if session.answers.exists():
        listenings.finish(session)
    else:
        messages.warning(request, "Answer at least one pair first.")
    return redirect("listening:listening", pk)


@require_POST
def stop(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_listening(request.user, pk)
    if evaluations.request_stop(found):
        messages.success(request, "Stopped." if found.status == Status.CANCELLED else "Stopping; what was made is kept.")
    else:
        messages.warning(request, "This test's sounds had been made already.")
    return redirect("listening:listening", pk)


@require_POST
def retry(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_listening(request.user, pk)
    if evaluations.retry(found):
        messages.success(request, "Back in line: it goes on with the sounds that it has made.")
    else:
        messages.warning(request, "Only a stopped or failed one can be taken up again.")
    return redirect("listening:listening", pk)


@require_POST
def delete(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_listening(request.user, pk)
    try:
        evaluations.delete(found)
    except Fault as fault:
        messages.error(request, fault.message)
        return redirect("listening:listening", pk)
    messages.success(request, "Deleted, with its sounds and answers.")
    return redirect("listening:index")


def _making(found: Listening) -> dict[str, Any]:
    # Words of a failure may name a checkpoint: they are for whoever made the test, and no pair can be heard then anyway.
    return {
        "listening": found,
        "snapshot": selectors.job_snapshot(found),
        "fault": faults.explain(found.error_code, found.error_detail) if found.status == Status.FAILED else None,
        "addresses": {"socket": f"/ws/listening/{found.pk}/", "events": reverse("listening:events", args=[found.pk])},
    }


def _create(request: HttpRequest, form: ListeningForm) -> Listening | None:
    """The new test, or None with the reason in the form."""
    chosen = form.cleaned_data
    try:
        return listenings.create_listening(
            owner=request.user, checkpoint=chosen["checkpoint"], against=chosen["against"], name=chosen["name"], values=form.values()
        )
    except Fault as fault:
        form.add_error(None, fault.message)
    except ValidationError as error:
        form.add_error(None, error)
    return None


def _initial(request: HttpRequest) -> dict[str, Any]:
    values: dict[str, Any] = {parameter.name: parameter.default for parameter in ListenConfig.parameters()}
    playable = ListeningForm(user=request.user).fields["checkpoint"].queryset
    checkpoint = playable.filter(pk=id_or_none(request.GET.get("checkpoint"))).select_related("run").first() or playable.first()
    if checkpoint:
        values |= ListenConfig.known(storage.recommended(checkpoint)) | {"checkpoint": checkpoint.pk}
        if checkpoint.run:
            values["prompts"] = checkpoint.run.config.get("validation_prompts") or []
    if against := id_or_none(request.GET.get("against")):
        values["against"] = against
    return values
