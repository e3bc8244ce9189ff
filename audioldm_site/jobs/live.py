"""From rows to sockets: one look at the database for everybody who watches, in each web process.

A thread of its own looks every `POLL_S` while somebody is subscribed. With SQLite it first asks `PRAGMA data_version`, which costs
microseconds and tells whether anybody wrote at all. Events travel in order and carry their number; a subscriber that finds a gap
between what it sent and what came reads the missing ones itself, so a slow one is never waited for and never misses any.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection

from audioldm_site.jobs.models import Job

log = logging.getLogger(__name__)

POLL_S = 0.02
POLL_POSTGRES_S = 0.05
CHUNK = 500
"""Events in one read, and in one hand-over to a subscriber."""
BATCHES_WAITING = 8
"""How far a subscriber may fall behind before it reads for itself."""
MESSAGE_VERSION = 1
MAX_DIGITS = 18
"""Below 2**63; and int() raises for thousands of digits."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One job that somebody watches."""

    model: type[Job]
    job_id: UUID


@dataclass(frozen=True, kw_only=True)
class Message:
    """An event as text, made once for all who get it."""

    seq: int
    text: str


class Feed:
    """The tail of the event tables in one event loop."""

    def __init__(self) -> None:
        self._subscribers: dict[Topic, set[asyncio.Queue]] = defaultdict(set)
        self._heads: dict[Topic, int] = {}
        self._task: asyncio.Task | None = None
        # The thread's own connection: SQLite's data_version tells only of what *other* connections wrote.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="live")
        self._version: int | None = None

    async def messages(self, topic: Topic, *, after: int) -> AsyncIterator[list[Message]]:
        """The job's events from number `after + 1` on, in order, without gap or repetition, for ever."""
        inbox: asyncio.Queue[list[Message]] = asyncio.Queue(maxsize=BATCHES_WAITING)
        self._join(topic, inbox)
        try:
            while True:
                while batch := await self._call(_read, topic, after):
                    after = batch[-1].seq
                    yield batch
                complete = True
                while complete:
                    batch = [message for message in await inbox.get() if message.seq > after]
                    complete = not batch or batch[0].seq == after + 1
                    if batch and complete:
                        after = batch[-1].seq
                        yield batch
        finally:
            self._leave(topic, inbox)

    async def forget_connection(self) -> None:
        """Close the thread's connection; the next look opens another."""
        await self._call(lambda: connection.close())

    def _join(self, topic: Topic, inbox: asyncio.Queue) -> None:
        self._subscribers[topic].add(inbox)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tail())

    def _leave(self, topic: Topic, inbox: asyncio.Queue) -> None:
        self._subscribers[topic].discard(inbox)
        if not self._subscribers[topic]:
            del self._subscribers[topic]
            self._heads.pop(topic, None)

    async def _tail(self) -> None:
        pause_s = POLL_S if connection.vendor == "sqlite" else POLL_POSTGRES_S
        while self._subscribers:
            try:
                for topic, head, batch in await self._call(self._look, dict(self._heads), list(self._subscribers)):
                    if topic in self._subscribers:
                        self._heads[topic] = head
                        self._hand_over(topic, batch)
            except Exception:
                # Mostly a database that is away for a moment; without this task nobody would be told anything any more.
                log.exception("the look at the event tables failed; looking again")
                await self.forget_connection()
                await asyncio.sleep(1.0)
            await asyncio.sleep(pause_s)

    def _hand_over(self, topic: Topic, batch: list[Message]) -> None:
        for inbox in self._subscribers[topic] if batch else ():
            if inbox.full():
                # It finds the gap and reads for itself.
                while not inbox.empty():
                    inbox.get_nowait()
            inbox.put_nowait(batch)

    async def _call(self, function, /, *args) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _look(self, heads: dict[Topic, int], topics: list[Topic]) -> list[tuple[Topic, int, list[Message]]]:
        """What is new for each topic, at most `CHUNK` events, and its newest number. In the feed's thread."""
        version = _data_version()
        unknown = [topic for topic in topics if topic not in heads]
        if version is not None and version == self._version and not unknown:
            return []
        found = []
        complete = True
        for topic, last_seq in _last_seqs(topics):
            # A new topic's subscribers read their own past; the tail starts at its end.
            head = heads.get(topic, max(0, last_seq - 1))
            batch = _read(topic, head) if last_seq > head else []
            head = batch[-1].seq if batch else head
            complete &= head >= last_seq
            found.append((topic, head, batch))
        # Asked before reading, kept only when all was read: nothing that is written meanwhile is overlooked.
        self._version = version if complete else None
        return found


def _data_version() -> int | None:
    """SQLite's counter of foreign writes; None elsewhere."""
    if connection.vendor != "sqlite":
        return None
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA data_version")
        return cursor.fetchone()[0]


def _last_seqs(topics: Iterable[Topic]) -> list[tuple[Topic, int]]:
    by_model: dict[type[Job], list[UUID]] = defaultdict(list)
    for topic in topics:
        by_model[topic.model].append(topic.job_id)
    return [
        (Topic(model=model, job_id=job_id), last_seq)
        for model, ids in by_model.items()
        for job_id, last_seq in model.objects.filter(pk__in=ids).values_list("pk", "last_seq")
    ]


def _read(topic: Topic, after: int) -> list[Message]:
    events = topic.model(pk=topic.job_id).events.filter(seq__gt=after).order_by("seq")[:CHUNK]
    return [
        Message(seq=event.seq, text=json.dumps(_with_job(topic, event.as_message()), ensure_ascii=False, separators=(",", ":")))
        for event in events
    ]


def _with_job(topic: Topic, message: dict) -> dict:
    return {"v": MESSAGE_VERSION, "job": topic.model.kind, "id": str(topic.job_id), **message}


def event_number(text: str) -> int:
    """The number in `?after=N`; 0 for what is none, or more than a column holds."""
    return int(text) if len(text) <= MAX_DIGITS and text.isascii() and text.isdigit() else 0


_feeds: dict[asyncio.AbstractEventLoop, Feed] = {}


def feed() -> Feed:
    """This event loop's feed."""
    loop = asyncio.get_running_loop()
    for stale in [other for other in _feeds if other.is_closed()]:
        del _feeds[stale]
    return _feeds.setdefault(loop, Feed())
