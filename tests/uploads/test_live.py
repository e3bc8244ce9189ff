"""The real web process: what reaches the disk when it is killed, and what it holds in memory."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from audioldm_site.accounts.tokens import create_token
from audioldm_site.uploads.models import Upload
from tests.faults.conftest import ROOT, environment, wait_for  # noqa: F401 (a fixture)
from tests.uploads.conftest import b64

pytestmark = [pytest.mark.faults, pytest.mark.django_db(transaction=True)]

MIB = 1024**2


class Web:
    def __init__(self, env: dict[str, str], token: str, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.env, self.token, self.log = {**env, "PORT": str(self.port)}, token, log
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "audioldm_site.web"], cwd=ROOT, env=self.env, stdout=log, stderr=log)
        wait_for(lambda: self.process.poll() is not None or self.is_open(), seconds=60)
        assert self.process.poll() is None, self.log.read_text()

    def is_open(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def begin(self, method: str, path: str, *, length: int, token: bool = True, **headers: object) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path)
        named = {"Tus-Resumable": "1.0.0", "Content-Length": length, **({"Authorization": f"Bearer {self.token}"} if token else {})}
        for name, value in {**named, **{name.replace("_", "-"): value for name, value in headers.items()}}.items():
            connection.putheader(name, str(value))
        connection.endheaders()
        return connection

    def ask(self, method: str, path: str, **headers: object) -> http.client.HTTPResponse:
        answer = self.begin(method, path, length=0, **headers).getresponse()
        answer.read()
        return answer

    def new(self, length: int) -> str:
        metadata = f"kind {b64('dataset')},filename {b64('a.zip')}"
        return self.ask("POST", "/uploads/", Upload_Length=length, Upload_Metadata=metadata).headers["Location"]

    def patch(self, address: str, *, at: int, length: int, **named) -> http.client.HTTPConnection:
        return self.begin("PATCH", address, length=length, Upload_Offset=at, Content_Type="application/offset+octet-stream", **named)

    def offset(self, address: str) -> int:
        return int(self.ask("HEAD", address).headers["Upload-Offset"])

    @property
    def memory(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss


@pytest.fixture
def web(environment, alice, tmp_path):  # noqa: F811
    token = create_token(user=alice, name="x", scope="write")[1]
    web = Web(environment, token, tmp_path / "web.log")
    yield web
    web.process.kill()
    web.process.wait()
    print(web.log.read_text())


def test_a_web_process_killed_in_the_middle_loses_nothing_that_it_promised(web):
    content = os.urandom(40 * MIB)
    address = web.new(len(content))
    connection = web.patch(address, at=0, length=len(content))
    connection.send(content[: 34 * MIB])
    upload = Upload.objects.get()
    wait_for(lambda: Upload.objects.get().offset >= 32 * MIB)  # synced; more is on its way

    web.process.send_signal(signal.SIGKILL)
    web.process.wait()
    print(web.log.read_text())
    web.start()

    at = web.offset(address)
    assert 32 * MIB <= at <= 34 * MIB
    rest = web.patch(address, at=at, length=len(content) - at)
    rest.send(content[at:])
    assert rest.getresponse().status == 204
    source = settings.DATA_DIR / "uploads" / str(upload.pk) / "source"
    assert hashlib.sha256(source.read_bytes()).digest() == hashlib.sha256(content).digest()


def test_of_a_broken_connection_every_byte_is_kept_and_a_second_one_waits_its_turn(web):
    address = web.new(10 * MIB)
    first = web.patch(address, at=0, length=10 * MIB)
    first.send(b"x" * 1000)
    wait_for(lambda: (Upload.objects.get().folder / "lock").exists())
    wait_for(lambda: Upload.objects.get().part.stat().st_size == 1000)
    second = web.patch(address, at=0, length=5)
    second.send(b"yyyyy")
    assert second.getresponse().status == 423
    first.close()
    wait_for(lambda: web.offset(address) == 1000)


def test_a_stop_of_the_web_process_keeps_what_has_come(web):
    address = web.new(10 * MIB)
    connection = web.patch(address, at=0, length=10 * MIB)
    connection.send(b"x" * 1000)
    wait_for(lambda: Upload.objects.get().part.stat().st_size == 1000)
    web.process.terminate()
    assert web.process.wait(10) == 0
    assert Upload.objects.get().offset == 1000
    connection.close()


def test_a_refused_upload_is_answered_and_the_connection_goes_on(web):
    connection = web.patch(web.new(10), at=0, length=2 * MIB, token=False)
    connection.send(b"x" * 2 * MIB)
    answer = connection.getresponse()
    assert (answer.status, b"not_logged_in" in answer.read()) == (401, True)
    connection.request("GET", "/health/live")
    assert connection.getresponse().status == 200


def test_nobody_fills_the_memory_or_the_disk(web):
    address, before = web.new(10), web.memory
    block, sent = b"x" * MIB, 0
    connection = web.patch(address, at=0, length=300 * MIB, token=False)
    with contextlib.suppress(OSError):
        for _ in range(300):
            connection.send(block)
            sent += 1
    assert web.memory - before < 20 * MIB
    assert sum(file.stat().st_size for file in settings.DATA_DIR.glob("uploads/*")) == 0
    assert sent < 300


def test_after_an_upload_the_same_connection_answers_whatever_is_asked(web):
    # Browsers keep their connections: the pages and scripts that follow an upload come over the one that carried it.
    connection = web.patch(web.new(60 * MIB), at=0, length=40 * MIB)
    connection.sock.settimeout(20)
    block = b"x" * MIB
    for _ in range(40):
        connection.send(block)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 204
    for path in ("/static/audioldm_site/js/format.js", "/login/", "/static/audioldm_site/js/live.js"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, path
