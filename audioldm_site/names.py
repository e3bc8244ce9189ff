"""Names that people give and commands refer to, and ids that stand in addresses."""

from __future__ import annotations

import uuid

from django.db.models import QuerySet


def free_name(existing: QuerySet, wanted: str) -> str:
    """`wanted`, or `wanted 2`, `wanted 3` … when rows of that name exist; cut to the field's length."""
    longest = existing.model._meta.get_field("name").max_length
    wanted = " ".join(wanted.split())[: longest - 5] or "unnamed"
    name, number = wanted, 1
    while existing.filter(name=name).exists():
        number += 1
        name = f"{wanted} {number}"
    return name


def id_or_none(text: str | None) -> uuid.UUID | None:
    """The id that a query string or a form names, or None for anything else."""
    try:
        return uuid.UUID(text or "")
    except ValueError:
        return None
