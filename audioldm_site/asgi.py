"""The site as an ASGI application: pages, and the sockets of job pages."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "audioldm_site.settings")
pages = get_asgi_application()

# After Django has been set up: these import models.
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402

from audioldm_site.origin import SameOrigin  # noqa: E402
from audioldm_site.routing import socket_urls, unknown_socket  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": pages,
        "websocket": SameOrigin(AuthMiddlewareStack(URLRouter([*socket_urls(), unknown_socket]))),
    }
)
