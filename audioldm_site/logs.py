"""Logs that can be searched: each line knows its request and its job, as words or as one JSON object a line, in files that rotate."""

from __future__ import annotations

import fcntl
import json
import logging
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from tqdm import tqdm

P, T = ParamSpec("P"), TypeVar("T")
request_id: ContextVar[str] = ContextVar("request_id", default="")
job_id: ContextVar[str] = ContextVar("job_id", default="")

FILE_BYTES, FILES_KEPT = 10_000_000, 4
"""At most 50 MB for each of the processes of `serve`."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}", re.ASCII)


def about_its_job(function: Callable[P, T]) -> Callable[P, T]:
    """Every line that is logged while a function of a job runs carries the job's id."""

    @wraps(function)
    def logged(*args: P.args, **kwargs: P.kwargs) -> T:
        token = job_id.set(str(args[0].pk))
        try:
            return function(*args, **kwargs)
        finally:
            job_id.reset(token)

    return logged


class ThroughBars(logging.StreamHandler):
    """Writes a line above the progress bars of the terminal instead of into them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:  # as every handler does: what is logged must not end what logs
            self.handleError(record)


@contextmanager
def beside_bars() -> Iterator[None]:
    """Within it a command owns the terminal: it says itself how it goes, so only warnings are logged there (all with LOG_LEVEL=DEBUG)."""
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers = [_beside(handler, debugging=root.level <= logging.DEBUG) for handler in before]
    try:
        yield
    finally:
        root.handlers = before


def _beside(handler: logging.Handler, *, debugging: bool) -> logging.Handler:
    if getattr(handler, "stream", None) not in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__):
        return handler
    other = ThroughBars(handler.stream)
    other.setFormatter(handler.formatter)
    other.filters = handler.filters
    other.setLevel(handler.level if debugging else max(handler.level, logging.WARNING))
    return other


class RequestId:
    """Gives each request an id, or takes the proxy's, and answers with it (`X-Request-Id`)."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest):
        if iscoroutinefunction(self):
            return self._later(request)
        request_id.set(_wanted(request))
        return self._marked(self.get_response(request))

    async def _later(self, request: HttpRequest) -> HttpResponseBase:
        request_id.set(_wanted(request))
        return self._marked(await self.get_response(request))

    def _marked(self, response: HttpResponseBase) -> HttpResponseBase:
        response.headers["X-Request-Id"] = request_id.get()
        return response


class Context(logging.Filter):
    """Notes on each record what it belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id, record.job_id = request_id.get(), job_id.get()
        return True


class Plain(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("{asctime} {levelname} {name}: {message}", style="{")

    def formatMessage(self, record: logging.LogRecord) -> str:
        about = " ".join(f"{name}={value}" for name in ("job_id", "request_id") if (value := getattr(record, name, "")))
        return super().formatMessage(record) + (f" [{about}]" if about else "")


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        line |= {name: value for name in ("job_id", "request_id") if (value := getattr(record, name, ""))}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class SharedFile(logging.Handler):
    """A log file that several processes write and that one of them rotates, whichever comes first.

    The standard library's rotating handler loses lines when two processes share a file, and a cluster forks three.
    """

    def __init__(self, path: Path | str, *, limit_bytes: int = FILE_BYTES, kept: int = FILES_KEPT) -> None:
        super().__init__()
        self.path, self.limit_bytes, self.kept = Path(path), limit_bytes, kept

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode("utf-8", errors="backslashreplace")
            with open(self.path.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self.path.exists() and self.path.stat().st_size + len(line) > self.limit_bytes:
                    self._rotate()
                with open(self.path, "ab") as file:
                    file.write(line)
        except OSError:
            # A full disk must not take down what logs; stderr has the line too.
            return

    def _rotate(self) -> None:
        for number in range(self.kept, 0, -1):
            older = self.path.with_suffix(f".{number}.log")
            newer = self.path if number == 1 else self.path.with_suffix(f".{number - 1}.log")
            if newer.exists():
                newer.replace(older)


def _wanted(request: HttpRequest) -> str:
    given = request.headers.get("X-Request-Id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
