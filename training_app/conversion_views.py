"""Pages on which models come in and checkpoints go out: fetch, form, service, respond."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from audioldm_site import faults, machine
from audioldm_site.files import file_response
from audioldm_site.jobs import queue
from audioldm_site.jobs.live import event_number
from audioldm_site.jobs.models import Status
from gpu.errors import Fault
from training_app import conversions, drafts, loras, selectors, sources
from training_app.conversion_forms import ExportForm, HubForm, ImportForm, UploadForm
from training_app.models import Checkpoint, Conversion
from training_app.sources import Found


@require_safe
def bring_in(request: HttpRequest) -> HttpResponse:
    """The ways in, and what lies in the incoming folder."""
    return _bring_in(request, UploadForm(), HubForm())


@require_POST
def upload(request: HttpRequest) -> HttpResponse:
    """Keep the file until its owner has seen what it is and said how it shall come in."""
    form = UploadForm(request.POST, request.FILES)
    if not form.is_valid():
        return _bring_in(request, form, HubForm(), status=400)
    sent = form.cleaned_data["model"]
    draft = uuid.uuid4()
    folder = settings.DATA_DIR / "uploads" / str(draft)
    folder.mkdir(parents=True)
    try:
        _keep(sent, folder / "part")
        drafts.keep_draft(folder, folder / "part", name=sent.name, owner=request.user)
    except Fault as fault:
        shutil.rmtree(folder, ignore_errors=True)
        form.add_error("model", f"{faults.explain(fault.code).title}: {fault.message}")
        return _bring_in(request, form, HubForm(), status=400)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return redirect(f"{reverse('checkpoints:choose')}?upload={draft}")


@require_POST
def hub(request: HttpRequest) -> HttpResponse:
    form = HubForm(request.POST)
    if form.is_valid():
        try:
            found = sources.look_at_hub(form.cleaned_data["repository"])
            made = conversions.import_model(found, owner=request.user, origin=Checkpoint.Origin.HUB, name=form.cleaned_data["name"])
            return redirect("checkpoints:conversion", made.pk)
        except Fault as fault:
            form.add_error("repository", fault.message)
    return _bring_in(request, UploadForm(), form, status=400)


def choose(request: HttpRequest) -> HttpResponse:
    """What a file is, and how it shall come in; POST puts it in line."""
    try:
        found, origin = _chosen(request)
    except Fault as fault:
        messages.error(request, f"{faults.explain(fault.code).title}: {fault.message}")
        return redirect("checkpoints:import")
    bases = _bases(request, found)
    form = ImportForm(request.POST or None, found=found, bases=bases)
    if form.is_bound and form.is_valid():
        try:
            # What was dropped into the common folder is everybody's; an upload belongs to whoever sent it.
            owner = request.user if origin == Checkpoint.Origin.UPLOADED else None
            made = conversions.import_model(found, owner=owner, origin=origin, **form.values())
            if origin == Checkpoint.Origin.UPLOADED:
                shutil.rmtree(drafts.draft_folder(request.GET["upload"]), ignore_errors=True)
            return redirect("checkpoints:conversion", made.pk)
        except Fault as fault:
            form.add_error(None, f"{faults.explain(fault.code).title}: {fault.message}")
        except ValidationError as error:
            form.add_error(None, error)
    context = {"found": found, "form": form, "bases": bases, "disk": machine.disk(), "query": request.GET.urlencode()}
    return render(request, "checkpoints/choose.html", context, status=422 if form.is_bound else 200)


@require_safe
def conversion_list(request: HttpRequest) -> HttpResponse:
    page = selectors.conversion_page(request.user, page=request.GET.get("page"))
    return render(request, "checkpoints/conversions.html", {"page": page, "kept_days": conversions.KEPT_DAYS})


@require_safe
def conversion(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_conversion(request.user, pk)
    snapshot = selectors.conversion_snapshot(found)
    failed = found.status == Status.FAILED
    context = {
        "conversion": found,
        "snapshot": snapshot,
        "seconds_left": selectors.seconds_left(snapshot["stage"]),
        "fault": faults.explain(found.error_code, found.error_detail) if failed else None,
        "log": selectors.log_tail(found) if failed and found.error_code in ("internal", "process.died") else "",
        "place": selectors.conversion_places().get(found.pk) if found.status == Status.QUEUED else None,
        "may_delete": conversions.may_delete(request.user, found),
        "downloadable": _download(found) is not None,
        "kept_days": conversions.KEPT_DAYS,
        "command": _command(found),
        "addresses": {"socket": f"/ws/conversion/{found.pk}/", "events": reverse("checkpoints:conversion_events", args=[found.pk])},
    }
    return render(request, "checkpoints/conversion.html", context)


@require_safe
def events(request: HttpRequest, pk: uuid.UUID) -> JsonResponse:
    """What the socket would send, for networks that let no socket through."""
    found = selectors.visible_conversion(request.user, pk)
    return JsonResponse({"events": selectors.conversion_events_after(found, event_number(request.GET.get("after", "0")))})


@require_POST
def stop(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_conversion(request.user, pk)
    if conversions.request_stop(found):
        messages.success(request, "Stopped." if found.status == Status.CANCELLED else "Stopping.")
    else:
        messages.warning(request, "It had ended already.")
    return redirect("checkpoints:conversion", pk)


@require_POST
def retry(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_conversion(request.user, pk)
    if conversions.retry(found):
        messages.success(request, "Back in line: it begins anew.")
    else:
        messages.warning(request, "Only a stopped or failed one can be tried again.")
    return redirect("checkpoints:conversion", pk)


@require_POST
def delete(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_conversion(request.user, pk)
    if not conversions.may_delete(request.user, found):
        raise PermissionDenied("only its owner, or staff, may delete it")
    try:
        conversions.delete_conversion(found)
    except Fault as fault:
        messages.error(request, fault.message)
        return redirect("checkpoints:conversion", pk)
    messages.success(request, "Deleted, with its file." if found.is_export else "Deleted. A checkpoint that came of it stays.")
    return redirect("checkpoints:conversions")


@require_safe
def file(request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
    """What an export wrote: one file, with ranges so that a broken download goes on."""
    found = selectors.visible_conversion(request.user, pk)
    path = _download(found)
    if path is None:
        raise Http404("there is nothing to download")
    return file_response(request, path, filename=path.name, content_type="application/octet-stream", as_attachment=True)


@require_POST
def export(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    found = selectors.visible_checkpoint(request.user, pk)
    form = ExportForm(request.POST)
    if not form.is_valid():
        messages.error(request, " ".join(error for errors in form.errors.values() for error in errors))
        return redirect("checkpoints:checkpoint", pk)
    try:
        made = conversions.export_model(found, owner=request.user, format=form.cleaned_data["format"], dtype=form.cleaned_data["dtype"] or "fp32")
    except Fault as fault:
        messages.error(request, f"{faults.explain(fault.code).title}: {fault.message}")
        return redirect("checkpoints:checkpoint", pk)
    return redirect("checkpoints:conversion", made.pk)


def _bring_in(request: HttpRequest, upload_form: UploadForm, hub_form: HubForm, *, status: int = 200) -> HttpResponse:
    offered, ignored = [], []
    for path in sources.incoming():
        try:
            offered.append(sources.look_at(path))
        except Fault as fault:
            ignored.append({"path": path.name, "message": fault.message})
    context = {
        "upload_form": upload_form,
        "hub_form": hub_form,
        "offered": offered,
        "ignored": ignored,
        "incoming": sources.incoming_folder(),
        "disk": machine.disk(),
        "worker_alive": queue.workers_alive("datasets"),
    }
    return render(request, "checkpoints/import.html", context, status=status)


def _chosen(request: HttpRequest) -> tuple[Found, str]:
    """What `?upload=` or `?incoming=` names.

    Raises:
        Fault: it is not there any more, or no model.
        Http404: it is somebody else's upload.
    """
    if name := request.GET.get("incoming"):
        return sources.look_at(sources.incoming_path(name)), Checkpoint.Origin.SCANNED
    return drafts.open_draft(request.user, request.GET.get("upload")), Checkpoint.Origin.UPLOADED


def _bases(request: HttpRequest, found: Found) -> list[Checkpoint]:
    if not found.needs_base:
        return []
    rows = Checkpoint.objects.visible_to(request.user).usable().filter(format=Checkpoint.Format.DIFFUSERS)
    return loras.fitting(found, list(rows))


def _keep(sent: UploadedFile, target: Path) -> None:
    """Move the upload to its place; a small one that Django kept in memory is written out."""
    if isinstance(sent, TemporaryUploadedFile):
        Path(sent.temporary_file_path()).rename(target)
        # Django wants to remove its own file in the end.
        Path(sent.temporary_file_path()).touch()
        return
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file_:
        for piece in sent.chunks():
            file_.write(piece)
    Path(file_.name).rename(target)


def _download(found: Conversion) -> Path | None:
    """The file that a browser may have: below DATA_DIR/exports, of an export that has succeeded."""
    path = found.result_path
    return path if found.is_downloadable and path is not None and path.is_file() else None


def _command(found: Conversion) -> str:
    """The equal command."""
    config: dict[str, Any] = found.config
    if found.is_export:
        return shlex.join(["./manage.py", "export_checkpoint", found.name, "--format", config["format"], "--dtype", config["dtype"], "--out", "PATH"])
    words = ["./manage.py", "import_checkpoint", config["source"] if config["kind"] == sources.HUB else found.source, "--name", found.name]
    if config["weights"] != "auto":
        words.append(f"--{config['weights']}")
    if found.base:
        words += ["--base", found.base.name]
    if not config["keep_original"]:
        words.append("--slim")
    return shlex.join(words)
