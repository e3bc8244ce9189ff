from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from django.test import Client

from audioldm_site.uploads.models import Upload


def b64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


class Tus:
    """A tus client on Django's own: no network, all of the site."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def send(self, method: str, address: str, body: bytes = b"", *, content_type: str = "application/offset+octet-stream", **headers: object):
        named = {"tus-resumable": "1.0.0", **{name.replace("_", "-"): value for name, value in headers.items()}}
        said = {name: str(value) for name, value in named.items() if value is not None}
        return self.client.generic(method, address, body, content_type=content_type, headers=said)

    def create(self, length: int | str, *, kind: str = "dataset", filename: str = "rain.zip", name: str = ""):
        metadata = f"kind {b64(kind)},filename {b64(filename)},name {b64(name)}"
        return self.send("POST", "/uploads/", upload_length=length, upload_metadata=metadata)

    def begin(self, length: int, **named: str) -> Upload:
        answer = self.create(length, **named)
        assert answer.status_code == 201, answer.content
        return Upload.objects.get(pk=answer["Location"].split("/")[2])

    def patch(self, upload: Upload, body: bytes, *, offset: int | str = 0, **headers: object):
        return self.send("PATCH", f"/uploads/{upload.pk}/", body, upload_offset=offset, **headers)

    def head(self, upload: Upload):
        return self.send("HEAD", f"/uploads/{upload.pk}/")

    def offset(self, upload: Upload) -> int:
        return int(self.head(upload)["Upload-Offset"])


@pytest.fixture
def tus(alice_client) -> Tus:
    return Tus(alice_client)


@pytest.fixture
def limits(settings) -> Callable[..., None]:
    def change(**values: float) -> None:
        settings.ENVIRONMENT = type(settings.ENVIRONMENT).read({name.upper(): str(value) for name, value in values.items()})

    return change
