"""Who may open a socket. Browsers send cookies with any page's WebSocket, so the page's origin decides, as CSRF checks do for forms."""

from __future__ import annotations

from urllib.parse import urlsplit

from channels.security.websocket import WebsocketDenier
from django.conf import settings
from django.http.request import validate_host


class SameOrigin:
    """Refuses a socket whose Origin is missing, or is neither the host that was asked nor a trusted origin.

    Channels' AllowedHostsOriginValidator compares with ALLOWED_HOSTS alone, and `*` there lets every page in.
    """

    def __init__(self, application) -> None:
        self.application = application

    async def __call__(self, scope, receive, send):
        headers = {name.lower(): value.decode("latin-1") for name, value in scope.get("headers", [])}
        host = headers.get(b"host", "")
        if settings.USE_X_FORWARDED_HOST:
            host = headers.get(b"x-forwarded-host", host)
        application = self.application if _is_same(headers.get(b"origin", ""), host) else WebsocketDenier()
        return await application(scope, receive, send)


def _is_same(origin: str, host: str) -> bool:
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    try:
        parts = urlsplit(origin)
        hostname = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    # The name must be one of ours: else a page under a foreign name that points at this machine is "the same origin".
    return parts.scheme in ("http", "https") and parts.netloc == host and validate_host(_bracketed(hostname), settings.ALLOWED_HOSTS)


def _bracketed(hostname: str) -> str:
    return f"[{hostname}]" if ":" in hostname else hostname
