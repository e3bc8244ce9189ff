"""The web process: Daphne, with what it lacks for large files and slow readers. `python -m audioldm_site.web`

- Daphne parses a multipart body in memory before Django or the login sees it (16.9 GB for an upload of 2 GB, from anybody; django/daphne
  issue 483). Here bodies are spooled to disk, read by Django piece by piece, and beyond `ANONYMOUS_BODY_BYTES` only taken from a session
  that is logged in.
- A piece of an upload (`audioldm_site.uploads`) is not stored at all before its view has judged the request: the view reads it from the
  socket, which waits meanwhile.
- A response is written no faster than its reader takes it: a download, or the past of a long job, does not pile up in memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import threading
from contextvars import Context
from functools import partial
from http.cookies import SimpleCookie
from io import BytesIO

# Before anything else of Twisted: it installs the reactor.
from daphne import server as daphne_server  # isort: skip
from daphne.endpoints import build_endpoint_description_strings
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import defer, reactor

log = logging.getLogger(__name__)

ANONYMOUS_BODY_BYTES = 64 * 1024 * 1024
BODY_BYTES = 16 * 1024**3
CHUNK_BYTES = 64 * 1024
INFLOW_BYTES = 1024 * 1024
"""Of an upload, read from the socket and not yet taken by its view."""
DRAINED_BYTES = 32 * 1024 * 1024
"""Of a refused upload: read and thrown away, so that its client gets to see the answer; with more to come it is cut off."""
UPLOAD_TYPE = b"application/offset+octet-stream"
PING_EVERY_S, PING_TIMEOUT_S = 20, 30
"""Proxies cut connections that are silent, some after 100 s."""
CLOSE_S = 3.0
SERVE_PID = "SERVE_PID"
INFLOW = "studio.inflow"
"""Where in a scope the body of an upload is."""


class Gate:
    """Told by the transport whether its buffer has room (Twisted's push producer); `handle_reply` waits at it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.wait = self._open.wait

    def pauseProducing(self) -> None:
        self._open.clear()

    def resumeProducing(self) -> None:
        self._open.set()

    def stopProducing(self) -> None:
        self._open.set()


class Inflow:
    """A body on its way from the socket (the loop's thread) to a view (a thread of its own), which holds the socket back."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._loop = asyncio.get_event_loop()
        self._changed = threading.Condition()
        self._pieces = bytearray()
        self._is_whole = self._is_lost = self._is_unwanted = self._is_paused = False
        self._dropped = 0

    def put(self, data: bytes) -> bool:
        """Take what the socket gave. False when it is more than anybody wants to throw away."""
        with self._changed:
            if self._is_unwanted:
                self._dropped += len(data)
                return self._dropped <= DRAINED_BYTES
            self._pieces += data
            if len(self._pieces) >= INFLOW_BYTES and not self._is_paused:
                self._is_paused = True
                self._request.channel._networkProducer.pauseProducing()
            self._changed.notify()
            return True

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any; b"" at the end.

        Raises:
            BodyLost: the connection ended before that.
        """
        from audioldm_site.uploads.services import BodyLost

        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._is_whole or self._is_lost)
            if not self._pieces and self._is_lost:
                raise BodyLost
            piece = bytes(self._pieces[:size])
            del self._pieces[:size]
            if self._is_paused and len(self._pieces) < INFLOW_BYTES // 2:
                self._is_paused = False
                self._loop.call_soon_threadsafe(self._request.go_on_reading)
        return piece

    def end(self) -> None:
        with self._changed:
            self._is_whole = True
            self._changed.notify()

    def lose(self) -> None:
        with self._changed:
            self._is_lost = not self._is_whole
            self._changed.notify()

    def is_drained(self) -> bool:
        """Whether the whole body has come. When not, the rest is thrown away from now on."""
        with self._changed:
            if not self._is_whole:
                self._is_unwanted = True
                self._pieces.clear()
        self._request.go_on_reading()
        return self._is_whole


class Request(WebRequest):
    """A request whose body stays on disk and whose response waits for its reader."""

    gate: Gate | None = None
    body = None
    inflow: Inflow | None = None
    is_answered = False

    def __init__(self, *args, **kwargs) -> None:
        # Twisted would parse forms, in memory, for nobody: Django does.
        super().__init__(*args, **kwargs, parsePOSTFormSubmission=False)

    def gotLength(self, length: int | None) -> None:
        """The headers are there: decide whether to take the body."""
        self._taken = 0
        self._limit = ANONYMOUS_BODY_BYTES
        super().gotLength(length)
        kinds = self.requestHeaders.getRawHeaders(b"content-type", [b""])
        if kinds[0].partition(b";")[0].strip().lower() == UPLOAD_TYPE:
            self.inflow = Inflow(self)
            super().requestReceived(self.channel._command, self.channel._path, self.channel._version)
        elif length is None or length > ANONYMOUS_BODY_BYTES:
            self._refused = False
            self.channel._networkProducer.pauseProducing()
            known = asyncio.ensure_future(self._is_logged_in(), loop=asyncio.get_event_loop())
            known.add_done_callback(lambda done: self._decide(length, is_logged_in=not done.exception() and done.result()))

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is there, whole."""
        if self.inflow is None:
            super().requestReceived(command, path, version)
            return
        self.inflow.end()
        if self.is_answered:
            self.finish()

    def handleContentChunk(self, data: bytes) -> None:
        if self.inflow is not None:
            if not self.inflow.put(data) and self.channel is not None:
                self.channel.loseConnection()
            return
        self._taken += len(data)
        if self._taken <= max(self._limit, ANONYMOUS_BODY_BYTES):
            super().handleContentChunk(data)
        else:
            self._refuse()

    def process(self):
        """Daphne copies the whole body into a queue here; it finds an empty one, and `body` is read by `Server`."""
        self.body, self.content = self.content, BytesIO()
        return super().process()

    def handle_reply(self, message: dict) -> None:
        if message.get("type") == "http.response.start" and self.channel is not None and self.gate is None:
            self.gate = Gate()
            self.registerProducer(self.gate, True)
        super().handle_reply(message)

    def go_on_reading(self) -> None:
        """Read from the socket again.

        In a context of its own: the loop keeps the caller's for this connection, and in a view's context every later request would wait
        for the thread of that view, which has ended.
        """
        if self.channel is not None:
            Context().run(self.channel._networkProducer.resumeProducing)

    def finish(self) -> None:
        # Twisted would read what is still to come of the body as the next request.
        self.is_answered = True
        if self.inflow is not None and not self.inflow.is_drained():
            return
        if self.gate is not None:
            self.unregisterProducer()
        super().finish()
        self._close_body()

    def connectionLost(self, reason) -> None:
        if self.gate is not None:
            self.gate.stopProducing()
        if self.inflow is not None:
            self.inflow.lose()
        super().connectionLost(reason)
        self._close_body()

    def _close_body(self) -> None:
        if self.body is not None:
            self.body.close()

    async def _is_logged_in(self) -> bool:
        cookies = SimpleCookie(b"; ".join(self.requestHeaders.getRawHeaders(b"cookie", [])).decode("latin-1"))
        from django.conf import settings

        header = b"".join(self.requestHeaders.getRawHeaders(b"authorization", [])[:1]).decode("latin-1")
        if header:
            return await asyncio.to_thread(_has_token, header)
        cookie = cookies.get(settings.SESSION_COOKIE_NAME)
        return cookie is not None and await asyncio.to_thread(_has_user, cookie.value)

    def _decide(self, length: int | None, *, is_logged_in: bool) -> None:
        if is_logged_in and (length or 0) <= BODY_BYTES:
            self._limit = BODY_BYTES
        elif length is not None:
            self._refuse()
        self.go_on_reading()

    def _refuse(self) -> None:
        if self.channel is not None:
            self.channel.transport.write(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.channel.loseConnection()


class WebSocket(WebSocketProtocol):
    """A socket to which no more is written than its reader takes."""

    gate: Gate | None = None

    def onOpen(self) -> None:
        super().onOpen()
        self.gate = Gate()
        # The HTTP channel is still registered, from before the upgrade.
        self.transport.unregisterProducer()
        self.transport.registerProducer(self.gate, True)


class SpoolingHTTPFactory(HTTPFactory):
    def buildProtocol(self, addr):
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = Request
        return protocol


class PacedWebSocketFactory(WebSocketFactory):
    protocol = WebSocket


class Server(daphne_server.Server):
    def create_application(self, protocol, scope: dict) -> asyncio.Queue | None:
        """As Daphne's, but an HTTP body comes from its file, a piece whenever the application asks."""
        inbox: asyncio.Queue = asyncio.Queue()
        scope.setdefault("asgi", {"version": "3.0"})
        if scope["type"] == "http" and protocol.inflow is not None:
            scope[INFLOW] = protocol.inflow
        receive = _body_first(protocol, inbox.get) if scope["type"] == "http" else inbox.get
        answer = self.application(scope=scope, receive=receive, send=partial(self.handle_reply, protocol))
        if protocol not in self.connections:
            return None
        self.connections[protocol]["application_instance"] = asyncio.ensure_future(answer)
        return inbox

    async def handle_reply(self, protocol, message: dict) -> None:
        await super().handle_reply(protocol, message)
        if protocol.gate is not None:
            await protocol.gate.wait()

    def kill_all_applications(self):
        """As Daphne's, which stumbles over connections without a request, and leaves Django's tasks behind: Python 3.11 crashes on those."""
        running = []
        for protocol, details in list(self.connections.items()):
            if (application := details.get("application_instance")) is None:
                continue
            running.append(application)
            if not isinstance(protocol, Request) or protocol.application_queue is None:
                application.cancel()
                continue
            # As when the client goes: Django then ends everything itself, and an upload's thread keeps what has come.
            if protocol.inflow is not None:
                protocol.inflow.lose()
            protocol.send_disconnect()
        done = defer.Deferred.fromFuture(asyncio.ensure_future(asyncio.wait(running, timeout=CLOSE_S)) if running else _nothing())
        return done.addErrback(lambda failure: None)


def _body_first(protocol: Request, receive):
    async def read() -> dict:
        body = protocol.body
        if body is not None and not body.closed and (chunk := body.read(CHUNK_BYTES)):
            await asyncio.sleep(0)  # a large body must not hold the loop
            return {"type": "http.request", "body": chunk, "more_body": True}
        return await receive()

    return read


async def _nothing() -> None:
    return None


def _has_user(session_key: str) -> bool:
    """Whether a session belongs to somebody who may log in."""
    from importlib import import_module

    from django.conf import settings
    from django.contrib.auth import SESSION_KEY, get_user_model
    from django.db import connection

    try:
        session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
        return get_user_model().objects.filter(pk=session.get(SESSION_KEY), is_active=True).exists()
    finally:
        connection.close()


def _has_token(header: str) -> bool:
    """Whether an Authorization header carries an API token that may change something."""
    from django.db import connection

    from audioldm_site.accounts import tokens

    try:
        token = tokens.find_token(tokens.bearer_text(header) or "")
        return token is not None and token.may_write
    finally:
        connection.close()


def _stop_without_serve(serve_pid: int) -> None:
    if os.getppid() != serve_pid:
        log.warning("the process that started this one is gone")
        reactor.stop()
    else:
        reactor.callLater(1.0, _stop_without_serve, serve_pid)


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "audioldm_site.settings")
    from django.conf import settings
    from django.core.management import call_command

    # Every request runs in a thread of its own, whose kept connection nobody would use again.
    settings.DATABASES["default"]["CONN_MAX_AGE"] = 0
    # Bodies are spooled where the large files go anyway: /tmp may be small, or memory.
    spool = settings.DATA_DIR / "uploads"
    spool.mkdir(exist_ok=True)
    tempfile.tempdir = str(spool)
    # Empty; WhiteNoise finds the files in their apps, and warns when this is missing.
    settings.STATIC_ROOT.mkdir(exist_ok=True)
    from audioldm_site.asgi import application

    # As `serve` does: not on a public address with a secret that can be guessed.
    call_command("check", tags=["security"])
    # Daphne names its factories itself and offers no other way in.
    daphne_server.HTTPFactory, daphne_server.WebSocketFactory = SpoolingHTTPFactory, PacedWebSocketFactory
    if serve_pid := int(os.environ.get(SERVE_PID, 0)):
        reactor.callLater(1.0, _stop_without_serve, serve_pid)
    server = Server(
        application,
        endpoints=build_endpoint_description_strings(host=settings.ENVIRONMENT.host, port=settings.ENVIRONMENT.port),
        ping_interval=PING_EVERY_S,
        ping_timeout=PING_TIMEOUT_S,
        # Daphne would believe the header's first entry, which the client writes: audioldm_site.accounts.address reads it from the right.
        proxy_forwarded_address_header=None,
        server_name="studio",
    )
    server.run()
    if not server.listening_addresses:
        sys.exit(1)


if __name__ == "__main__":
    main()
