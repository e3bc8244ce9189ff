"""A page's socket: every event once, in order, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.utils import timezone

from audioldm_site.asgi import application
from audioldm_site.jobs import live
from audioldm_site.jobs.live import Feed, Topic, feed
from training_app.models import TrainingEvent, TrainingRun

pytestmark = pytest.mark.django_db(transaction=True)
ORIGIN = "http://testserver"


@pytest.fixture(autouse=True)
def _testserver_is_a_name_of_ours(settings):
    settings.ALLOWED_HOSTS = ["testserver"]


def add_events(run: TrainingRun, count: int, *, size: int = 0) -> None:
    """Record `count` further events as a supervisor would: rows and `last_seq` at once."""
    last = TrainingRun.objects.values_list("last_seq", flat=True).get(pk=run.pk)
    now = timezone.now()
    TrainingEvent.objects.bulk_create(
        [TrainingEvent(job=run, seq=seq, attempt=1, type="progress", at=now, data={"step": seq, "filler": "x" * size}) for seq in range(last + 1, last + count + 1)],
        batch_size=5000,
    )
    TrainingRun.objects.filter(pk=run.pk).update(last_seq=last + count)


add_events_async = sync_to_async(add_events)


class Socket(WebsocketCommunicator):
    def __init__(self, run_id, *, user=None, after: int | None = None, origin: str | None = ORIGIN, host: str = "testserver", kind: str = "training"):
        headers = [(b"host", host.encode())]
        if origin:
            headers.append((b"origin", origin.encode()))
        if user:
            client = Client()
            client.force_login(user)
            headers.append((b"cookie", f"{settings.SESSION_COOKIE_NAME}={client.session.session_key}".encode()))
        query = "" if after is None else f"?after={after}"
        super().__init__(application, f"/ws/{kind}/{run_id}/{query}", headers=headers)

    async def messages(self, count: int) -> list[dict]:
        return [json.loads(await self.receive_from(timeout=10)) for _ in range(count)]

    async def close_code(self) -> int:
        assert (await self.connect())[0]
        return (await self.receive_output(timeout=5))["code"]


@pytest.fixture
def socket(run, alice):
    return lambda **options: Socket(run.pk, user=alice, **options)


@pytest.fixture(autouse=True)
async def _threads_let_go_of_the_database():
    yield
    await feed().forget_connection()


async def test_the_past_is_sent_first(run, socket):
    await add_events_async(run, 3)
    page = await sync_to_async(socket)()
    await page.connect()

    messages = await page.messages(3)

    assert [message["seq"] for message in messages] == [1, 2, 3]
    assert messages[0] == {**messages[0], "v": 1, "job": "training", "id": str(run.pk), "attempt": 1, "type": "progress"}
    assert messages[0]["data"]["step"] == 1
    await page.disconnect()


async def test_a_page_continues_where_it_was_rendered(run, socket):
    await add_events_async(run, 5)
    page = await sync_to_async(socket)(after=3)
    await page.connect()

    assert [message["seq"] for message in await page.messages(2)] == [4, 5]
    assert await page.receive_nothing(timeout=0.3)
    await page.disconnect()


async def test_what_happens_now_arrives_at_once(run, socket):
    page = await sync_to_async(socket)(after=0)
    await page.connect()
    await asyncio.sleep(0.2)

    await add_events_async(run, 2)
    sent = asyncio.get_running_loop().time()
    messages = await page.messages(2)

    assert [message["seq"] for message in messages] == [1, 2]
    assert asyncio.get_running_loop().time() - sent < 1
    await page.disconnect()


async def test_two_pages_get_the_same(run, socket):
    pages = [await sync_to_async(socket)(), await sync_to_async(socket)()]
    for page in pages:
        await page.connect()
    for _ in range(5):
        await add_events_async(run, 4)

    for page in pages:
        assert [message["seq"] for message in await page.messages(20)] == list(range(1, 21))
        await page.disconnect()


async def test_a_reader_that_falls_behind_misses_nothing(run):
    topic = Topic(model=TrainingRun, job_id=run.pk)
    own_feed = feed()
    messages = own_feed.messages(topic, after=0)
    await add_events_async(run, 1)
    seqs = [message.seq for message in await anext(messages)]

    for _ in range(live.BATCHES_WAITING + 5):
        await add_events_async(run, 3)
        await asyncio.sleep(2 * live.POLL_S)
    total = 1 + 3 * (live.BATCHES_WAITING + 5)
    while seqs[-1] < total:
        seqs += [message.seq for message in await asyncio.wait_for(anext(messages), 5)]

    assert seqs == list(range(1, total + 1))
    await messages.aclose()


async def test_a_long_past_is_read_in_pieces(run):
    await add_events_async(run, 3 * live.CHUNK + 7)
    topic = Topic(model=TrainingRun, job_id=run.pk)
    seqs: list[int] = []

    async for batch in (messages := feed().messages(topic, after=0)):
        assert len(batch) <= live.CHUNK
        seqs += [message.seq for message in batch]
        if len(seqs) == 3 * live.CHUNK + 7:
            break
    await messages.aclose()

    assert seqs == list(range(1, 3 * live.CHUNK + 8))


async def test_nobody_looks_while_nobody_watches(run):
    own_feed = Feed()
    messages = own_feed.messages(Topic(model=TrainingRun, job_id=run.pk), after=0)
    await add_events_async(run, 1)
    await anext(messages)
    assert not own_feed._task.done()

    await messages.aclose()
    await asyncio.sleep(4 * live.POLL_S)

    assert own_feed._task.done()
    await own_feed.forget_connection()


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL has no such counter")
async def test_the_tables_are_only_read_when_something_was_written(run, monkeypatch):
    looks = []
    monkeypatch.setattr(live, "_last_seqs", lambda topics, original=live._last_seqs: looks.append(1) or original(topics))
    own_feed = Feed()
    messages = own_feed.messages(Topic(model=TrainingRun, job_id=run.pk), after=0)
    await add_events_async(run, 1)
    await anext(messages)
    await asyncio.sleep(4 * live.POLL_S)
    looks.clear()

    await asyncio.sleep(10 * live.POLL_S)

    assert looks == []
    await messages.aclose()
    await own_feed.forget_connection()


# --- who may listen


async def test_a_stranger_learns_nothing(run, charlie):
    page = await sync_to_async(Socket)(run.pk, user=charlie)
    assert await page.close_code() == 4404


async def test_a_colleague_of_staff_may_watch(run, root):
    await add_events_async(run, 1)
    page = await sync_to_async(Socket)(run.pk, user=root)
    await page.connect()
    assert (await page.messages(1))[0]["seq"] == 1
    await page.disconnect()


async def test_an_unknown_job_is_not_found(run, alice):
    page = await sync_to_async(Socket)(uuid.uuid4(), user=alice)
    assert await page.close_code() == 4404


async def test_a_job_of_another_kind_is_not_found(run, alice):
    page = await sync_to_async(Socket)(run.pk, user=alice, kind="generation")
    assert await page.close_code() == 4404


async def test_an_unknown_address_is_not_found(run, alice):
    page = await sync_to_async(Socket)(run.pk, user=alice, kind="cooking")
    assert await page.close_code() == 4404


async def test_nobody_listens_without_a_login(run):
    page = await sync_to_async(Socket)(run.pk)
    assert await page.close_code() == 4401


async def test_a_socket_closes_when_the_account_is_closed(run, alice, socket, monkeypatch):
    monkeypatch.setattr("audioldm_site.jobs.consumers.ACCESS_AGAIN_EVERY_S", 0.0)
    await add_events_async(run, 1)
    page = await sync_to_async(socket)(after=1)
    await page.connect()
    await sync_to_async(get_user_model().objects.filter(pk=alice.pk).update)(is_active=False)

    await add_events_async(run, 1)

    assert (await page.receive_output(timeout=5))["code"] == 4404


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "testserver"),
        ("http://evil.example", "testserver"),
        ("null", "testserver"),
        ("http://testserver:81", "testserver"),
        ("http://evil.example", "evil.example"),
        ("http://[", "testserver"),
    ],
)
async def test_pages_of_others_open_no_socket(run, socket, origin, host):
    page = await sync_to_async(socket)(origin=origin, host=host)
    assert not (await page.connect())[0]


async def test_any_name_still_means_the_same_origin(run, socket, settings):
    settings.ALLOWED_HOSTS = ["*"]
    page = await sync_to_async(socket)(origin="http://evil.example", host="studio.example")
    assert not (await page.connect())[0]
    page = await sync_to_async(socket)(origin="https://studio.example", host="studio.example")
    assert (await page.connect())[0]
    await page.disconnect()


async def test_a_trusted_origin_may_differ_from_the_host(run, socket, settings):
    settings.CSRF_TRUSTED_ORIGINS = ["https://pod-8000.proxy.example"]
    page = await sync_to_async(socket)(origin="https://pod-8000.proxy.example", host="testserver")
    assert (await page.connect())[0]
    await page.disconnect()
