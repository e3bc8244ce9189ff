"""Finding by what people type: a name or an id."""

from __future__ import annotations

import uuid
from typing import TypeVar

from django.db.models import Model, QuerySet

from gpu.errors import Fault

M = TypeVar("M", bound=Model)


def by_name_or_id(rows: QuerySet, wanted: str, *, what: str) -> M:
    """The one row of that id, of an id that begins so (8 letters or more), or of that name.

    Raises:
        Fault: `lookup.not_found`, with the names there are; `lookup.ambiguous`, with the ids that fit.
    """
    try:
        found = list(rows.filter(pk=uuid.UUID(wanted)))
    except ValueError:
        found = list(rows.filter(name=wanted)[:10]) if _has_name(rows) else []
    if not found and len(wanted) >= 8:
        found = [row for row in rows.only("pk") if str(row.pk).startswith(wanted.lower())]
    if not found:
        names = [str(row) for row in rows[:10]]
        raise Fault("lookup.not_found", f"there is no {what} {wanted!r}; there {'is' if len(names) == 1 else 'are'}: {', '.join(names) or 'none'}")
    if len(found) > 1:
        raise Fault("lookup.ambiguous", f"{len(found)} {what}s are called {wanted!r}: use the id, one of {', '.join(str(row.pk) for row in found)}")
    return rows.get(pk=found[0].pk)


def _has_name(rows: QuerySet) -> bool:
    return any(field.name == "name" for field in rows.model._meta.get_fields())
