"""Addresses of the sockets."""

from __future__ import annotations

from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path, re_path

from audioldm_site.jobs.consumers import NOT_FOUND, JobConsumer
from audioldm_site.jobs.lifecycle import job_models


def socket_urls() -> list:
    """`/ws/<kind>/<uuid>/` for every kind of job."""
    return [
        path(f"ws/{model.kind}/<uuid:job_id>/", type(f"{model.__name__}Consumer", (JobConsumer,), {"model": model}).as_asgi())
        for model in job_models()
    ]


class UnknownConsumer(AsyncWebsocketConsumer):
    """An address that is none: told apart from a server that is away."""

    async def connect(self) -> None:
        await self.accept()
        await self.close(NOT_FOUND)


unknown_socket = re_path(r"", UnknownConsumer.as_asgi())
