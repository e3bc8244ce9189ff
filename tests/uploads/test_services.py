"""Limits, locks, what comes of an upload, and what happens to it when something dies."""

from __future__ import annotations

import os
import zipfile
from collections import namedtuple
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone
from django_q.models import OrmQ

from audioldm_site.uploads import services
from audioldm_site.uploads.models import Upload
from datasets_app import services as datasets
from datasets_app.models import Dataset
from gpu.errors import Fault
from tests.factories import write_dataset_zip
from training_app import drafts

pytestmark = pytest.mark.django_db
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def archive(tmp_path) -> bytes:
    return write_dataset_zip(tmp_path / "rain.zip", clips=2, duration_s=0.2).read_bytes()


def reader(*pieces: bytes | Exception):
    left = list(pieces)

    def read(size: int) -> bytes:
        piece = left.pop(0) if left else b""
        if isinstance(piece, Exception):
            raise piece
        return piece

    return read


# Limits


def test_a_file_that_is_too_large_is_refused_before_it_comes(tus, limits):
    limits(upload_max_gb=0.000001)
    assert tus.create(1000).status_code == 201
    answer = tus.create(1001)
    assert (answer.status_code, answer.json()["code"]) == (413, "upload.too_large")


def test_what_one_user_has_on_the_way_is_limited(tus, limits, bob):
    limits(upload_quota_gb=0.000001)
    upload = tus.begin(600)
    assert tus.create(401).json()["code"] == "upload.quota"
    services.create_upload(owner=bob, kind="dataset", filename="x", length=900)
    tus.send("DELETE", f"/uploads/{upload.pk}/")
    assert tus.create(401).status_code == 201


def test_a_file_for_which_there_is_no_room_is_refused_before_it_comes(tus, monkeypatch):
    monkeypatch.setattr(services.shutil, "disk_usage", lambda path: Usage(10**12, 0, services.ROOM_BYTES + 1000))
    tus.begin(600)
    answer = tus.create(401)
    assert (answer.status_code, answer.json()["code"]) == (507, "disk.full")
    assert tus.create(400).status_code == 201


def test_a_disk_that_fills_meanwhile_stops_the_upload_and_keeps_what_has_come(tus, monkeypatch):
    monkeypatch.setattr(services, "SYNC_EVERY_BYTES", 4)
    upload = tus.begin(100)
    monkeypatch.setattr(services.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 0))
    with pytest.raises(Fault, match=r"must stay free"):
        services.receive(upload, reader(b"0123", b"4567"), offset=0)
    assert (tus.offset(upload), upload.part.read_bytes()) == (4, b"0123")


# One writer, and what is kept


def test_two_requests_cannot_write_to_one_upload(tus):
    upload = tus.begin(10)
    seen = []

    def read(size: int) -> bytes:
        if not seen:
            seen.append(tus.patch(upload, b"xx").status_code)
            seen.append(tus.send("DELETE", f"/uploads/{upload.pk}/").status_code)
            return b"01"
        return b""

    services.receive(Upload.objects.get(pk=upload.pk), read, offset=0)
    assert seen == [423, 423]
    assert upload.part.read_bytes() == b"01"


def test_of_a_connection_that_broke_what_came_is_kept(tus):
    upload = tus.begin(10)
    with pytest.raises(services.BodyLost):
        services.receive(upload, reader(b"012", services.BodyLost()), offset=0)
    assert (tus.offset(upload), upload.part.read_bytes()) == (3, b"012")


def test_but_not_what_could_not_be_compared(tus):
    upload = tus.begin(10)
    with pytest.raises(services.BodyLost):
        services.receive(upload, reader(b"012", services.BodyLost()), offset=0, checksum=services.Checksum("sha1", b"x"))
    assert (tus.offset(upload), upload.part.read_bytes()) == (0, b"")


def test_bytes_that_were_never_synced_are_cut_off(tus):
    upload = tus.begin(10)
    tus.patch(upload, b"012")
    with open(upload.part, "ab") as file:
        file.write(b"XXXX")  # as a killed process leaves them
    assert tus.offset(upload) == 3
    tus.patch(upload, b"345", offset=3)
    assert upload.part.read_bytes() == b"012345"


def test_bytes_that_the_disk_has_lost_are_asked_for_again(tus):
    upload = tus.begin(10)
    tus.patch(upload, b"01234")
    os.truncate(upload.part, 2)
    assert tus.offset(upload) == 2
    assert tus.patch(upload, b"2345", offset=2).status_code == 204
    assert upload.part.read_bytes() == b"012345"


# What comes of it


def test_a_whole_file_becomes_a_dataset_bit_equal(tus, archive, alice):
    upload = tus.begin(len(archive), filename="räin.zip", name="My rain")
    half = len(archive) // 2
    tus.patch(upload, archive[:half])
    tus.patch(upload, archive[half:], offset=half)
    dataset = Dataset.objects.get()
    assert (dataset.pk, dataset.name, dataset.owner, dataset.source_name, dataset.origin) == (upload.pk, "My rain", alice, "räin.zip", "uploaded")
    assert tus.client.get(f"/uploads/{upload.pk}/").json()["location"] == f"/datasets/{dataset.pk}/"
    assert datasets.import_dataset(dataset).status == "ready"
    assert not upload.folder.exists()


def test_it_becomes_one_dataset_although_the_last_answer_was_lost(tus, archive):
    upload = tus.begin(len(archive))
    tus.patch(upload, archive)
    assert tus.offset(upload) == len(archive)
    assert tus.patch(upload, archive).status_code == 409
    assert tus.client.get(f"/uploads/{upload.pk}/").json()["finished"]
    assert (Dataset.objects.count(), OrmQ.objects.count()) == (1, 1)


@pytest.mark.parametrize("died", ["before the service", "in the service", "after the service"])
def test_a_process_that_was_killed_at_the_end_leaves_one_dataset(tus, archive, died, settings):
    upload = tus.begin(len(archive))
    upload.part.write_bytes(archive)
    Upload.objects.update(offset=len(archive))
    if died == "in the service":
        (settings.DATA_DIR / "uploads" / str(upload.pk)).mkdir()
    if died == "after the service":
        datasets.create_dataset(pk=upload.pk, source=upload.part, owner=upload.owner, origin="uploaded")

    assert tus.offset(upload) == len(archive)

    upload.refresh_from_db()
    assert upload.finished_at and not upload.folder.exists()
    assert (Dataset.objects.count(), OrmQ.objects.count()) == (1, 1)
    assert datasets.import_dataset(Dataset.objects.get()).status == "ready"


def test_a_full_disk_at_the_end_loses_nothing(tus, archive, monkeypatch, settings):
    upload = tus.begin(len(archive))
    (settings.DATA_DIR / "uploads").rmdir()
    (settings.DATA_DIR / "uploads").symlink_to("/dev/full")
    tus.client.raise_request_exception = False
    assert tus.patch(upload, archive).status_code >= 500
    assert upload.part.read_bytes() == archive

    (settings.DATA_DIR / "uploads").unlink()
    (settings.DATA_DIR / "uploads").mkdir()
    assert tus.offset(upload) == len(archive)
    assert Dataset.objects.count() == 1


def test_an_empty_file_is_finished_at_once(tus):
    tus.begin(0)
    assert datasets.import_dataset(Dataset.objects.get()).error_code == "dataset.empty"


def test_a_model_waits_for_its_owners_choice(tus, bob, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("checkpoint.json", "{}")
    content = (tmp_path / "model.zip").read_bytes()
    upload = tus.begin(len(content), kind="checkpoint", filename="../my model.zip")
    tus.patch(upload, content)
    address = tus.client.get(f"/uploads/{upload.pk}/").json()["location"]
    assert address == f"/checkpoints/import/choose/?upload={upload.pk}"
    assert (drafts.draft_folder(str(upload.pk)) / "my_model.zip").read_bytes() == content
    page = tus.client.get(address)
    assert page.status_code == 200
    assert "my_model.zip" in page.content.decode()
    assert f'href="{address}"' in tus.client.get("/checkpoints/import/").content.decode()
    other = Client()
    other.force_login(bob)
    assert other.get(address).status_code == 404


def test_what_is_no_model_is_refused_in_words_and_goes(tus):
    upload = tus.begin(5, kind="checkpoint", filename="x.ckpt")
    assert tus.patch(upload, b"01234").status_code == 204
    about = tus.client.get(f"/uploads/{upload.pk}/").json()
    assert (about["finished"], about["location"], about["error"]["code"]) == (True, "", "checkpoint.unrecognised")
    assert not upload.folder.exists()


# Sweeping


def test_what_nobody_goes_on_with_goes_after_its_time(tus, settings):
    old, young = tus.begin(10), tus.begin(10)
    Upload.objects.filter(pk=old.pk).update(touched_at=timezone.now() - timedelta(hours=73))
    stray = settings.DATA_DIR / "parts" / "stray"
    stray.mkdir()
    os.utime(stray, (0, 0))
    assert services.sweep() == 2
    assert list(Upload.objects.all()) == [young]
    assert [path.name for path in (settings.DATA_DIR / "parts").iterdir()] == [str(young.pk)]


def test_an_upload_in_hand_is_not_swept(tus):
    upload = tus.begin(10)
    with services._locked(upload):
        assert services.sweep(now=timezone.now() + timedelta(hours=100)) == 0
    assert tus.offset(upload) == 0


# Pages


def test_the_page_lists_what_waits_and_removes_it(tus, settings):
    upload = tus.begin(10, filename="<b>rain.zip")
    tus.patch(upload, b"0123")
    page = tus.client.get("/datasets/").content.decode()
    assert "&lt;b&gt;rain.zip" in page and 'value="40"' in page
    assert tus.client.post(f"/uploads/{upload.pk}/discard/", {"next": "/datasets/"})["Location"] == "/datasets/"
    assert "rain.zip" not in tus.client.get("/datasets/").content.decode().split("<h2>The format</h2>")[0]


def test_without_javascript_the_form_still_sends(alice_client, archive):
    from django.core.files.uploadedfile import SimpleUploadedFile

    answer = alice_client.post("/datasets/upload/", {"archive": SimpleUploadedFile("rain.zip", archive), "name": ""})
    assert answer.status_code == 302
    assert Dataset.objects.get().name == "rain"
