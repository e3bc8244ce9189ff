"""The sockets of job pages. Server to client only: commands are POSTs, so that CSRF protection holds for them."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import ClassVar
from urllib.parse import parse_qs

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth import get_user_model

from audioldm_site.jobs.live import Topic, event_number, feed
from audioldm_site.jobs.models import Job

log = logging.getLogger(__name__)

NOT_LOGGED_IN, NOT_FOUND, INTERNAL_ERROR = 4401, 4404, 1011
ACCESS_AGAIN_EVERY_S = 30.0


class JobConsumer(AsyncWebsocketConsumer):
    """One job's events after number N (`?after=N`), then those to come."""

    model: ClassVar[type[Job]]

    async def connect(self) -> None:
        # Accepted before it is refused: else a browser cannot read the code.
        await self.accept()
        self._sender: asyncio.Task | None = None
        user = self.scope["user"]
        if not user.is_authenticated:
            await self.close(NOT_LOGGED_IN)
        elif not await self._may_see():
            await self.close(NOT_FOUND)
        else:
            self._sender = asyncio.create_task(self._send_events())

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """A client has nothing to say."""

    async def disconnect(self, code: int) -> None:
        if getattr(self, "_sender", None):
            self._sender.cancel()

    async def _send_events(self) -> None:
        topic = Topic(model=self.model, job_id=self.scope["url_route"]["kwargs"]["job_id"])
        checked_at = time.monotonic()
        try:
            async with aclosing(feed().messages(topic, after=self._after())) as batches:
                async for batch in batches:
                    if time.monotonic() - checked_at > ACCESS_AGAIN_EVERY_S:
                        checked_at = time.monotonic()
                        if not await self._may_see():
                            await self.close(NOT_FOUND)
                            return
                    for message in batch:
                        await self.send(text_data=message.text)
        except Exception:
            log.exception("the socket of %s %s failed", self.model.kind, topic.job_id)
            # The page connects again and asks for what it lacks.
            await self.close(INTERNAL_ERROR)

    def _after(self) -> int:
        return event_number(parse_qs(self.scope["query_string"].decode("latin-1")).get("after", ["0"])[0])

    @database_sync_to_async
    def _may_see(self) -> bool:
        """Asked again while the socket is open: accounts are closed and jobs deleted."""
        user = get_user_model().objects.filter(pk=self.scope["user"].pk, is_active=True).first()
        return user is not None and self.model.objects.visible_to(user).filter(pk=self.scope["url_route"]["kwargs"]["job_id"]).exists()
