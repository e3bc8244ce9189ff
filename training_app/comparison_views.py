"""The page that puts runs side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from audioldm_site.names import id_or_none
from training_app import comparison, selectors
from training_app.models import TrainingRun


@require_safe
def compare(request: HttpRequest) -> HttpResponse:
    runs = _runs(request)
    if len(runs) > comparison.MAX_RUNS:
        messages.warning(request, f"You chose {len(runs)} runs; the first {comparison.MAX_RUNS} are shown, as many as there are colours.")
        runs = runs[: comparison.MAX_RUNS]
    snapshots = [selectors.run_snapshot(run) for run in runs]
    differ, alike = comparison.options(runs) if runs else ([], [])
    query = request.GET.get("q", "")
    chosen = "&".join(f"run={run.pk}" for run in runs)
    context = {
        "runs": [_column(request, run) for run in runs],
        "outcomes": comparison.outcomes(runs, snapshots) if runs else [],
        "differ": differ,
        "alike": alike,
        "same_clips": comparison.same_clips(runs),
        "sound_rows": comparison.sounds(runs, snapshots),
        "state": {"runs": [comparison.curves(*pair) for pair in zip(runs, snapshots, strict=True)], "active": any(run.is_active for run in runs)},
        "addresses": {"curves": f"{reverse('training:compare_curves')}?{chosen}"},
        "csv": f"{reverse('training:compare_csv')}?{chosen}",
        "offered": comparison.offered_runs(request.user, query=query, chosen=runs),
        "query": query,
        "searching": "search" in request.GET,
        "max_runs": comparison.MAX_RUNS,
    }
    return render(request, "training/compare.html", context)


@require_safe
def curves(request: HttpRequest) -> JsonResponse:
    """The curves alone, for a page whose runs are still going."""
    runs = _runs(request)[: comparison.MAX_RUNS]
    return JsonResponse({
        "runs": [comparison.curves(run, selectors.run_snapshot(run)) for run in runs],
        "active": any(run.is_active for run in runs),
    })  # fmt: skip


@require_safe
def table(request: HttpRequest) -> StreamingHttpResponse:
    """Every step of the runs as CSV."""
    runs = _runs(request)[: comparison.MAX_RUNS]
    if not runs:
        raise Http404("no run of yours was named: ?run=ID")

    def lines() -> Iterator[str]:
        yield _line(comparison.CSV_COLUMNS)
        for run in runs:
            yield from map(_line, comparison.csv_rows(run))

    return StreamingHttpResponse(lines(), content_type="text/csv; charset=utf-8", headers={"Content-Disposition": 'attachment; filename="runs.csv"'})


def _runs(request: HttpRequest) -> list[TrainingRun]:
    return comparison.compared_runs(request.user, [pk for text in request.GET.getlist("run") if (pk := id_or_none(text))])


def _column(request: HttpRequest, run: TrainingRun) -> dict[str, Any]:
    """A run with the address of the same page without it."""
    parameters = request.GET.copy()
    parameters.setlist("run", [text for text in parameters.getlist("run") if id_or_none(text) != run.pk])
    return {"run": run, "without": f"?{parameters.urlencode()}"}


def _line(values: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(["" if value is None else value for value in values])
    return buffer.getvalue()
