"""Where a request comes from. What a client writes into X-Forwarded-For itself is never believed."""

from __future__ import annotations

import ipaddress

from django.conf import settings
from django.http import HttpRequest


def client_address(request: HttpRequest) -> str:
    """The address that the outermost trusted proxy saw; the connection's own where there is no proxy.

    Each proxy appends the address that it was called from, so with N of them the N-th from the right is the client's: what stands
    further left came with the request and may say anything.
    """
    direct = request.META.get("REMOTE_ADDR", "")
    proxies = settings.ENVIRONMENT.trusted_proxies
    if not proxies:
        return direct
    hops = [hop.strip() for hop in request.headers.get("X-Forwarded-For", "").split(",")]
    return _plain(hops[-proxies]) if len(hops) >= proxies and _plain(hops[-proxies]) else direct


def is_this_machine(request: HttpRequest) -> bool:
    """Whether a program on this machine asks, without a proxy in between."""
    if any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Host")):
        return False
    try:
        return ipaddress.ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


def _plain(text: str) -> str:
    """An address without its port; "" for what is none."""
    text = text.strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""
