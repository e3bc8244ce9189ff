"""Models come in and go out by click: what pages say, who may see what, what a hostile upload meets."""

from __future__ import annotations

import html
import io
import json
import shlex
import shutil
import struct
import zipfile

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from audioldm_site.jobs.models import Status
from training_app import conversions, sources
from training_app.models import Checkpoint, Conversion, ConversionEvent

pytestmark = pytest.mark.django_db


@pytest.fixture
def charlie_client(charlie):
    client = Client()
    client.force_login(charlie)
    return client


@pytest.fixture
def root_client(root):
    client = Client()
    client.force_login(root)
    return client


@pytest.fixture
def alices(alice, checkpoint, settings) -> Conversion:
    """Alice's finished export, ten bytes long."""
    made = Conversion(owner=alice, direction="export", name="tiny", source="tiny", checkpoint=checkpoint, format="ckpt", status=Status.SUCCEEDED, size_bytes=10)
    path = settings.DATA_DIR / "exports" / str(made.pk) / "tiny.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"0123456789")
    made.result = path.relative_to(settings.DATA_DIR).as_posix()
    made.config = {"format": "ckpt", "dtype": "fp32", "destination": str(path)}
    made.save()
    return made


def send(client, name: str, content: bytes):
    return client.post(reverse("checkpoints:upload"), {"model": SimpleUploadedFile(name, content)})


def zipped(*entries: tuple, **more) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **more) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


# An upload


def test_an_upload_is_recognised_before_anything_is_done(alice_client, tiny_zip, settings):
    answer = send(alice_client, "a tiny one.zip", tiny_zip.read_bytes())
    assert answer.status_code == 302
    page = alice_client.get(answer.url).content.decode()
    assert "AudioLDM2Pipeline, zipped" in page
    assert not Conversion.objects.exists()


def test_a_chosen_upload_waits_in_line_as_its_owners(alice_client, alice, tiny_zip, settings):
    address = send(alice_client, "tiny.zip", tiny_zip.read_bytes()).url
    answer = alice_client.post(address, {"name": "my tiny"})
    made = Conversion.objects.get()
    assert answer.url == reverse("checkpoints:conversion", args=[made.pk])
    assert (made.owner, made.name, made.status, made.config["kind"]) == (alice, "my tiny", Status.QUEUED, "zip")
    assert (made.folder / "source" / "tiny.zip").is_file()
    assert not list((settings.DATA_DIR / "uploads").iterdir())


def test_charlie_does_not_find_alices_upload(alice_client, charlie_client, tiny_zip):
    address = send(alice_client, "tiny.zip", tiny_zip.read_bytes()).url
    assert charlie_client.get(address).status_code == 404
    assert charlie_client.post(address, {"name": "mine"}).status_code == 404


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("tiny/unet/config.json")
    info.external_attr = 0o120777 << 16
    return info


HOSTILE = {
    "outside": zipped(("tiny/model_index.json", "{}"), ("tiny/../../evil", "x")),
    "absolute": zipped(("/tiny/model_index.json", "{}")),
    "link": zipped(("tiny/model_index.json", "{}"), (link(), "/etc/passwd")),
    "no model": zipped(("readme.txt", "hello")),
    "index is a bomb": zipped(("model_index.json", b" " * 3_000_000), compression=zipfile.ZIP_DEFLATED),
    "index is no object": zipped(("model_index.json", "[]")),
    "cut short": zipped(("tiny/model_index.json", "{}"))[:-20],
    "empty": b"",
    "text": b"hello",
    "page": b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_zip_is_refused_in_words_and_not_kept(what, alice_client, settings):
    answer = send(alice_client, "model.zip", HOSTILE[what])
    assert answer.status_code == 400
    assert answer.context["upload_form"].errors["model"]
    assert not list((settings.DATA_DIR / "uploads").iterdir())
    assert not Conversion.objects.exists()


def pickled() -> bytes:
    """A torch file whose pickle would run a program."""
    return zipped(("archive/data.pkl", b"cos\nsystem\n(S'touch /tmp/pwned'\ntR."), ("archive/version", "3"))


def lying_header() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("name", "content"),
    [("evil.ckpt", pickled()), ("model.ckpt", b"PK\x03\x04" + b"x" * 100), ("model.safetensors", lying_header()), ("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
     ("audioldm", b"\x80\x02."), ("model.pth", b""), ("../../model.ckpt", b"x")],
)  # fmt: skip
def test_a_hostile_file_is_refused_in_words_and_not_kept(name, content, alice_client, settings):
    answer = send(alice_client, name, content)
    assert answer.status_code == 400
    assert answer.context["upload_form"].errors["model"]
    assert not list((settings.DATA_DIR / "uploads").iterdir())


def test_an_upload_without_a_file_is_asked_for_again(alice_client):
    assert alice_client.post(reverse("checkpoints:upload"), {}).status_code == 400


# The incoming folder and the hub


def test_what_lies_in_the_incoming_folder_is_shown_with_its_kind(alice_client, tiny_zip, settings):
    incoming = settings.DATA_DIR / "incoming" / "checkpoints"
    shutil.copyfile(tiny_zip, incoming / "tiny & co.zip")
    (incoming / "notes.txt").write_text("hello")
    page = alice_client.get(reverse("checkpoints:import")).content.decode()
    assert "AudioLDM2Pipeline, zipped" in page
    assert "tiny%20%26%20co.zip" in page
    assert "notes.txt" in page


def test_a_scan_that_finds_a_file_leads_to_the_choice(alice_client, tiny_zip, settings):
    shutil.copyfile(tiny_zip, settings.DATA_DIR / "incoming" / "checkpoints" / "tiny.zip")
    assert alice_client.post(reverse("checkpoints:scan")).url == reverse("checkpoints:import")


@pytest.mark.parametrize("query", ["incoming=../../secret_key", "incoming=/etc/passwd", "incoming=gone.ckpt"])
def test_an_address_does_not_lead_out_of_the_incoming_folder(query, alice_client):
    assert alice_client.get(f"{reverse('checkpoints:choose')}?{query}").url == reverse("checkpoints:import")


@pytest.mark.parametrize("query", ["", "upload=", "upload=../../x", "upload=6f1c5f44-0000-4000-8000-000000000000"])
def test_an_upload_that_is_none_is_not_found(query, alice_client):
    assert alice_client.get(f"{reverse('checkpoints:choose')}?{query}").status_code == 404


def test_a_repository_of_the_hub_waits_in_line(alice_client, alice):
    alice_client.post(reverse("checkpoints:hub"), {"repository": "cvssp/audioldm2", "name": "the real one"})
    made = Conversion.objects.get()
    assert (made.source, made.name, made.owner, made.config["source"]) == ("hub:cvssp/audioldm2", "the real one", alice, "hub:cvssp/audioldm2")


@pytest.mark.parametrize("repository", ["", "/etc/passwd", "../x", "a/b/c", "cvssp/audioldm2; rm -rf /", "a/..", "-x/--y z"])
def test_a_repository_that_is_none_is_refused(repository, alice_client):
    assert alice_client.post(reverse("checkpoints:hub"), {"repository": repository}).status_code == 400
    assert not Conversion.objects.exists()


# Who may see and do what


def test_charlie_does_not_find_alices_export(charlie_client, alices):
    for name in ("conversion", "conversion_events", "conversion_file"):
        assert charlie_client.get(reverse(f"checkpoints:{name}", args=[alices.pk])).status_code == 404
    for name in ("conversion_stop", "conversion_retry", "conversion_delete"):
        assert charlie_client.post(reverse(f"checkpoints:{name}", args=[alices.pk])).status_code in (403, 404)
    assert alices.result_path.is_file()
    assert "Export of tiny" not in charlie_client.get(reverse("checkpoints:conversions")).content.decode()


def test_charlie_cannot_export_alices_checkpoint(charlie_client, checkpoint, alice):
    Checkpoint.objects.filter(pk=checkpoint.pk).update(owner=alice)
    assert charlie_client.post(reverse("checkpoints:export", args=[checkpoint.pk]), {"format": "ckpt"}).status_code in (403, 404)
    assert not Conversion.objects.exists()


def test_bob_may_not_delete_what_belongs_to_nobody_and_root_may(alices, bob, root_client):
    Conversion.objects.filter(pk=alices.pk).update(owner=None)
    client = Client()
    client.force_login(bob)
    assert client.get(reverse("checkpoints:conversion", args=[alices.pk])).status_code == 200
    assert client.post(reverse("checkpoints:conversion_delete", args=[alices.pk])).status_code == 403
    root_client.post(reverse("checkpoints:conversion_delete", args=[alices.pk]))
    assert not Conversion.objects.exists()


def test_the_pages_ask_for_a_login(client, alices):
    for address in (reverse("checkpoints:import"), reverse("checkpoints:conversions"), reverse("checkpoints:conversion_file", args=[alices.pk])):
        assert client.get(address).url.startswith(reverse("login"))


@pytest.mark.parametrize("name", ["conversion_stop", "conversion_retry", "conversion_delete"])
def test_commands_are_never_obeyed_by_get(name, alice_client, alices):
    assert alice_client.get(reverse(f"checkpoints:{name}", args=[alices.pk])).status_code == 405


# A conversion's page


def test_a_download_goes_on_where_it_broke_off(alice_client, alices):
    answer = alice_client.get(reverse("checkpoints:conversion_file", args=[alices.pk]), headers={"Range": "bytes=4-6"})
    assert (answer.status_code, b"".join(answer.streaming_content)) == (206, b"456")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="tiny.ckpt"'


def test_what_a_command_wrote_elsewhere_is_not_served(alice_client, alices, tmp_path):
    (tmp_path / "secret").write_text("x")
    Conversion.objects.filter(pk=alices.pk).update(result=str(tmp_path / "secret"))
    assert alice_client.get(reverse("checkpoints:conversion_file", args=[alices.pk])).status_code == 404
    assert "Download" not in alice_client.get(reverse("checkpoints:conversions")).content.decode()


def test_a_deleted_export_takes_its_file_along(alice_client, alices):
    path = alices.result_path
    alice_client.post(reverse("checkpoints:conversion_delete", args=[alices.pk]))
    assert not path.exists() and not Conversion.objects.exists()


def test_a_running_conversion_is_drawn_at_its_newest_event_with_what_is_left(alice_client, alice):
    made = Conversion(owner=alice, direction="import", name="big", source="big.ckpt", status=Status.RUNNING, attempt=1, last_seq=2)
    made.config = {"kind": "original", "source": "/x/big.ckpt", "destination": "checkpoints/big-1", "weights": "auto", "keep_original": True}
    made.save()
    now = timezone.now()
    for seq, done, seconds in ((1, 0, 10), (2, 2_000_000_000, 0)):
        data = {"stage": "converting", "message": "Writing the model folder", "done": done, "total": 8_000_000_000}
        ConversionEvent.objects.create(job=made, seq=seq, attempt=1, type="waiting", at=now - timezone.timedelta(seconds=seconds), data=data)
    page = alice_client.get(reverse("checkpoints:conversion", args=[made.pk])).content.decode()
    assert "Writing the model folder: 2.0 GB of 8.0 GB, 30 s left" in page


def test_a_failed_import_says_what_why_and_what_to_do(alice_client, alice):
    made = Conversion(owner=alice, direction="import", name="x", source="x.ckpt", status=Status.FAILED, error_code="hub.unreachable", error_detail="no way to the hub")
    made.config = {"kind": "hub", "source": "hub:a/b", "destination": "checkpoints/x-1", "weights": "auto", "keep_original": True}
    made.save()
    page = alice_client.get(reverse("checkpoints:conversion", args=[made.pk])).content.decode()
    assert "The hub cannot be reached" in page and "no way to the hub" in page and "Try again" in page


def test_the_equal_command_survives_a_shell_whatever_the_file_is_called(alice_client, alice):
    name = "Über $(touch x) `y` \"z\" it's"
    made = Conversion(owner=alice, direction="import", name=name, source=f"{name}.ckpt", status=Status.SUCCEEDED)
    made.config = {"kind": "original", "source": "/elsewhere", "destination": "checkpoints/x-1", "weights": "raw", "keep_original": False}
    made.save()
    page = html.unescape(alice_client.get(reverse("checkpoints:conversion", args=[made.pk])).content.decode())
    command = page.partition("./manage.py import_checkpoint")[2].partition("</code>")[0]
    assert shlex.split(command) == [f"{name}.ckpt", "--name", name, "--raw", "--slim"]


def test_events_can_be_polled_where_no_socket_gets_through(alice_client, alices):
    ConversionEvent.objects.create(job=alices, seq=1, attempt=1, type="finished", at=timezone.now(), data={})
    answer = alice_client.get(reverse("checkpoints:conversion_events", args=[alices.pk]), {"after": "0"})
    assert [event["type"] for event in answer.json()["events"]] == ["finished"]


# What a page costs


@pytest.mark.parametrize("name", ["checkpoints:index", "checkpoints:conversions"])
def test_a_list_costs_the_same_queries_however_long(name, alice_client, alice, alices, checkpoint, django_assert_max_num_queries):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    def cost() -> int:
        with CaptureQueriesContext(connection, ) as queries:
            assert alice_client.get(reverse(name)).status_code == 200
        return len(queries)

    before = cost()
    for number in range(8):
        Conversion.objects.create(owner=alice, direction="export", name=f"tiny {number}", source="tiny", checkpoint=checkpoint, format="ckpt", status=Status.RUNNING, config=alices.config)
    assert cost() == before


def test_a_checkpoints_page_costs_a_fixed_number_of_queries(alice_client, alice, alices, checkpoint):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert alice_client.get(reverse("checkpoints:checkpoint", args=[checkpoint.pk])).status_code == 200
        return len(queries)

    before = cost()
    for number in range(8):
        Conversion.objects.create(owner=alice, direction="export", name=f"tiny {number}", source="tiny", checkpoint=checkpoint, format="ckpt", status=Status.RUNNING, config=alices.config)
    assert cost() == before


# A checkpoint's page and the admin


def test_a_checkpoint_says_what_it_is_and_why_it_cannot_be_heard(alice_client, checkpoint):
    facts = checkpoint.facts | {"variant": "AudioLDM 2 speech", "why_not": "it speaks from phonemes",
                                "original": {"layout": "D", "weights": "raw", "heads": [4, 8, 12, 20], "source_name": "speech.pth"}}  # fmt: skip
    Checkpoint.objects.filter(pk=checkpoint.pk).update(facts=facts, can_generate=False, can_finetune=False, licence="CC-BY-NC-SA-4.0")
    page = alice_client.get(reverse("checkpoints:checkpoint", args=[checkpoint.pk])).content.decode()
    for words in ("AudioLDM 2 speech", "it speaks from phonemes", "4, 8, 12, 20", "speech.pth", "non-commercial", "an original AudioLDM 2 checkpoint"):
        assert words in page
    assert "Generate with this" not in page and "Fine-tune from this" not in page


@pytest.mark.parametrize(("licence", "expected"), [("CC-BY-NC-SA-4.0", True), ("cc-by-nc-4.0", True), ("non-commercial research", True), ("MIT", False), ("CC0-1.0", False), ("", False), ("Encyclopedia", False)])  # fmt: skip
def test_a_licence_that_forbids_commerce_is_known(licence, expected):
    assert Checkpoint(licence=licence).is_non_commercial is expected


def test_a_large_checkpoint_is_checked_by_the_worker_and_not_while_somebody_waits(alice_client, checkpoint, monkeypatch):
    from training_app import storage

    monkeypatch.setattr(storage, "QUICK_BYTES", 10)
    monkeypatch.setattr(storage, "checkpoint_digest", lambda checkpoint: pytest.fail("hashed in the request"))
    assert alice_client.post(reverse("checkpoints:verify", args=[checkpoint.pk])).status_code == 302


def test_what_was_changed_on_disk_is_remembered(checkpoint):
    from training_app import tasks

    (checkpoint.folder / "model_index.json").write_text("{}")
    tasks.verify_checkpoint(str(checkpoint.pk))
    checkpoint.refresh_from_db()
    assert (checkpoint.damaged, checkpoint.missing) == (True, False)


def test_the_admin_leads_to_the_page_on_which_models_come_in(root_client):
    assert root_client.get(reverse("admin:training_app_checkpoint_add")).url == reverse("checkpoints:import")


def test_the_admin_shows_conversions_and_changes_none(root_client, alices):
    assert root_client.get(reverse("admin:training_app_conversion_changelist")).status_code == 200
    assert root_client.get(reverse("admin:training_app_conversion_change", args=[alices.pk])).status_code == 200
    assert root_client.post(reverse("admin:training_app_conversion_change", args=[alices.pk]), {"name": "x"}).status_code == 403


def test_a_conversion_is_stopped_and_put_back_in_line_in_the_admin(root_client, alice, tiny_zip):
    made = conversions.import_model(sources.look_at(tiny_zip), owner=alice, origin=Checkpoint.Origin.IMPORTED)
    address = reverse("admin:training_app_conversion_changelist")
    for action, status in (("stop", Status.CANCELLED), ("requeue", Status.QUEUED)):
        root_client.post(address, {"action": action, "_selected_action": [str(made.pk)]})
        made.refresh_from_db()
        assert made.status == status
