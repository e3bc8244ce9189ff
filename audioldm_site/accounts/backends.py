"""Django's own check of name and password, no faster than `throttle` allows. Every form and command that logs in goes through it."""

from __future__ import annotations

from django.contrib.auth.backends import ModelBackend
from django.core.exceptions import PermissionDenied

from audioldm_site.accounts import throttle


class ThrottledBackend(ModelBackend):
    def authenticate(self, request, username=None, password=None, **kwargs):
        if username is None or password is None:
            return None
        if throttle.count_attempt(request, username) > 0:
            raise PermissionDenied
        # PostgreSQL cannot compare with NUL, and nobody is called so.
        user = None if "\0" in username else super().authenticate(request, username=username, password=password, **kwargs)
        if user is not None:
            throttle.forget_attempts(request, username)
        return user
