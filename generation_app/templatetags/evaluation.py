"""What the templates of evaluations and listening tests say, and the suggestion on a run's page."""

from __future__ import annotations

from typing import Any

from django import template

from generation_app.best import suggest
from training_app.models import TrainingRun

register = template.Library()


@register.filter
def percent(share: float | None) -> int:
    """0.5 as 50."""
    return round(100 * (share or 0))


@register.filter
def span(interval: tuple[float, float]) -> float:
    """How wide an interval of shares is, in percent."""
    return round(100 * (interval[1] - interval[0]), 1)


@register.inclusion_tag("evaluation/_best.html", takes_context=True)
def best_checkpoint(context: dict[str, Any], run: TrainingRun) -> dict[str, Any]:
    """Which checkpoint of a run to use, and why; nothing while there are fewer than two."""
    started = (context.get("snapshot") or {}).get("started") or {}
    suggestion = suggest(run, checkpoints=context.get("checkpoints"), validation_clips=started.get("validation_clips"))
    return {"suggestion": suggestion, "run": run, "user": context.get("user"), "csrf_token": context.get("csrf_token")}
