"""API tokens: made, recognised, revoked. The only place that ever sees one in clear."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import timedelta

from django.utils import timezone

from audioldm_site.accounts.models import ApiToken
from gpu.errors import Fault

MARK = "studio_"
"""Lets scanners of public code recognise one that was published by mistake."""
TOKEN = re.compile(r"studio_[A-Za-z0-9_-]{43}", re.ASCII)
PREFIX_CHARACTERS = len(MARK) + 5
USED_EVERY = timedelta(minutes=1)
"""How exact `last_used_at` is: a write for each request would be the dearest part of it."""


def create_token(*, user, name: str, scope: str = ApiToken.Scope.READ, days: int | None = None) -> tuple[ApiToken, str]:
    """A new token and its clear text, which nobody can show again.

    Args:
        days: until it expires; None for never.
    Raises:
        Fault: `token.invalid` for a name, scope or time that is none.
    """
    name = " ".join(name.replace("\0", "").split())
    if not name or len(name) > ApiToken._meta.get_field("name").max_length:
        raise Fault("token.invalid", f"the token's name ({name[:20]!r}) must have 1 to 80 characters")
    if scope not in ApiToken.Scope.values:
        raise Fault("token.invalid", f"the token's scope ({scope!r}) must be one of {', '.join(ApiToken.Scope.values)}")
    if days is not None and not 1 <= days <= 3650:
        raise Fault("token.invalid", f"the token's time ({days} days) must be from 1 to 3650 days")
    text = MARK + secrets.token_urlsafe(32)  # 256 bits: nothing to guess, so a fast digest is enough
    expires_at = timezone.now() + timedelta(days=days) if days else None
    token = ApiToken(user=user, name=name, prefix=text[:PREFIX_CHARACTERS], digest=_digest(text), scope=scope, expires_at=expires_at)
    token.save()
    return token, text


def find_token(text: str) -> ApiToken | None:
    """The valid token with this clear text, or None. Marks it as used."""
    if not TOKEN.fullmatch(text):
        return None
    digest = _digest(text)
    token = ApiToken.objects.valid().select_related("user").filter(digest=digest).first()
    if token is None or not hmac.compare_digest(token.digest, digest):
        return None
    now = timezone.now()
    if token.last_used_at is None or now - token.last_used_at > USED_EVERY:
        ApiToken.objects.filter(pk=token.pk).update(last_used_at=now)
    return token


def bearer_text(header: str) -> str | None:
    """What an `Authorization: Bearer …` header carries; None for another one."""
    scheme, _, text = header.partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None


def revoke(token: ApiToken) -> bool:
    """From now on it opens nothing. False when it was revoked already."""
    return bool(ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
