"""What nobody means to send, and nobody should get an error of the program for."""

from __future__ import annotations

import os

import pytest
from django.core.management import call_command

from audioldm_site import search
from audioldm_site.jobs.live import event_number
from datasets_app.models import Dataset

pytestmark = pytest.mark.django_db


@pytest.fixture
def refused(capsys):
    def run(*args: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            call_command(*args)
        assert caught.value.code == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return run


@pytest.mark.parametrize("text", ["", "-1", "x", "1e3", "²", "٣", "9" * 20, "9" * 5000])
def test_what_is_no_event_number_means_all_events(text):
    assert event_number(text) == 0
    assert event_number("42") == 42


@pytest.mark.parametrize("address", ["/", "/training/", "/generation/", "/checkpoints/"])
def test_a_search_for_thousands_of_words_is_answered(alice_client, address):
    assert alice_client.get(address, {"q": "a " * 2000}).status_code == 200


def test_a_search_has_no_nul():
    assert search.words("a\0b  c") == ["a", "b", "c"]


def test_events_after_a_number_of_thousands_of_digits_are_answered(alice_client, run):
    assert alice_client.get(f"/training/{run.pk}/events/", {"after": "9" * 5000}).status_code == 200


def test_a_detour_does_not_lead_into_the_checkpoints(alice_client, run):
    folder = run.folder / "checkpoints" / "global_step=000001"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    (run.folder / "samples").mkdir()
    for path in ("checkpoints/global_step=000001/checkpoint.json", "samples/../checkpoints/global_step=000001/checkpoint.json"):
        assert alice_client.get(f"/training/{run.pk}/files/{path}").status_code == 404


@pytest.mark.parametrize("command", ["import_dataset", "import_checkpoint"])
def test_a_path_that_the_system_refuses_is_refused_in_words(refused, command, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in ("x" * 300, str(loop), str(tmp_path / "missing")):
        assert ": " in refused(command, path)


def test_a_pipe_is_no_dataset(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refused("import_dataset", str(tmp_path / "pipe")).startswith("dataset.not_a_zip: ")


def test_a_folder_without_metadata_is_refused_before_it_is_copied(refused, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr("shutil.copytree", lambda *args, **kwargs: pytest.fail("copied"))
    assert refused("import_dataset", str(tmp_path / "photos")).startswith("dataset.no_metadata: ")


def test_the_folder_one_stands_in_has_a_name(tmp_path, dataset, monkeypatch, capsys):
    folder = tmp_path / "bells"
    folder.mkdir()
    (folder / "metadata.csv").write_text("audio,caption\na.wav,a bell\n")
    (folder / "a.wav").write_bytes(next(dataset.folder.rglob("*.wav")).read_bytes())
    monkeypatch.chdir(folder)
    call_command("import_dataset", ".")
    assert Dataset.objects.filter(name="bells").exists()


def test_a_name_that_is_not_utf_8_is_refused(refused):
    assert refused("finetune", "--dataset", "\udcff", "--checkpoint", "tiny").startswith("config.invalid: dataset ")


def test_sounds_are_not_made_for_a_folder_that_cannot_be(refused, checkpoint, tmp_path):
    (tmp_path / "file").write_text("x")
    assert refused("generate", "a dog", "--checkpoint", "tiny", "--out", str(tmp_path / "file")).startswith("file.unusable: ")


@pytest.mark.parametrize("address", ["nan", "//elsewhere.example/", "https://elsewhere.example/", "", "x" * 100])
def test_a_clip_leads_back_to_its_dataset_when_the_address_is_garbage(client, dataset, address):
    client.force_login(dataset.owner)
    clip = dataset.clips.first()
    answer = client.post(f"/datasets/{dataset.pk}/clips/{clip.pk}/", {"next": address, "caption": "a bell"})
    assert answer.headers["Location"] == f"/datasets/{dataset.pk}/#clip-{clip.pk}"
