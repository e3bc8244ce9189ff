"""Ranges, conditions and pieces, under WSGI's test client and under ASGI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from django.core.handlers.asgi import ASGIRequest
from django.http import Http404
from django.test import AsyncRequestFactory, RequestFactory

from audioldm_site.files import CHUNK_BYTES, file_in, file_response

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "a.wav").write_bytes(CONTENT)
    return tmp_path / "a.wav"


def answer(path: Path, *, method: str = "get", **headers: str):
    request = getattr(RequestFactory(), method)("/", headers=headers)
    return file_response(request, path, filename="ü.wav", content_type="audio/wav")


def body(response) -> bytes:
    return b"".join(response.streaming_content) if response.streaming else response.content


def test_the_whole_file_comes_with_what_a_player_needs(path):
    response = answer(path)
    assert (response.status_code, body(response)) == (200, CONTENT)
    assert response["Content-Type"] == "audio/wav"
    assert response["Content-Length"] == "1024"
    assert response["Accept-Ranges"] == "bytes"
    assert response["Content-Disposition"] == "inline; filename*=utf-8''%C3%BC.wav"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-", 0, 1024), ("bytes=0-0", 0, 1), ("bytes=100-199", 100, 200), ("bytes=1000-5000", 1000, 1024), ("bytes=-24", 1000, 1024), ("bytes=-5000", 0, 1024)],
)
def test_a_range_is_answered_with_206(path, asked, start, end):
    response = answer(path, range=asked)
    assert (response.status_code, body(response)) == (206, CONTENT[start:end])
    assert response["Content-Range"] == f"bytes {start}-{end - 1}/1024"
    assert response["Content-Length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_beyond_the_end_is_answered_with_416(path, asked):
    response = answer(path, range=asked)
    assert (response.status_code, response["Content-Range"]) == (416, "bytes */1024")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=a-b", "bytes=-", "items=0-5", "bytes=0-1,5-6", "bytes=" + "9" * 5000 + "-", "0-5"])
def test_what_is_no_single_range_gets_the_whole_file(path, asked):
    response = answer(path, range=asked)
    assert (response.status_code, len(body(response))) == (200, 1024)


def test_an_unchanged_file_is_not_sent_again(path):
    etag = answer(path)["ETag"]
    assert answer(path, if_none_match=etag).status_code == 304
    assert answer(path, if_none_match=f'"other", W/{etag}').status_code == 304
    assert answer(path, if_none_match='"other"').status_code == 200


def test_a_date_counts_where_there_is_no_tag(path):
    os.utime(path, (1000, 1000))
    assert answer(path, if_modified_since="Thu, 01 Jan 1970 00:16:40 GMT").status_code == 304
    assert answer(path, if_modified_since="Thu, 01 Jan 1970 00:16:39 GMT").status_code == 200
    assert answer(path, if_modified_since="nonsense").status_code == 200
    assert answer(path, if_modified_since="Thu, 01 Jan 1970 00:16:40 GMT", if_none_match='"other"').status_code == 200


def test_a_range_of_a_changed_file_becomes_the_whole(path):
    first = answer(path)
    os.utime(path, (0, 0))
    assert answer(path, range="bytes=5-9", if_range=first["ETag"]).status_code == 200
    assert answer(path, range="bytes=5-9", if_range=answer(path)["ETag"]).status_code == 206
    assert answer(path, range="bytes=5-9", if_range=answer(path)["Last-Modified"]).status_code == 206


def test_head_says_all_and_sends_nothing(path):
    response = answer(path, method="head", range="bytes=5-9")
    assert (response.status_code, response.content, response["Content-Length"]) == (206, b"", "5")


def test_an_empty_file_is_an_empty_answer(tmp_path):
    (tmp_path / "empty").touch()
    assert body(answer(tmp_path / "empty")) == b""
    assert answer(tmp_path / "empty", range="bytes=0-").status_code == 416


def test_a_missing_file_and_a_folder_are_404(tmp_path):
    for path in (tmp_path / "none", tmp_path, tmp_path / "none" / "deeper"):
        with pytest.raises(Http404):
            answer(path)


@pytest.mark.django_db  # the end of an answer tidies the connections
def test_the_file_is_closed_with_the_answer(path):
    response = answer(path)
    file = response._resource_closers[-1].__self__
    response.close()
    assert file.closed


async def test_under_asgi_the_pieces_come_one_by_one(tmp_path):
    content = os.urandom(CHUNK_BYTES * 2 + 5)
    (tmp_path / "big").write_bytes(content)
    request = AsyncRequestFactory().get("/", headers={"range": "bytes=1-"})
    assert isinstance(request, ASGIRequest)
    response = file_response(request, tmp_path / "big", filename="big", content_type="application/octet-stream", as_attachment=True)
    pieces = [piece async for piece in response.streaming_content]
    assert b"".join(pieces) == content[1:]
    assert max(map(len, pieces)) == CHUNK_BYTES
    assert response["Content-Disposition"] == 'attachment; filename="big"'


@pytest.mark.parametrize("relative", ["../secret", "a/../../secret", "/etc/passwd", "link", "folder", "none", "nul\0", "x" * 5000, "linked/secret"])
def test_no_address_leads_out_of_its_folder(tmp_path, relative):
    folder = tmp_path / "run"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(Http404):
        file_in(folder, relative)


def test_a_file_below_its_folder_is_found(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.wav").touch()
    assert file_in(tmp_path, "samples/a.wav") == (tmp_path / "samples" / "a.wav").resolve()
