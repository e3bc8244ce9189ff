"""What the templates say often: icons, waveforms, sounds, moments, sizes, durations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django import template
from django.templatetags.static import static
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince

from audioldm_site.accounts import sharing
from audioldm_site.jobs.queue import workers_alive

register = template.Library()

MAX_BARS = 200
DASH = "–"
QUEUE_WORDS = {
    "training": ("No training worker is running", "New runs wait in line until there is one."),
    "generation": ("No generation worker is running", "Sounds that you ask for wait in line until there is one."),
    "datasets": ("No worker for datasets is running", "Uploads and scans wait until there is one."),
}


@register.simple_tag
def icon(name: str) -> SafeString:
    """One drawing of icons.svg, hidden from screen readers: the words beside it say what it means."""
    return format_html(
        '<svg class="icon icon-{}" viewBox="0 0 24 24" aria-hidden="true"><use href="{}#{}"></use></svg>',
        name,
        static("audioldm_site/icons.svg"),
        name,
    )


def waveform_path(peaks: Sequence[float], *, bars: int = MAX_BARS) -> str:
    """An SVG path with one upright bar per peak (0..100), centred on 50, in a box 1 wide per bar and 100 high.

    More peaks than `bars` are folded by their maximum, so that no transient disappears. `js/waveform.js` draws the same.
    """
    if not peaks:
        return ""
    bars = min(bars, len(peaks))
    parts = []
    for bar in range(bars):
        piece = peaks[bar * len(peaks) // bars : max((bar + 1) * len(peaks) // bars, bar * len(peaks) // bars + 1)]
        height = min(max(float(max(piece)), 1.0), 100.0) / 2
        parts.append(f"M{bar}.5 {50 - height:g}V{50 + height:g}")
    return "".join(parts)


@register.simple_tag
def waveform(peaks: Sequence[float] | None, bars: int = 120) -> SafeString:
    """The picture of a sound; nothing but a line when there are no peaks."""
    path = waveform_path(peaks or [], bars=bars)
    return format_html(
        '<svg viewBox="0 0 {} 100" preserveAspectRatio="none" aria-hidden="true" focusable="false"><path d="{}"></path></svg>',
        max(min(bars, len(peaks or [])), 1),
        path,
    )


@register.inclusion_tag("components/sound.html")
def sound(
    src: str, peaks: Sequence[float] | None = None, duration_s: float | None = None, title: str = "", size: str = "", group: str = ""
) -> dict[str, Any]:
    """Play button, waveform to seek in, and length. `size`: "", "thin" or "large". Without JavaScript the browser's own player.

    While a sound of a `group` plays, another of it takes over at the same moment, and none is louder than the others.
    """
    return {
        "src": src,
        "peaks": peaks or [],
        "duration_s": duration_s,
        "title": title,
        "size": size,
        "group": group,
        "bars": MAX_BARS if size == "large" else 120,
    }


@register.simple_tag(takes_context=True)
def nav_tab(context: dict[str, Any], view_name: str, label: str, symbol: str) -> SafeString | str:
    """One entry of the main navigation, marked when the page belongs to it."""
    try:
        address = reverse(view_name)
    except NoReverseMatch:
        return ""
    match = getattr(context.get("request"), "resolver_match", None)
    here = match is not None and (match.view_name == view_name or (":" in view_name and match.app_name == view_name.split(":")[0]))
    return format_html(
        '<a class="tab" href="{}"{}>{}<span>{}</span></a>', address, SafeString(' aria-current="page"' if here else ""), icon(symbol), label
    )


@register.filter
def moment(value: datetime | None, style: str = "") -> SafeString | str:
    """A time in UTC that js/moments.js rewrites in the reader's own zone; style "ago" says how long ago, "time" leaves out the day."""
    if _absent(value):
        return DASH
    value = timezone.localtime(value)
    text = (
        f"{timesince(value, depth=1)} ago"
        if style == "ago"
        else f"{value:%H:%M:%S}"
        if style == "time"
        else f"{value:%-d %b %Y, %H:%M} UTC"
    )
    return format_html(
        '<time datetime="{}" data-moment="{}" title="{} UTC">{}</time>', value.isoformat(), style, f"{value:%Y-%m-%d %H:%M:%S}", text
    )


@register.filter
def bytes_size(value: float | None) -> str:
    """A size as people say it, in powers of 1000 like the disks that hold it."""
    if _absent(value):
        return DASH
    size = float(value)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


@register.filter
def seconds(value: float | None) -> str:
    """The length of a sound: `10.24 s`, or `2:05` from a minute on."""
    if _absent(value):
        return DASH
    if value < 60:
        return f"{value:.2f}".rstrip("0").rstrip(".") + " s"
    return f"{int(value // 60)}:{int(value % 60):02d}"


@register.filter
def duration(value: float | None) -> str:
    """How long something takes: `42 s`, `12 min`, `2 h 05 min`, `3 d 4 h`. js/format.js says the same."""
    if _absent(value):
        return DASH
    if 0 < value < 1:
        return "less than 1 s"
    total = max(round(value), 0)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s" if total < 600 else f"{round(total / 60)} min"
    if total < 86400:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86400} d {total % 86400 // 3600} h"


@register.filter
def step_time(value: float | None) -> str:
    """How long a step takes: `0.13 s`, `4.2 s`, `42 s`, `1 min 05 s`."""
    if _absent(value):
        return DASH
    return f"{value:.2g} s" if value < 9.95 else duration(value)


@register.filter
def whole(value: float | None) -> str:
    """A count with thin spaces between thousands: 20 000."""
    return DASH if _absent(value) else f"{int(value):,}".replace(",", "\u202f")


@register.filter
def figure(value: Any, digits: int = 4) -> str:
    """A measured number with so many significant digits; small ones as 1e-4."""
    if _absent(value):
        return DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return str(value)
    if value and abs(value) < 0.001:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.{digits}g}"


@register.filter
def short_hash(value: str | None) -> SafeString | str:
    """The first twelve characters of a digest, the whole on hover."""
    return format_html('<code title="{}">{}</code>', value, value[:12]) if value else DASH


@register.filter
def option(value: Any) -> str:
    """A parameter's value in a table of configuration."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(str(item) for item in value) if value else DASH
    if value == "":
        return DASH
    return figure(value, 6) if isinstance(value, float) else str(value)


@register.filter
def percent_of(part: float | None, total: float | None) -> int:
    """How much of `total` is done, 0..100, rounded down so that 100 means all."""
    if not part or not total:
        return 0
    return max(0, min(100, int(100 * part / total)))


@register.filter
def item(mapping: Any, key: Any) -> Any:
    """`mapping[key]` or None, for keys that a template cannot spell."""
    return mapping.get(key) if hasattr(mapping, "get") else None


@register.simple_tag
def chart_line(values: Sequence[float | None]) -> SafeString | str:
    """A plain curve for readers without JavaScript."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or min(known) == max(known):
        return ""
    low, high = min(known), max(known)
    points = " ".join(
        f"{300 * index / (len(known) - 1):.1f},{58 - 56 * (value - low) / (high - low):.1f}" for index, value in enumerate(known)
    )
    return format_html(
        '<svg class="chart-line" viewBox="0 0 300 60" preserveAspectRatio="none" role="img" aria-label="{} to {}"><polyline points="{}"></polyline></svg>',
        figure(known[0]),
        figure(known[-1]),
        points,
    )


@register.filter
def tag_list(value: str) -> list[str]:
    """The tags of a comma-separated field."""
    return [tag.strip() for tag in (value or "").split(",") if tag.strip()]


@register.inclusion_tag("components/worker_banner.html")
def worker_banner(queue_name: str, alive: bool | None = None) -> dict[str, Any]:
    """A warning while nobody works on that queue; one query where the page does not know `alive`."""
    title, text = QUEUE_WORDS[queue_name]
    return {"title": title, "text": text, "alive": workers_alive(queue_name) if alive is None else alive}


@register.inclusion_tag("components/sort_heading.html", takes_context=True)
def sort_heading(context: dict[str, Any], key: str, label: str, css: str = "") -> dict[str, Any]:
    """A table heading that sorts by `?sort=key`, the other way round at the second click."""
    current = context.get("sort") or "-created"
    is_current = current.lstrip("-") == key
    descending = current.startswith("-") if is_current else key == "name"
    order = ("descending" if descending else "ascending") if is_current else ""
    return {"request": context["request"], "label": label, "css": css, "next": key if descending else f"-{key}", "order": order}


def _absent(value: Any) -> bool:
    """None, or what a template says for a name that is not there."""
    return value is None or value == ""


@register.filter
def changeable_by(owned: Any, user: Any) -> bool:
    """Whether the buttons that change something are for this user."""
    return sharing.may_change(user, owned)


@register.filter
def shared(owned: Any) -> bool:
    return sharing.is_shared(owned)


@register.filter
def kind_of(owned: Any) -> str:
    """What an object is, in words: dataset, training run."""
    return str(owned._meta.verbose_name)
