"""Every address of the site and every operation of the API, with the ids of real things, tried by everybody.

The list comes from the addresses themselves, so that a new one is tried without anybody thinking of it. That the walk leads somewhere is
shown by the owner, who gets in.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from channels.testing import WebsocketCommunicator
from django.db import transaction
from django.http.response import HttpResponseBase
from django.test import Client
from django.urls import URLPattern, get_resolver

from audioldm_site.accounts import tokens
from audioldm_site.accounts.models import ApiToken
from audioldm_site.api import auth
from audioldm_site.api.addresses import api as studio_api
from audioldm_site.asgi import application
from audioldm_site.jobs.lifecycle import job_models
from audioldm_site.uploads import services as uploads
from datasets_app.models import Dataset
from generation_app.models import Evaluation, Generation, Listening
from tests.factories import tone, wav_bytes
from training_app.models import Checkpoint, Conversion, TrainingRun

PAGE_METHODS = ("GET", "POST")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
REFUSALS = {401, 403, 404, 405, 410}
CANARY = "do-not-tell-7f3a"
MARK = '"><img src=x onerror=alert(7)>{{7*7}}</script>'
"""What a person may call a thing; it must never stand in a page as it is."""


@dataclass
class Things:
    """One of everything that alice owns, and the files in it."""

    by_kind: dict[str, list[str]] = field(default_factory=dict)
    numbers: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return list(dict.fromkeys(pk for ids in self.by_kind.values() for pk in ids))

    def meant_by(self, route: str) -> list[str]:
        """The ids that a route can be about; all where its words do not say."""
        place = route.removeprefix("api/v1/").split("/")
        return self.by_kind.get("/".join(place[:2])) or self.by_kind.get(place[0]) or self.ids


@dataclass
class Step:
    route: str
    method: str
    address: str
    answer: HttpResponseBase


def routes(patterns=None, before: str = "") -> Iterator[str]:
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        route = before + str(pattern.pattern)
        if isinstance(pattern, URLPattern):
            yield route
        else:
            yield from routes(pattern.url_patterns, route)


# The admin's own fallback and its autocompletion are regular expressions; both ask for staff themselves.
ROUTES = sorted({route for route in routes() if not re.search(r"[\^$?]", route)})
VARIABLE = re.compile(r"<(?:(\w+):)?(\w+)>")


def addresses(route: str, things: Things, *, ids: list[str] | None = None) -> Iterator[str]:
    """The route with every real value in every place: ids, numbers, paths."""
    ids = things.meant_by(route) if ids is None else ids
    match = VARIABLE.search(route)
    if not match:
        yield "/" + route
        return
    kind, name = match.groups()
    values = {"uuid": ids, "uuidstr": ids, "int": things.numbers, "path": things.paths}.get(kind, things.paths if name == "path" else ["a", "x", "internal", "finetune", *ids[:1]])
    for value in values:
        yield from addresses(route[: match.start()] + value + route[match.end() :], things, ids=ids)


@pytest.fixture
def things(alice, dataset, tmp_path, settings) -> Things:
    """Named as unkindly as the columns allow."""
    base = Checkpoint.objects.create(owner=alice, name=f"base {MARK}", family="audioldm2", format="diffusers", origin="imported", path="checkpoints/base", licence=MARK)
    run = TrainingRun(owner=alice, name=f"bells {MARK}", dataset_name=MARK, dataset=dataset, base_checkpoint=base, config={"max_train_steps": 10}, notes=MARK, tags=MARK)
    saved = run.folder / "checkpoints" / "global_step=000002"
    saved.mkdir(parents=True)
    (saved / "lora.safetensors").write_bytes(CANARY.encode())
    (run.folder / "samples").mkdir()
    (run.folder / "samples" / "a.wav").write_bytes(wav_bytes(tone(440, 0.2)))
    (run.folder / "log.txt").write_text(f"{CANARY} {MARK}\n")
    run.save()
    own = {"owner": alice, "run": run, "base": base, "method": "lora", "family": "audioldm2", "format": "run", "origin": "run"}
    checkpoint = Checkpoint.objects.create(**own, name=f"step 2 {MARK}", global_step=2, path=f"runs/{run.pk}/checkpoints/global_step=000002", sha256="0" * 64)
    Dataset.objects.filter(pk=dataset.pk).update(name=f"tones {MARK}", notes=MARK)
    dataset.clips.update(caption=f"a clip {MARK}", original_name=MARK)
    generation = Generation.objects.create(owner=alice, prompt=f"a bell {MARK}", checkpoint=base, config={"prompt": MARK}, status="succeeded", notes=MARK)
    generation.waveforms.create(index=0, seed=0, audio="0.wav", sha256="0" * 64, duration_s=0.2, sample_rate_hz=16_000)
    conversion = Conversion.objects.create(owner=alice, direction="export", name=f"out {MARK}", source=MARK, format="ckpt", config={"format": "ckpt", "dtype": "fp32"}, status="succeeded", checkpoint=checkpoint)
    export = settings.DATA_DIR / "exports" / str(conversion.pk) / "out.ckpt"
    export.parent.mkdir(parents=True)
    export.write_text(CANARY)
    Conversion.objects.filter(pk=conversion.pk).update(result=export.relative_to(settings.DATA_DIR).as_posix())
    compared = {"owner": alice, "checkpoint": checkpoint, "against": base}
    evaluation = Evaluation.objects.create(**compared, dataset=dataset, dataset_name=MARK, ears_name=MARK, config={}, status="failed", error_code="internal", error_detail=MARK)
    listening = Listening.objects.create(**compared, name=f"ears {MARK}", config={"prompts": [MARK] * 2, "audio_length_in_s": 0.2}, status="succeeded", pair_count=2)
    for job in (generation, conversion, evaluation, listening):
        for place in ("", "sounds/checkpoint", "pairs"):
            (job.folder / place).mkdir(parents=True, exist_ok=True)
            for name in ("0.wav", "0000.wav", "0000-0.wav", "0000-1.wav", "0001-0.wav", "0001-1.wav"):
                (job.folder / place / name).write_bytes(wav_bytes(tone(440, 0.2)))
    upload = uploads.create_upload(owner=alice, kind="dataset", filename=f"{MARK}.zip", length=10)
    ApiToken.objects.all().delete()
    token, _ = tokens.create_token(user=alice, name="laptop")
    runs, checkpoints, conversions = [str(run.pk)], [str(base.pk), str(checkpoint.pk)], [str(conversion.pk)]
    evaluations, listenings, generations = [str(evaluation.pk)], [str(listening.pk)], [str(generation.pk)]
    return Things(
        by_kind={
            "datasets": [str(dataset.pk)], "training": runs, "runs": runs, "checkpoints": checkpoints, "checkpoints/conversions": conversions, "conversions": conversions,
            "generation": generations, "generations": generations, "evaluation": evaluations, "evaluations": evaluations, "listening": listenings, "listenings": listenings,
            "uploads": [str(upload.pk)],
        },
        numbers=[str(dataset.clips.first().pk), str(token.pk), "0", "1"],
        paths=["samples/a.wav", "log.txt", "0.wav", "sounds/checkpoint/0000.wav", "checkpoints/global_step=000002/lora.safetensors"],
    )


@pytest.fixture(autouse=True)
def _no_rate(settings, monkeypatch) -> None:
    monkeypatch.setattr(auth, "rate", auth.Rate())
    settings.ENVIRONMENT = type(settings.ENVIRONMENT).read({"API_RATE_PER_MINUTE": "1000000"})


def session_of(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


def token_of(user) -> Client:
    text = tokens.create_token(user=user, name="walk", scope=ApiToken.Scope.WRITE)[1]
    return Client(headers={"Authorization": f"Bearer {text}"}, REMOTE_ADDR="203.0.113.9")


def asked(client: Client, method: str, address: str) -> HttpResponseBase:
    body = body_of(method, address) if address.startswith("/api/") else None
    more = {} if body is None else {"data": json.dumps(body), "content_type": "application/json"}
    return client.generic(method, address, headers={"Tus-Resumable": "1.0.0"}, **more)


def body_of(method: str, address: str) -> dict | None:
    """The least that an operation of the API takes, so that it is not refused for its shape before anybody asks who it is."""
    schema = studio_api.get_openapi_schema()
    for pattern, operations in schema["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", ".+", pattern), address) and (operation := operations.get(method.lower())):
            for content in operation.get("requestBody", {}).get("content", {}).values():
                return least(schema, content["schema"])
    return None


def least(schema: dict, part: dict):
    if "$ref" in part:
        part = schema["components"]["schemas"][part["$ref"].rpartition("/")[2]]
    if "enum" in part:
        return part["enum"][0]
    made = {"integer": 1, "number": 1.0, "boolean": True, "string": str(uuid.UUID(int=7)) if part.get("format") == "uuid" else "a", "array": []}
    if part.get("type") != "object":
        return made.get(part.get("type"))
    return {name: least(schema, part["properties"][name]) for name in part.get("required", [])}


def is_refused(answer: HttpResponseBase) -> bool:
    return answer.status_code in REFUSALS or (answer.status_code == 302 and "/login/" in answer.headers["Location"])


def content_of(answer: HttpResponseBase) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


OWN = [route for route in ROUTES if VARIABLE.search(route) and not route.startswith("admin/")]
"""Addresses of single things."""


NOT_REACHED = {"setup/<str:token>/", "evaluation/<uuid:pk>/report.csv", "listening/<uuid:pk>/revealed/<int:pair>-<int:subject>.wav"}
"""What is there only at the first start, after a report and after somebody's last answer: tests of their own ask for these."""


@pytest.fixture
def walk(things) -> Callable:
    def walk_with(client: Client, which: list[str], methods: tuple[str, ...] = METHODS) -> Iterator[Step]:
        for route in which:
            # A page asks for GET or POST; that it knows no other method shows at one address.
            some = methods if route.startswith(("api/", "uploads/")) else [method for method in methods if method in PAGE_METHODS]
            for place, address in enumerate(dict.fromkeys(addresses(route, things))):
                for method in methods if place == 0 else some:
                    yield Step(route, method, address, asked(client, method, address))

    return walk_with


def test_the_walk_meets_every_kind_of_thing():
    assert len(ROUTES) > 150
    tops = {route.split("/")[0] for route in OWN}
    assert {"datasets", "training", "checkpoints", "generation", "evaluation", "listening", "account", "uploads", "api", "setup"} <= tops


@pytest.mark.django_db
def test_the_owner_gets_what_the_walk_asks_for(walk, alice):
    """Else that others get nothing would prove nothing."""
    reached = dict.fromkeys(OWN, False)
    for method in ("GET", "PUT", "PATCH", "POST", "DELETE"):
        left = sorted((route for route, is_reached in reached.items() if not is_reached), key=lambda route: "delete" in route)
        with transaction.atomic():
            for step in walk(session_of(alice), left, (method,)):
                content_of(step.answer)
                reached[step.route] |= step.answer.status_code not in (403, 404, 405)
            transaction.set_rollback(True)
    assert {route for route, is_reached in reached.items() if not is_reached} == NOT_REACHED


@pytest.mark.django_db
@pytest.mark.parametrize("who", ["nobody", "a stranger", "a stranger's token", "nobody with a false token"])
def test_what_is_alices_opens_to_nobody_else(who, walk, charlie):
    client = {
        "nobody": lambda: Client(REMOTE_ADDR="203.0.113.9"),
        "a stranger": lambda: session_of(charlie),
        "a stranger's token": lambda: token_of(charlie),
        "nobody with a false token": lambda: Client(headers={"Authorization": "Bearer studio_" + "x" * 43}, REMOTE_ADDR="203.0.113.9"),
    }[who]()
    before = state()
    let_in = []
    for step in walk(client, OWN, PAGE_METHODS if who == "a stranger" else METHODS):
        is_harmless = step.address.startswith(("/api/v1/schemas/", "/api/v1/problems/")) and who.startswith("a stranger")
        if not is_refused(step.answer) and not is_harmless:
            let_in.append((step.method, step.address, step.answer.status_code))
        assert CANARY.encode() not in content_of(step.answer), (step.method, step.address)
    assert not let_in
    assert state() == before


@pytest.mark.django_db
def test_no_list_tells_a_stranger_of_alices_things(things, charlie):
    told = []
    for client in (session_of(charlie), token_of(charlie)):
        for route in ROUTES:
            if not VARIABLE.search(route) and not route.startswith("admin/"):
                content = content_of(asked(client, "GET", "/" + route)).decode(errors="replace")
                told += [(route, word) for word in (*things.ids, CANARY, "onerror", "alice") if word in content]
    assert not told


@pytest.mark.django_db
@pytest.mark.parametrize("who", ["nobody", "a stranger"])
def test_nobody_and_no_stranger_gets_into_the_administration(who, walk, charlie):
    client = session_of(charlie) if who == "a stranger" else Client(REMOTE_ADDR="203.0.113.9")
    let_in = []
    for step in walk(client, [route for route in ROUTES if route.startswith("admin/") and route not in ("admin/login/", "admin/logout/")], PAGE_METHODS):
        if not is_refused(step.answer):
            let_in.append((step.method, step.address, step.answer.status_code))
    assert not let_in


@pytest.mark.django_db
def test_nobody_changes_anything_by_a_session_without_its_csrf_token(things, alice):
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    before = state()
    passed = []
    for route in ROUTES:
        for address in itertools.islice(addresses(route, things), 1):
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                answer = asked(client, method, address)
                if answer.status_code not in (403, 404, 405):
                    passed.append((method, address, answer.status_code))
    assert not passed
    assert state() == before


@pytest.mark.django_db
def test_head_says_what_get_would_send(things, alice):
    odd = []
    client = session_of(alice)
    for route in ROUTES:
        if route.startswith(("admin/", "uploads/", "logout/")):  # tus has a HEAD of its own
            continue
        for address in dict.fromkeys(addresses(route, things)):
            got = asked(client, "GET", address)
            if got.status_code != 200:
                continue
            body = content_of(got)
            head = asked(client, "HEAD", address)
            same = all(head.headers.get(name) == got.headers.get(name) for name in ("Content-Type", "ETag", "Accept-Ranges", "Last-Modified"))
            # A page has its own CSRF mask and clock each time, of the same length or nearly so.
            length = head.headers.get("Content-Length")
            if head.status_code != 200 or not same or (got.streaming and int(length or -1) != len(body)):
                odd.append((address, head.status_code, length, len(body)))
    assert not odd


@pytest.mark.django_db
def test_no_name_reaches_a_page_as_it_is(things, alice, root):
    found = []
    for client, which in ((session_of(alice), ""), (session_of(root), "admin/")):
        for route in (route for route in ROUTES if route.startswith(which)):
            for address in dict.fromkeys(addresses(route, things)):
                answer = asked(client, "GET", address)
                if answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/html"):
                    content = content_of(answer).decode()
                    if "<img src=x" in content or "a bell 49" in content or f"{MARK[-12:]}" in content:
                        found.append(address)
    assert not found


def hostile_paths(outside: Path) -> list[str]:
    up = "../" * 12
    plain = [f"{up}{str(outside)[1:]}/canary.wav", f"{outside}/canary.wav", f"samples/{up}{str(outside)[1:]}/canary.wav", "../../../secret_key", "..", f"link/{outside.name}/canary.wav"]
    encoded = [quote(path, safe="") for path in plain] + [path.replace("../", "..%2f") for path in plain[:1]] + [path.replace("../", "..\\") for path in plain[:1]]
    return [*plain, *encoded, "%00", "samples/%00/../../x", "a" * 300]


@pytest.fixture
def touched(tmp_path) -> Iterator[tuple[Path, list[str]]]:
    """A folder that no request may reach, and every attempt to reach it: Python tells of each file it opens, lists, moves or removes."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary.wav").write_bytes(wav_bytes(tone(440, 0.2)) + CANARY.encode())
    (outside / "model.ckpt").write_text(CANARY)
    seen: list[str] = []
    watching = [True]

    def hook(event: str, arguments: tuple) -> None:
        if watching[0] and event.startswith(("open", "os.", "shutil.", "glob.")):
            for argument in arguments:
                if isinstance(argument, str | bytes) and str(outside) in str(Path(argument.decode(errors="replace") if isinstance(argument, bytes) else argument)):
                    seen.append(f"{event} {argument!r}")

    sys.addaudithook(hook)
    yield outside, seen
    watching[0] = False


@pytest.mark.django_db
def test_no_address_reads_or_writes_outside_the_data_folder(things, alice, root, touched, settings):
    outside, seen = touched
    (settings.DATA_DIR / "secret_key").write_text(CANARY)
    for folder in ("runs", "generations", "evaluations", "listenings", "conversions"):
        for job in (settings.DATA_DIR / folder).glob("*"):
            (job / "link").symlink_to(outside.parent)
    things.paths = hostile_paths(outside)
    told = []
    for client in (session_of(alice), session_of(root)):
        for route in ROUTES:
            if re.search(r"<path:|<str:|<\w+>", route) and not route.startswith("admin/"):
                for address in dict.fromkeys(addresses(route, things)):
                    answer = asked(client, "GET", address)
                    if CANARY.encode() in content_of(answer) or answer.status_code >= 500:
                        told.append((address, answer.status_code))
    assert not told
    assert not seen


def text_fields(schema: dict, place: dict) -> list[str]:
    """Names of a body's fields that take text."""
    if "$ref" in place:
        place = schema["components"]["schemas"][place["$ref"].rpartition("/")[2]]
    kinds = {name: [part, *part.get("anyOf", [])] for name, part in place.get("properties", {}).items()}
    return [name for name, parts in kinds.items() if any(part.get("type") in ("string", None) for part in parts)]


@pytest.mark.django_db
def test_no_field_of_the_api_reads_or_writes_outside_the_data_folder(things, alice, touched):
    outside, seen = touched
    client = token_of(alice)
    schema = studio_api.get_openapi_schema()
    values = [f"{outside}/model.ckpt", "../" * 12 + f"{str(outside)[1:]}/model.ckpt", str(outside), "../../secret_key", "..", f"file://{outside}/model.ckpt"]
    asked_for = 0
    for address, operations in schema["paths"].items():
        for method, operation in operations.items():
            bodies = [content["schema"] for content in operation.get("requestBody", {}).get("content", {}).values()]
            named = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]
            for name in {found for body in bodies for found in text_fields(schema, body)} | set(named):
                for value in values:
                    for pk in things.meant_by(address.strip("/")) if "{pk}" in address else [""]:
                        place = re.sub(r"\{\w+\}", "0", address.replace("{pk}", pk))
                        body = json.dumps({name: value, **({"dataset": things.by_kind["datasets"][0], "checkpoint": things.by_kind["checkpoints"][1]} if name not in ("dataset", "checkpoint") else {})})
                        answer = client.generic(method.upper(), place, body, content_type="application/json", query_params={name: value} if name in named else None)
                        assert answer.status_code < 500 or answer.status_code in (503, 507), (method, place, name, value)
                        asked_for += 1
    assert asked_for > 500
    assert not seen


@pytest.mark.django_db
def test_no_field_of_a_page_reads_or_writes_outside_the_data_folder(things, alice, touched):
    outside, seen = touched
    client = session_of(alice)
    names = ("upload", "incoming", "hub", "path", "file", "source", "destination", "next", "name", "checkpoint", "dataset", "format", "base", "tokenizers", "q", "weights")
    values = [f"{outside}/model.ckpt", "../" * 12 + f"{str(outside)[1:]}/model.ckpt"]
    failed = []
    for route in ROUTES:
        if route.startswith(("admin/", "logout/", "api/")) or "delete" in route or "discard" in route:
            continue
        for value in values:
            for address in dict.fromkeys(addresses(route, Things(by_kind=things.by_kind, numbers=things.numbers[:1], paths=things.paths[:1]))):
                form = dict.fromkeys(names, value)
                for answer in (client.get(address, form), client.post(address, form)):
                    if answer.status_code >= 500 and answer.status_code != 503:
                        failed.append((address, value, answer.status_code))
                    if answer.status_code == 302 and "login" in answer.headers["Location"]:
                        client = session_of(alice)
    assert not failed
    assert not seen


@pytest.mark.django_db(transaction=True)
async def test_no_socket_of_alices_opens_to_a_stranger(things, charlie):
    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost")]
    for model in job_models():
        for pk in (*things.ids, str(uuid.uuid4())):
            for user, code in ((charlie, 4404), (None, 4401)):
                socket = WebsocketCommunicator(application, f"/ws/{model.kind}/{pk}/", headers=[*headers, *await cookies(user)])
                assert (await socket.connect())[0]
                assert await socket.receive_output() == {"type": "websocket.close", "code": code}


async def cookies(user) -> list[tuple[bytes, bytes]]:
    if user is None:
        return []
    client = Client()
    await client.aforce_login(user)
    return [(b"cookie", f"sessionid={client.cookies['sessionid'].value}".encode())]


def state() -> dict[str, list]:
    """Every row that a stranger could have changed; who asked and when is not among them."""
    models = [Dataset, Checkpoint, *job_models(), uploads.Upload]
    return {model.__name__: list(model.objects.order_by("pk").values()) for model in models}
