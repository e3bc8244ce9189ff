"""Passwords cannot be tried quickly: after five attempts each further one waits twice as long as the last.

Counted for one account from one address, so that nobody can lock others out; in the database, so that a restart or a second web process
forgets nothing. Behind a proxy that hides addresses everybody shares one: a browser that has logged in before is therefore known by a signed
cookie and counted for itself.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from django.conf import settings
from django.core import signing
from django.db import transaction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from audioldm_site.accounts.address import client_address
from audioldm_site.accounts.models import LoginAttempts

FREE_ATTEMPTS = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 5, 900
FORGOTTEN_AFTER = timedelta(hours=24)
MAX_ROWS, SWEEP_ROWS = 20_000, 2_000
"""Made-up account names must not fill the disk: beyond this the oldest rows go."""
DEVICE_COOKIE, DEVICE_SALT = "known_device", "audioldm_site.known_device"
DEVICE_AGE_S = 365 * 24 * 3600


def count_attempt(request: HttpRequest | None, username: str) -> float:
    """Count an attempt before its password is looked at; return how many seconds it must still wait, 0 when it may be tried.

    Counted first, so that a hundred at once are not all the first.
    """
    now = timezone.now()
    key = _key(request, username)
    with transaction.atomic():
        row, is_new = LoginAttempts.objects.select_for_update().get_or_create(key=key, defaults={"last_at": now})
        if row.blocked_until and row.blocked_until > now:
            return (row.blocked_until - now).total_seconds()
        if now - row.last_at > FORGOTTEN_AFTER:
            row.count = 0
        row.count, row.last_at = row.count + 1, now
        row.blocked_until = now + timedelta(seconds=wait_after(row.count)) if row.count >= FREE_ATTEMPTS else None
        row.save()
    if is_new:
        _sweep()
    return 0.0


def seconds_left(request: HttpRequest | None, username: str) -> float:
    """How long the next attempt must wait; counts nothing."""
    until = LoginAttempts.objects.filter(key=_key(request, username)).values_list("blocked_until", flat=True).first()
    return max(0.0, (until - timezone.now()).total_seconds()) if until else 0.0


def forget_attempts(request: HttpRequest | None, username: str) -> None:
    """The right password was given."""
    LoginAttempts.objects.filter(key=_key(request, username)).delete()


def wait_after(count: int) -> float:
    """Seconds to wait after the `count`-th attempt in a row: 5, 10, 20 … 900."""
    return 0.0 if count < FREE_ATTEMPTS else min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(count - FREE_ATTEMPTS, 20))


def remember_device(response: HttpResponseBase, username: str) -> None:
    """Let this browser be known, beside the session that ends."""
    value = signing.dumps([_normal(username), secrets.token_urlsafe(9)], salt=DEVICE_SALT)
    response.set_cookie(DEVICE_COOKIE, value, max_age=DEVICE_AGE_S, httponly=True, samesite="Lax", secure=settings.SESSION_COOKIE_SECURE)


def _key(request: HttpRequest | None, username: str) -> str:
    account = _normal(username)
    whence = _device(request, account) or (f"address {client_address(request)}" if request else "terminal")
    return hashlib.sha256(f"{account}\0{whence}".encode()).hexdigest()


def _device(request: HttpRequest | None, account: str) -> str:
    """The number of a browser that has logged into this very account before, or ""."""
    cookie = request.COOKIES.get(DEVICE_COOKIE, "") if request else ""
    try:
        known, number = signing.loads(cookie, salt=DEVICE_SALT, max_age=DEVICE_AGE_S)
    except (signing.BadSignature, ValueError, TypeError):
        return ""
    return f"device {number}" if known == account else ""


def _normal(username: str) -> str:
    return username.strip().casefold()[:150]


def _sweep() -> None:
    LoginAttempts.objects.filter(last_at__lt=timezone.now() - FORGOTTEN_AFTER).delete()
    if LoginAttempts.objects.count() > MAX_ROWS:
        oldest = LoginAttempts.objects.order_by("last_at").values_list("pk", flat=True)[:SWEEP_ROWS]
        LoginAttempts.objects.filter(pk__in=list(oldest)).delete()
