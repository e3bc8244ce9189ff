"""Sharing with the team: whoever has an account here sees and hears what is shared; only its owner (or staff) changes it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from audioldm_site.accounts.models import Share
from gpu.errors import Fault

SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")


def share(owned: Any) -> bool:
    """Let everybody here see one object of its owner. False when they do already.

    Raises:
        Fault: it belongs to nobody, so everybody sees it anyway.
    """
    if owned.owner_id is None:
        raise Fault("share.of_nobody", f"{owned} belongs to nobody: everybody sees it")
    return Share.objects.get_or_create(object_id=owned.pk, defaults={"owner_id": owned.owner_id})[1]


def unshare(owned: Any) -> bool:
    """Back to its owner alone. False when it was not shared by itself."""
    return bool(Share.objects.filter(object_id=owned.pk).delete()[0])


def set_shares_everything(user, *, everything: bool) -> None:
    """Whether all that is this user's, now and later, is shared."""
    if everything:
        Share.objects.get_or_create(owner=user, object_id=None)
    else:
        Share.objects.filter(owner=user, object_id=None).delete()


def shares_everything(user) -> bool:
    return Share.objects.filter(owner=user, object_id=None).exists()


def is_shared(owned: Any) -> bool:
    return Share.objects.filter(object_id=owned.pk).exists()


def shared_ids() -> set[uuid.UUID]:
    """Of everything that is shared by itself."""
    return set(Share.objects.exclude(object_id=None).values_list("object_id", flat=True))


def may_change(user, owned: Any) -> bool:
    """Its owner, anybody where it belongs to nobody, and staff."""
    return user.is_staff or owned.owner_id is None or owned.owner_id == user.pk


def require_change(user, owned: Any) -> None:
    """Raises PermissionDenied for somebody who may only look."""
    if not may_change(user, owned):
        raise PermissionDenied(f"{owned} is shared with you to look at; only its owner, or staff, may change it")


def owned_models() -> list[type]:
    """Every model whose rows belong to somebody."""
    from audioldm_site.jobs.models import OwnedQuerySet

    return [model for model in apps.get_models() if isinstance(getattr(model, "objects", None) and model.objects.all(), OwnedQuerySet)]


def find_owned(user, pk: uuid.UUID) -> Any | None:
    """The visible object with this id, of whatever kind; ids are unique over all of them."""
    found = (model.objects.visible_to(user).filter(pk=pk).first() for model in owned_models())
    return next((item for item in found if item is not None), None)


def shared_by(user) -> list[Any]:
    """The single objects that a user shares."""
    ids = list(Share.objects.filter(owner=user).exclude(object_id=None).values_list("object_id", flat=True))
    return [item for model in owned_models() for item in model.objects.filter(pk__in=ids)]


def team_may_change(view: Callable) -> Callable:
    """Marks a view whose POSTs are meant for those too who see the object and do not own it."""
    view.team_may_change = True
    return view


class OwnersChange:
    """Refuses what is not a read (403) when the address names another's object: pages need not think of it one by one.

    Only the object is looked at that the address names by its UUID; a stranger to it gets the view's own 404.
    """

    def __init__(self, get_response: Callable) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest):
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        if request.method in SAFE_METHODS or getattr(view, "team_may_change", False) or not request.user.is_authenticated:
            return
        for value in kwargs.values():
            if isinstance(value, uuid.UUID) and (owned := find_owned(request.user, value)) is not None:
                require_change(request.user, owned)
