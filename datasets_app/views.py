from __future__ import annotations

import tempfile
from pathlib import Path

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST, require_safe

from audioldm_site import faults
from audioldm_site.files import file_response
from audioldm_site.jobs import queue
from datasets_app import playback, selectors, services
from datasets_app.forms import FLAG_LABELS, ClipForm, DatasetForm, FilterForm, SplitForm, UploadForm
from datasets_app.models import Clip, Dataset, DatasetStatus, Origin
from gpu.errors import Fault

DATASETS_PER_PAGE = 30
CLIPS_PER_PAGE = 50
PROBLEMS_SHOWN = 100


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    return _index(request, UploadForm())


@require_POST
def upload(request: HttpRequest) -> HttpResponse:
    form = UploadForm(request.POST, request.FILES)
    if not form.is_valid():
        return _index(request, form, status=400)
    archive = form.cleaned_data["archive"]
    source = on_disk(archive)
    try:
        dataset = services.create_dataset(
            source=source,
            source_name=archive.name,
            name=form.cleaned_data["name"] or None,
            owner=request.user,
            origin=Origin.UPLOADED,
            move=True,
        )
    except Fault as fault:
        form.add_error("archive", fault.message)
        return _index(request, form, status=400)
    finally:
        source.unlink(missing_ok=True)
    return redirect("datasets:dataset", dataset.pk)


@require_POST
def scan(request: HttpRequest) -> HttpResponse:
    try:
        imported, ignored = services.scan_incoming(owner=request.user)
    except Fault as fault:
        messages.error(request, fault.message)
        return redirect("datasets:index")
    if imported:
        messages.success(request, f"Found {', '.join(dataset.name for dataset in imported)}.")
    for item in ignored:
        messages.warning(request, f"{item['path']}: {item['message']}.")
    if not imported and not ignored:
        messages.info(request, f"{settings.DATA_DIR / 'incoming' / 'datasets'} is empty. Put zips or folders there and scan again.")
    return redirect("datasets:index")


@require_safe
def dataset(request: HttpRequest, pk) -> HttpResponse:
    found = _dataset(request, pk)
    if found.status == DatasetStatus.IMPORTING:
        progress = selectors.import_progress(found)
        return render(request, "datasets/importing.html", {"dataset": found, "progress": progress, "worker_alive": queue.workers_alive("datasets")})
    context = {"dataset": found, "may_delete": may_delete(request.user, found), **_problems(found, every=request.GET.get("problems") == "all")}
    if found.status == DatasetStatus.FAILED:
        return render(request, "datasets/failed.html", {**context, "fault": faults.explain(found.error_code, found.error_detail)})
    return _ready(request, found, context)


@require_POST
def edit(request: HttpRequest, pk) -> HttpResponse:
    found = _dataset(request, pk)
    try:
        services.update_dataset(found, **{name: request.POST.get(name) for name in ("name", "licence", "notes")})
    except Fault as fault:
        messages.error(request, fault.message)
    else:
        messages.success(request, "Saved.")
    return redirect("datasets:dataset", pk)


@require_POST
def resplit(request: HttpRequest, pk) -> HttpResponse:
    found = _dataset(request, pk)
    form = SplitForm(request.POST)
    if form.is_valid():
        services.resplit(found, seed=form.cleaned_data["seed"], validation_share=form.cleaned_data["validation_percent"] / 100)
        messages.success(request, "Split again.")
    else:
        messages.error(request, " ".join(error for errors in form.errors.values() for error in errors))
    return redirect("datasets:dataset", pk)


@require_POST
def delete(request: HttpRequest, pk) -> HttpResponse:
    found = _dataset(request, pk)
    if not may_delete(request.user, found):
        raise PermissionDenied("only its owner, or staff, may delete a dataset")
    try:
        services.delete_dataset(found)
    except Fault as fault:
        messages.error(request, fault.message)
        return redirect("datasets:dataset", pk)
    messages.success(request, f"{found.name} is deleted.")
    return redirect("datasets:index")


@require_POST
def clip(request: HttpRequest, pk, clip_id: int) -> HttpResponse:
    """Save a clip; answers JSON to a script and goes back to the list otherwise."""
    found = _clip(request, pk, clip_id)
    form = ClipForm(request.POST)
    try:
        if not form.is_valid():
            raise Fault("clip.invalid", " ".join(error for errors in form.errors.values() for error in errors))
        services.update_clip(found, **form.changes())
    except Fault as fault:
        if request.accepts("text/html"):
            messages.error(request, fault.message)
            return redirect(_back_to(request, found))
        return JsonResponse(fault.as_data(), status=400)
    if request.accepts("text/html"):
        return redirect(_back_to(request, found))
    flags = [{"code": flag, "label": FLAG_LABELS.get(flag, flag)} for flag in found.flags]
    return JsonResponse({"caption": found.caption, "split": found.split, "included": not found.excluded, "flags": flags})


@require_safe
def clip_audio(request: HttpRequest, pk, clip_id: int) -> HttpResponse:
    found = _clip(request, pk, clip_id)
    try:
        path = playback.playable_file(found)
    except Fault as fault:
        raise Http404(fault.message) from fault
    return file_response(request, path, filename=Path(found.path).name, content_type="audio/wav")


def _index(request: HttpRequest, form: UploadForm, *, status: int = 200) -> HttpResponse:
    page = Paginator(selectors.dataset_list(request.user), DATASETS_PER_PAGE).get_page(request.GET.get("page"))
    importing = any(found.status == DatasetStatus.IMPORTING for found in page)
    context = {
        "page": page,
        "form": form,
        "importing": importing,
        "worker_alive": not importing or queue.workers_alive("datasets"),
        "incoming": settings.DATA_DIR / "incoming" / "datasets",
    }
    return render(request, "datasets/index.html", context, status=status)


def _ready(request: HttpRequest, found: Dataset, context: dict) -> HttpResponse:
    flags = selectors.flag_counts(found)
    filters = FilterForm(request.GET, flags=flags)
    page = Paginator(selectors.clip_list(found, filters.wanted()), CLIPS_PER_PAGE).get_page(request.GET.get("page"))
    for row in page:
        row.flag_labels = [FLAG_LABELS.get(flag, flag) for flag in row.flags]
    context |= {
        "totals": selectors.totals(found),
        "histogram": selectors.duration_histogram(found),
        "filters": filters,
        "page": page,
        "here": request.get_full_path(),
        "dataset_form": DatasetForm(instance=found),
        "split_form": SplitForm.of(found),
        "runs": found.runs.visible_to(request.user).order_by("-created_at")[:10],
    }
    return render(request, "datasets/dataset.html", context)


def _problems(found: Dataset, *, every: bool) -> dict:
    shown = found.problems if every else found.problems[:PROBLEMS_SHOWN]
    rows = [{**problem, "fault": faults.explain(problem["code"], problem["message"])} for problem in shown]
    return {"problems": rows, "problem_count": len(found.problems), "problems_hidden": len(found.problems) - len(rows)}


def _dataset(request: HttpRequest, pk) -> Dataset:
    return get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)


def _clip(request: HttpRequest, pk, clip_id: int) -> Clip:
    return get_object_or_404(Clip.objects.select_related("dataset").filter(dataset__in=Dataset.objects.visible_to(request.user)), pk=clip_id, dataset=pk)


def may_delete(user, found: Dataset) -> bool:
    """Everyone who sees a dataset may mend it; only its owner, or staff, may take it away."""
    return user.is_staff or found.owner_id == user.pk


def _back_to(request: HttpRequest, found: Clip) -> str:
    """The list as it was, at the clip."""
    address = request.POST.get("next", "")
    # Without the slash redirect() would take it for the name of a view.
    if not address.startswith("/") or not url_has_allowed_host_and_scheme(address, allowed_hosts={request.get_host()}, require_https=request.is_secure()):
        address = reverse("datasets:dataset", args=[found.dataset_id])
    return f"{address}#clip-{found.pk}"


def on_disk(archive: UploadedFile) -> Path:
    """Where the upload lies; a small one that Django kept in memory is written out first."""
    if isinstance(archive, TemporaryUploadedFile):
        return Path(archive.temporary_file_path())
    with tempfile.NamedTemporaryFile(dir=settings.DATA_DIR / "uploads", suffix=".upload", delete=False) as file:
        for piece in archive.chunks():
            file.write(piece)
    return Path(file.name)
