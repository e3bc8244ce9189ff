"""tus 1.0.0, rule by rule: core, creation, checksum, expiration, termination."""

from __future__ import annotations

import hashlib
import uuid
from email.utils import parsedate_to_datetime

import pytest
from django.test import Client

from audioldm_site.accounts.tokens import create_token
from audioldm_site.uploads.models import Upload
from tests.uploads.conftest import Tus, b64

pytestmark = pytest.mark.django_db

# Core


def test_a_file_comes_in_pieces(tus):
    upload = tus.begin(10)
    first = tus.patch(upload, b"01234")
    assert (first.status_code, first["Upload-Offset"], first["Tus-Resumable"]) == (204, "5", "1.0.0")
    assert tus.offset(upload) == 5
    assert upload.part.read_bytes() == b"01234"


def test_head_says_what_is_known_and_may_not_be_cached(tus):
    upload = tus.begin(10, filename="räin.zip")
    answer = tus.head(upload)
    assert (answer.status_code, answer["Upload-Offset"], answer["Upload-Length"]) == (200, "0", "10")
    assert answer["Cache-Control"] == "no-store"
    assert f"filename {b64('räin.zip')}" in answer["Upload-Metadata"]


def test_options_says_what_is_offered(tus):
    answer = tus.send("OPTIONS", "/uploads/", tus_resumable=None)
    assert answer.status_code == 204
    assert (answer["Tus-Version"], answer["Tus-Extension"]) == ("1.0.0", "creation,checksum,expiration,termination")
    assert (answer["Tus-Checksum-Algorithm"], answer["Tus-Max-Size"]) == ("sha1,sha256", "64000000000")


@pytest.mark.parametrize("version", ["0.2.2", None])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE"])
def test_another_version_is_refused_and_nothing_done(tus, method, version):
    upload = tus.begin(10)
    answer = tus.send(method, "/uploads/" if method == "POST" else f"/uploads/{upload.pk}/", b"0123456789", upload_offset=0, upload_length=3, tus_resumable=version)
    assert (answer.status_code, answer["Tus-Version"]) == (412, "1.0.0")
    assert (Upload.objects.count(), tus.offset(upload)) == (1, 0)


@pytest.mark.parametrize("offset", [0, 4, 6, 10])
def test_another_offset_than_what_has_arrived_is_a_conflict(tus, offset):
    upload = tus.begin(10)
    tus.patch(upload, b"01234")
    assert tus.patch(upload, b"5", offset=offset).status_code == 409
    assert upload.part.read_bytes() == b"01234"


@pytest.mark.parametrize("offset", ["", "-1", "x", "1.0", "٣", "9" * 30])
def test_an_offset_that_is_none_is_refused(tus, offset):
    assert tus.patch(tus.begin(10), b"0", offset=offset).status_code == 400


def test_another_content_type_is_refused(tus):
    upload = tus.begin(10)
    assert tus.patch(upload, b"01234", content_type="application/octet-stream").status_code == 415
    assert tus.offset(upload) == 0


def test_more_bytes_than_announced_are_refused(tus):
    upload = tus.begin(4)
    answer = tus.patch(upload, b"01234")
    assert (answer.status_code, answer.json()["code"]) == (413, "upload.too_long")
    assert tus.offset(upload) == 0


def test_another_method_may_be_named_in_a_header(tus):
    upload = tus.begin(10)
    answer = tus.send("POST", f"/uploads/{upload.pk}/", b"01", upload_offset=0, x_http_method_override="PATCH")
    assert (answer.status_code, tus.offset(upload)) == (204, 2)


@pytest.mark.parametrize(("method", "address"), [("GET", "/uploads/"), ("PUT", "/uploads/"), ("POST", "one"), ("PUT", "one")])
def test_other_methods_do_not_exist(tus, method, address):
    address = f"/uploads/{tus.begin(3).pk}/" if address == "one" else address
    assert tus.send(method, address).status_code == 405


def test_what_is_unknown_is_404(tus):
    assert tus.send("HEAD", f"/uploads/{uuid.uuid4()}/").status_code == 404


# Creation


def test_a_new_upload_is_201_with_its_address(tus):
    answer = tus.create(10)
    upload = Upload.objects.get()
    assert (answer.status_code, answer["Location"]) == (201, f"/uploads/{upload.pk}/")
    assert (upload.owner.username, upload.kind, upload.filename, upload.length, upload.offset) == ("alice", "dataset", "rain.zip", 10, 0)


@pytest.mark.parametrize("length", ["", "-1", "x", "1e3", "9" * 30])
def test_a_length_that_is_none_is_refused(tus, length):
    assert tus.create(length).status_code == 400


@pytest.mark.parametrize(
    "metadata",
    ["", "kind", f"kind {b64('video')},filename {b64('a')}", f"kind {b64('dataset')}", "kind ===,filename YQ==", f"kind {b64('dataset')},kind {b64('dataset')},filename YQ==",
     f"kind {b64('dataset')},filename {b64(bytes([255]))}", f"kind {b64('dataset')},filename {b64('a' * 256)}", f"kind {b64('dataset')},filename {b64('a' + chr(0))}", "x" * 4001],
)  # fmt: skip
def test_metadata_that_says_too_little_or_cannot_be_read_is_refused(tus, metadata):
    answer = tus.send("POST", "/uploads/", upload_length=3, upload_metadata=metadata)
    assert (answer.status_code, answer.json()["code"]) == (400, "upload.invalid")
    assert not Upload.objects.exists()


@pytest.mark.parametrize("filename", ["../../etc/passwd", "/etc/passwd", "..", "C:\\x", "<b>x</b>.zip", "a" * 255, "draft.json", "lock"])
def test_a_files_name_never_reaches_the_file_system(tus, filename, settings):
    upload = tus.begin(10, filename=filename)
    tus.patch(upload, b"01")
    assert sorted(path.name for path in upload.folder.iterdir()) == ["lock", "part"]
    assert [path.name for path in (settings.DATA_DIR / "parts").iterdir()] == [str(upload.pk)]


# Checksum


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_checksum_that_fits_is_taken(tus, algorithm):
    upload = tus.begin(10)
    digest = hashlib.new(algorithm, b"01234").digest()
    assert tus.patch(upload, b"01234", upload_checksum=f"{algorithm} {b64(digest)}").status_code == 204
    assert tus.offset(upload) == 5


def test_of_a_piece_that_changed_on_the_way_nothing_is_kept(tus):
    upload = tus.begin(10)
    tus.patch(upload, b"01")
    answer = tus.patch(upload, b"2X4", offset=2, upload_checksum=f"sha1 {b64(hashlib.sha1(b'234').digest())}")
    assert (answer.status_code, answer.json()["code"]) == (460, "upload.checksum")
    assert (tus.offset(upload), upload.part.read_bytes()) == (2, b"01")


@pytest.mark.parametrize("header", ["md5 AAAA", "sha1", "sha1 ", "sha1 !", "AAAA"])
def test_a_checksum_that_is_none_is_refused(tus, header):
    upload = tus.begin(10)
    assert tus.patch(upload, b"01234", upload_checksum=header).status_code == 400
    assert tus.offset(upload) == 0


# Expiration and termination


def test_an_upload_says_until_when_it_waits(tus):
    upload = tus.begin(10)
    assert abs((parsedate_to_datetime(tus.patch(upload, b"0")["Upload-Expires"]) - upload.created_at).total_seconds() - 72 * 3600) < 60


def test_a_deleted_upload_is_gone_with_its_bytes(tus):
    upload = tus.begin(10)
    tus.patch(upload, b"0")
    assert tus.send("DELETE", f"/uploads/{upload.pk}/").status_code == 204
    assert not upload.folder.exists()
    assert tus.head(upload).status_code == 404


# Who


def test_nobody_gets_in(tus, db):
    upload = tus.begin(10)
    for method, address in [("POST", "/uploads/"), ("OPTIONS", "/uploads/"), *((method, f"/uploads/{upload.pk}/") for method in ("HEAD", "GET", "PATCH", "DELETE"))]:
        assert Tus(Client()).send(method, address, b"0", upload_offset=0).status_code == 401
    assert tus.offset(upload) == 0


@pytest.mark.parametrize("stranger", ["charlie", "root"])
@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
def test_an_upload_is_its_owners_alone(tus, request, stranger, method):
    upload = tus.begin(10)
    other = Client()
    other.force_login(request.getfixturevalue(stranger))
    assert Tus(other).send(method, f"/uploads/{upload.pk}/", b"0", upload_offset=0).status_code == 404
    assert other.post(f"/uploads/{upload.pk}/discard/").status_code == 404
    assert tus.offset(upload) == 0


def test_a_session_needs_the_csrf_token(alice):
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    assert Tus(client).create(10).json()["code"] == "api.csrf"
    client.cookies["csrftoken"] = "a" * 32
    assert Tus(client).send("POST", "/uploads/", upload_length=3, upload_metadata=f"kind {b64('dataset')},filename {b64('a')}", x_csrftoken="a" * 32).status_code == 201


@pytest.mark.parametrize(("scope", "status"), [("write", 201), ("read", 403)])
def test_a_token_sends_if_it_may_write(alice, scope, status):
    _, text = create_token(user=alice, name="x", scope=scope)
    client = Client(enforce_csrf_checks=True, headers={"Authorization": f"Bearer {text}"})
    assert Tus(client).create(10).status_code == status
