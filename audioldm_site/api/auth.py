"""Who asks: a token of a program, or the session of somebody's browser; and how often."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict

from django.conf import settings
from django.http import HttpRequest
from ninja.security import APIKeyCookie, HttpBearer
from ninja.utils import check_csrf

from audioldm_site.accounts import tokens
from audioldm_site.accounts.address import client_address
from audioldm_site.accounts.sharing import SAFE_METHODS
from audioldm_site.api.problems import Problem

BUCKETS_KEPT = 10_000


class Token(HttpBearer):
    """A token in the `Authorization` header."""

    def authenticate(self, request: HttpRequest, token: str):
        found = tokens.find_token(token)
        if found is None:
            # Also those who guess are counted; what they guess at has 256 bits.
            _require_rate(f"address {client_address(request)}")
            raise Problem("api.token_refused", "the token is unknown, expired or revoked")
        if request.method not in SAFE_METHODS and not found.may_write:
            raise Problem("api.read_only", f"the token {found.name} ({found.prefix}…) may only look")
        _require_rate(f"token {found.pk}")
        # Selectors, and the views that send files, ask who the user is.
        request.user = found.user
        return found.user


class Session(APIKeyCookie):
    """The session of a browser that is logged in; what changes something needs the CSRF token too."""

    param_name = settings.SESSION_COOKIE_NAME

    def __init__(self) -> None:
        super().__init__(csrf=False)  # checked below, once it is known that somebody is logged in

    def authenticate(self, request: HttpRequest, key: str | None):
        if not request.user.is_authenticated:
            return None
        if request.method not in SAFE_METHODS and check_csrf(request):
            raise Problem("api.csrf", "the session's CSRF token is missing or wrong")
        _require_rate(f"user {request.user.pk}")
        return request.user


class Rate:
    """A bucket for each caller that holds a minute's requests and refills evenly. Kept by each web process for itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str, *, per_minute: int, now: float | None = None) -> float:
        """Take one request; return 0, or the seconds until there is one to take."""
        now = time.monotonic() if now is None else now
        with self._lock:
            left, at = self._buckets.pop(caller, (float(per_minute), now))
            left = min(per_minute, left + (now - at) * per_minute / 60)
            taken = left >= 1
            self._buckets[caller] = (left - 1 if taken else left, now)
            if len(self._buckets) > BUCKETS_KEPT:
                self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - left) * 60 / per_minute


rate = Rate()


def _require_rate(caller: str) -> None:
    per_minute = settings.ENVIRONMENT.api_rate_per_minute
    wait_s = rate.wait_s(caller, per_minute=per_minute)
    if wait_s > 0:
        raise Problem("api.too_many", f"more than {per_minute} requests a minute", headers={"Retry-After": str(math.ceil(wait_s))})
