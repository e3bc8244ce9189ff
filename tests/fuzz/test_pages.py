"""Forms, bodies and queries that nobody means to send: every page answers, and never with an error of the program."""

from __future__ import annotations

import json
import re
import uuid
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, get_resolver
from hypothesis import given
from hypothesis import strategies as st

from audioldm_site.accounts import tokens
from audioldm_site.accounts.models import ApiToken
from audioldm_site.api import auth
from audioldm_site.jobs.live import MAX_DIGITS, event_number
from audioldm_site.uploads import services as uploads
from generation_app.models import Generation
from gpu.config import FinetuneConfig, GenerateConfig
from tests.fuzz.cases import bounded, cases
from tests.site.test_live import Socket
from training_app.models import TrainingRun

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.filterwarnings("ignore::RuntimeWarning")]
LEFT_OUT = ("admin/", "logout", "__debug__", "static", "uploads/")
FIELDS = sorted(
    {parameter.name for config in (FinetuneConfig, GenerateConfig) for parameter in config.parameters()}
    | {"name", "notes", "tags", "dataset", "checkpoint", "base_checkpoint", "q", "page", "after", "next", "more_steps", "save", "prompt", "caption", "split", "seed", "format", "dtype"}
    | {"validation_share", "username", "password", "old_password", "new_password1", "scope", "days", "hub", "licence", "owner", "sort", "status", "step", "choice", "upload", "incoming", "preset"}
)
VALUES = (
    st.text(max_size=40)
    | st.integers(-(2**70), 2**70).map(str)
    | st.floats().map(str)
    | st.sampled_from(["", "on", "true", "null", "NaN", "1e400", "-0", "٣", "\0", "\ud800", "9" * 5000, "a" * 20_000, "<script>", "%00", "../../etc/passwd", "{}", "[]", '["a"]', "2026-13-45"])
)
FORMS = st.dictionaries(st.sampled_from(FIELDS), VALUES | st.lists(VALUES, max_size=3), max_size=6)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4), max_leaves=8)


def addresses(patterns=None, before: str = "") -> list[str]:
    """Every address of the site as its patterns say, with `{pk}` and the like for what varies."""
    found = []
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        route = before + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern))
        if route.startswith(LEFT_OUT) or "^" in route:
            continue
        found += [route] if isinstance(pattern, URLPattern) else addresses(pattern.url_patterns, route)
    return sorted(set(found))


@pytest.fixture
def things(alice, dataset, base_checkpoint) -> list[str]:
    run = TrainingRun(owner=alice, name="bells", dataset_name="bells", base_checkpoint=base_checkpoint, config={"max_train_steps": 10})
    run.folder.mkdir(parents=True)
    run.save()
    generation = Generation.objects.create(owner=alice, prompt="a bell", checkpoint=base_checkpoint, config={"prompt": "a bell"})
    return [str(thing.pk) for thing in (dataset, base_checkpoint, run, generation)]


def filled(draw, route: str, things: list[str]) -> str:
    """The address with real and made-up ids in it."""

    def value(match: re.Match) -> str:
        if match[1] in ("pk", "job_id"):
            return draw(st.sampled_from([*things, str(uuid.UUID(int=7))]))
        return draw(st.sampled_from(["1", "0", "9" * 18, "9" * 40]) if "id" in match[1] else st.sampled_from(["a", "0.wav", "../config.json", "checkpoints/../x", "a\nb", "%2e%2e/x", "x" * 3000]))

    return "/" + re.sub(r"\{(\w+)\}", value, route)


class Undone(Exception):
    pass


def ask(client: Client, method: str, address: str, *args, **kwargs):
    """What it answers; what it did to the database is taken back."""
    answers = []
    try:
        with transaction.atomic():
            answers.append(client.generic(method, address, *args, **kwargs))
            raise Undone
    except Undone:
        return answers[0]


def logged_in(user) -> Client:
    client = Client(raise_request_exception=True)
    client.force_login(user)
    return client


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_answer_whatever_a_form_holds(method, alice, things):
    routes = [route for route in addresses() if not route.startswith("api/")]
    client = logged_in(alice)

    @cases(60, 600)
    @given(st.data())
    @bounded
    def test_forms(data) -> None:
        address = filled(data.draw, data.draw(st.sampled_from(routes)), things)
        form = {name: value for name, value in data.draw(FORMS).items()}
        encoded = _urlencoded(form)
        if method == "GET":
            answer = ask(client, "GET", address, QUERY_STRING=encoded)
        else:
            answer = ask(client, "POST", address, encoded, content_type="application/x-www-form-urlencoded")
        assert answer.status_code < 500 or answer.status_code == 503, (address, form)
        client.force_login(alice) if answer.status_code == 302 and "login" in answer.headers["Location"] else None

    test_forms()


def test_the_api_answers_whatever_a_body_holds(alice, things, settings, monkeypatch):
    monkeypatch.setattr(auth, "rate", auth.Rate())
    settings.ENVIRONMENT = type(settings.ENVIRONMENT).read({"API_RATE_PER_MINUTE": "1000000"})
    _, token = tokens.create_token(user=alice, name="fuzz", scope=ApiToken.Scope.WRITE)
    routes = [route for route in addresses() if route.startswith("api/")]
    bodies = JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=100) | st.sampled_from([b"", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b'{"n":' + b"9" * 6000 + b"}", b'{"a":NaN}'])
    client = Client()

    @cases(60, 600)
    @given(st.data())
    @bounded
    def test_bodies(data) -> None:
        address = filled(data.draw, data.draw(st.sampled_from(routes)), things)
        kind = data.draw(st.sampled_from(["application/json"] * 4 + ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "nonsense"]))
        answer = ask(client, data.draw(st.sampled_from(["POST", "PATCH", "PUT", "DELETE"])), address, data.draw(bodies), content_type=kind, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code < 500 or answer.status_code == 503, address
        if answer.status_code >= 400 and answer.content:
            assert answer.headers["Content-Type"].startswith("application/problem+json"), (address, answer.content[:200])

    test_bodies()


@cases(100, 1000)
@given(st.text(max_size=30) | st.integers().map(str) | st.text("0123456789", min_size=1, max_size=40))
@bounded
def test_event_numbers(text) -> None:
    number = event_number(text)
    assert number == 0 or (number == int(text) and number < 10**MAX_DIGITS)


def test_sockets_answer_whatever_is_asked(alice, things, settings):
    settings.ALLOWED_HOSTS = ["testserver"]

    @cases(15, 200)
    @given(kind=st.sampled_from(["training", "generation", "conversion"]), which=st.sampled_from([*range(4), None]), query=st.binary(max_size=40) | st.sampled_from([b"after=-1", b"after=" + b"9" * 5000, b"after=1&after=x", b"after=%00", b"&&&=", b"after=\xff"]), said=st.text(min_size=1, max_size=20))
    @bounded
    def test_socket_queries(kind, which, query, said) -> None:
        pk = things[which] if which is not None else uuid.UUID(int=7)
        socket = Socket(pk, user=alice, kind=kind)
        socket.scope["query_string"] = query

        async def talk() -> None:
            assert (await socket.connect(timeout=10))[0]
            await socket.send_to(text_data=said)
            await socket.disconnect(timeout=10)

        async_to_sync(talk)()

    test_socket_queries()


TUS_HEADERS = {
    "Tus-Resumable": st.sampled_from(["1.0.0"] * 5 + ["0.2.2", ""]),
    "Upload-Offset": st.sampled_from(["0", "1", "5", "-1", "9" * 30, "٣", "x"]),
    "Upload-Length": st.sampled_from(["0", "1", "10", "-1", "1e3", "9" * 30, "99999999999999"]),
    "Upload-Metadata": st.text(max_size=40) | st.binary(max_size=30).map(lambda value: "kind ZGF0YXNldA==,filename " + b64encode(value).decode()),
    "Upload-Checksum": st.sampled_from(["sha256 AAAA", "sha1", "md5 x", "sha256 " + "A" * 5000]) | st.text(max_size=20),
    "X-HTTP-Method-Override": st.sampled_from(["PATCH", "DELETE", "TRACE", "é", "x" * 300]),
}


def test_uploads_answer_whatever_a_client_says(alice, settings, monkeypatch):
    monkeypatch.setattr(auth, "rate", auth.Rate())
    settings.ENVIRONMENT = type(settings.ENVIRONMENT).read({"API_RATE_PER_MINUTE": "1000000"})
    begun = uploads.create_upload(owner=alice, kind="dataset", filename="a.zip", length=10)
    client = logged_in(alice)

    @cases(100, 1500)
    @given(
        method=st.sampled_from(["POST", "PATCH", "HEAD", "GET", "DELETE", "OPTIONS", "PUT"]),
        place=st.sampled_from(["/uploads/", f"/uploads/{begun.pk}/", f"/uploads/{uuid.UUID(int=7)}/"]),
        headers=st.fixed_dictionaries({}, optional=TUS_HEADERS),
        body=st.binary(max_size=30),
        kind=st.sampled_from(["application/offset+octet-stream"] * 3 + ["text/plain", "multipart/form-data; boundary=x", ""]),
    )
    @bounded
    def test_uploads(method, place, headers, body, kind) -> None:
        answer = ask(client, method, place, body, content_type=kind, headers=headers)
        assert answer.status_code < 500 or answer.status_code == 507, (method, place, headers)
        if answer.status_code >= 400 and answer.content:
            assert answer.headers["Content-Type"].startswith("application/problem+json"), (place, answer.content[:200])
        begun.folder.mkdir(exist_ok=True)
        begun.part.touch()

    test_uploads()


def _urlencoded(form: dict[str, Any]) -> str:

    pairs = [(name, value) for name, values in form.items() for value in (values if isinstance(values, list) else [values])]
    return "&".join(f"{quote(name)}={quote(value, errors='surrogatepass')}" for name, value in pairs)
