"""Sending files: with ranges, so that a player can seek, and in pieces, so that a large checkpoint never stands in memory.

Django's FileResponse does neither under ASGI: it ignores Range and is buffered whole (4.4 GB of memory for a file of 2 GB).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from django.core.handlers.asgi import ASGIRequest
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotModified, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header, http_date, parse_etags, parse_http_date_safe

CHUNK_BYTES = 1 << 18
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def file_response(
    request: HttpRequest, path: Path, *, filename: str, content_type: str, as_attachment: bool = False
) -> HttpResponseBase:
    """The file, the range of it that was asked for (206), or word that it has not changed (304); works under ASGI and WSGI.

    One range at a time: several in one request get the whole file, which the standard allows. Whoever calls has checked the permission.

    Args:
        filename: the name under which a browser saves it.
    Raises:
        Http404: there is no such file.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed with the response)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise Http404(f"{filename} is not there any more") from None
    status = path.stat()
    size, etag = status.st_size, f'"{status.st_size:x}-{status.st_mtime_ns:x}"'

    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "ETag": etag,
        "Last-Modified": http_date(status.st_mtime),
    }
    if _is_known(request, etag=etag, modified=int(status.st_mtime)):
        file.close()
        return HttpResponseNotModified(headers={name: headers[name] for name in ("Cache-Control", "ETag")})

    part = _part(request, size=size, etag=etag, modified=headers["Last-Modified"])
    if part is not None and part.start >= size:
        file.close()
        return HttpResponse(status=416, headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"})
    headers["Content-Type"] = content_type
    headers["Content-Disposition"] = content_disposition_header(as_attachment, filename) or "inline"
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    sent = range(size) if part is None else part
    headers["Content-Length"] = str(len(sent))

    if request.method == "HEAD":
        file.close()
        return HttpResponse(headers=headers, status=200 if part is None else 206)
    pieces = _pieces_async(file, sent) if isinstance(request, ASGIRequest) else _pieces(file, sent)
    response = StreamingHttpResponse(pieces, headers=headers, status=200 if part is None else 206)
    response._resource_closers.append(file.close)
    return response


def file_in(folder: Path, relative: str) -> Path:
    """The file that an address names below a folder.

    Raises:
        Http404: it leads outside the folder, also through a link, or is not a file.
    """
    try:
        path = (folder / relative).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            return path
    except (ValueError, OSError):  # a NUL in the name, or one that is too long
        pass
    raise Http404(f"there is no file {relative}")


def _part(request: HttpRequest, *, size: int, etag: str, modified: str) -> range | None:
    """The bytes that were asked for; None for all of them. A range that starts at or beyond the end cannot be answered."""
    match = RANGE.fullmatch(request.headers.get("Range", "").strip())
    condition = request.headers.get("If-Range", "").strip()
    if not match or match.groups() == ("", "") or condition not in ("", etag, modified):
        return None
    first, last = match.groups()
    if not first:
        length = int(last)
        return range(max(0, size - length), size) if length else range(size, size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


def _is_known(request: HttpRequest, *, etag: str, modified: int) -> bool:
    """Whether whoever asks has the file as it is. A date counts only where no tag is given: it knows whole seconds."""
    if condition := request.headers.get("If-None-Match", ""):
        return _matches(condition, etag)
    since = parse_http_date_safe(request.headers.get("If-Modified-Since", ""))
    return since is not None and modified <= since


def _matches(condition: str, etag: str) -> bool:
    tags = parse_etags(condition)
    return tags == ["*"] or etag in (tag.removeprefix("W/") for tag in tags)


def _pieces(file: BinaryIO, part: range) -> Iterator[bytes]:
    file.seek(part.start)
    left = len(part)
    while left and (piece := file.read(min(CHUNK_BYTES, left))):
        left -= len(piece)
        yield piece


async def _pieces_async(file: BinaryIO, part: range) -> AsyncIterator[bytes]:
    pieces = _pieces(file, part)
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece
