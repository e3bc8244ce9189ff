"""Every address of the site and every socket, tried by nobody. `test_walk.py` tries them with the ids of real things."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from channels.testing import WebsocketCommunicator
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from audioldm_site.asgi import application
from audioldm_site.jobs.lifecycle import job_models

OPEN = {"login/", "health/live", "health/ready", "admin/login/", "favicon.ico"}
"""What nobody in particular may see. `setup/` too, but only with its one-time token, and `metrics` from this machine."""
SAMPLES = {"uuid": str(uuid.UUID(int=7)), "int": "1", "slug": "x", "path": "x", "str": "x"}


def addresses(resolver: URLResolver | None = None, prefix: str = "") -> Iterator[str]:
    """One address for every pattern, with made-up ids."""
    for entry in (resolver or get_resolver()).url_patterns:
        pattern = entry.pattern
        if not hasattr(pattern, "_route"):  # a regular expression, of the admin's own
            continue
        address = prefix + pattern._route
        for name, converter in pattern.converters.items():
            kind = type(converter).__name__.removesuffix("Converter").removeprefix("String").lower() or "str"
            for written in (f"<{kind}:{name}>", f"<{name}>", f"<str:{name}>", f"<path:{name}>"):
                address = address.replace(written, SAMPLES.get(kind, "x"))
        if isinstance(entry, URLResolver):
            yield from addresses(entry, address)
        elif isinstance(entry, URLPattern):
            yield address


ALL = sorted(set(addresses()))


def test_the_walk_meets_every_part_of_the_site():
    tops = {address.split("/")[0] for address in ALL}
    assert {"", "datasets", "training", "checkpoints", "generation", "account", "api", "admin", "login", "setup", "health", "metrics"} <= tops
    assert len(ALL) > 100
    assert not [address for address in ALL if "<" in address]


@pytest.mark.django_db
def test_nobody_gets_in_without_a_login(alice):
    client = Client(REMOTE_ADDR="203.0.113.9")
    let_in = []
    for address in ALL:
        for method in ("get", "post", "put", "patch", "delete"):
            answer = getattr(client, method)(f"/{address}")
            refused = answer.status_code in (401, 403, 404, 405)
            sent_away = answer.status_code == 302 and "/login/" in answer.headers["Location"]
            if not refused and not sent_away and address not in OPEN:
                let_in.append((method, address, answer.status_code))
    assert not let_in


@pytest.mark.django_db(transaction=True)
async def test_every_socket_is_closed_to_nobody_and_to_foreign_pages():
    for model in job_models():
        address = f"/ws/{model.kind}/{uuid.uuid4()}/"
        own = WebsocketCommunicator(application, address, headers=[(b"host", b"localhost"), (b"origin", b"http://localhost")])
        assert (await own.connect())[0]
        assert (await own.receive_output())["code"] == 4401

        foreign = WebsocketCommunicator(application, address, headers=[(b"host", b"localhost"), (b"origin", b"http://evil.example")])
        assert not (await foreign.connect())[0]


@pytest.mark.django_db(transaction=True)
async def test_a_foreign_page_opens_no_socket_although_every_host_is_allowed(settings):
    settings.ALLOWED_HOSTS = ["*"]
    address = f"/ws/training/{uuid.uuid4()}/"

    for headers in ([(b"host", b"studio.example")], [(b"host", b"studio.example"), (b"origin", b"https://evil.example")]):
        assert not (await WebsocketCommunicator(application, address, headers=headers).connect())[0]


@pytest.mark.django_db(transaction=True)
async def test_behind_a_proxy_that_renames_the_host_the_forwarded_name_counts(settings):
    settings.ALLOWED_HOSTS, settings.USE_X_FORWARDED_HOST = ["*"], True
    headers = [(b"host", b"10.0.0.5:8000"), (b"x-forwarded-host", b"studio.example"), (b"origin", b"https://studio.example")]

    socket = WebsocketCommunicator(application, f"/ws/training/{uuid.uuid4()}/", headers=headers)
    assert (await socket.connect())[0]
    await socket.disconnect()
