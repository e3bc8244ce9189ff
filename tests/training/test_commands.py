"""Models in and out from the terminal: `--json` on stdout, faults as `code: words` with exit code 1, real child processes."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from django.core.management import call_command

from gpu.models import describe
from tests.factories import tiny_model
from tests.training.test_conversions import studio
from training_app.models import Checkpoint, Conversion

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def call(capsys):
    def run(*args: str) -> dict:
        capsys.readouterr()
        call_command(*args, "--json")
        return json.loads(capsys.readouterr().out)

    return run


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


def test_a_folder_comes_in_and_its_facts_are_told(call):
    result = call("import_checkpoint", str(tiny_model()), "--name", "tiny", "--licence", "CC0-1.0")
    assert (result["name"], result["family"], result["licence"], result["can_generate"]) == ("tiny", "audioldm2", "CC0-1.0", True)
    assert Checkpoint.objects.get(pk=result["id"]).folder.is_dir()
    assert call("import_checkpoint", str(tiny_model()), "--name", "again")["id"] == result["id"]


def test_a_lora_comes_in_over_the_base_that_is_named(call, checkpoint, write_lora):
    result = call("import_checkpoint", str(write_lora(studio)), "--base", "tiny", "--name", "sparkle")
    assert (result["name"], result["format"]) == ("sparkle", "run")


def test_a_lora_without_a_base_is_refused(refused, checkpoint, write_lora):
    assert refused("import_checkpoint", str(write_lora(studio))).startswith("checkpoint.base_missing: ")


def test_a_file_that_is_no_model_is_refused_with_what_was_expected(refused, tmp_path):
    (tmp_path / "song.ckpt").write_bytes(b"RIFF" + b"\0" * 100)
    said = refused("import_checkpoint", str(tmp_path / "song.ckpt"))
    assert said.startswith("checkpoint.unrecognised: ")
    assert not Conversion.objects.exists()


def test_a_name_that_is_no_repository_is_refused(refused):
    assert refused("import_checkpoint", "hub:../etc").startswith("config.invalid: ")


def test_a_model_goes_out_as_a_folder_and_is_never_written_over(call, refused, checkpoint, tmp_path):
    result = call("export_checkpoint", "tiny", "--format", "diffusers", "--out", str(tmp_path / "out"))
    assert result["path"] == str(tmp_path / "out")
    assert describe(tmp_path / "out").parameters == describe(checkpoint.folder).parameters
    assert refused("export_checkpoint", "tiny", "--format", "diffusers", "--out", str(tmp_path / "out")).splitlines()[-1].startswith("file.exists: ")


def test_a_form_that_cannot_hold_it_is_refused_with_the_reason(refused, checkpoint, tmp_path):
    for form, reason in (("ckpt", "was not brought in from an original checkpoint"), ("lora", "is a whole model")):
        said = refused("export_checkpoint", "tiny", "--format", form, "--out", str(tmp_path / "out"))
        assert said.startswith("checkpoint.not_exportable: ") and reason in said
    assert not (tmp_path / "out").exists()


def test_scan_storage_says_what_the_files_are(call, settings, tiny_zip):
    incoming = settings.DATA_DIR / "incoming" / "checkpoints"
    shutil.copyfile(tiny_zip, incoming / "tiny.zip")
    shutil.copytree(tiny_model(), incoming / "folder")
    (incoming / "notes.txt").write_text("hello")
    result = call("scan_storage")
    assert [item["name"] for item in result["checkpoints"]] == ["folder"]
    assert [(Path(item["path"]).name, item["title"]) for item in result["files"]] == [("tiny.zip", "AudioLDM2Pipeline, zipped")]
    assert [item["path"] for item in result["ignored"]] == ["notes.txt"]


def test_a_folder_for_the_browser_is_one_uncompressed_zip(checkpoint, alice, carry_out):
    from training_app import conversions

    made = carry_out(conversions.export_model(checkpoint, owner=alice, format="diffusers"))
    assert made.error_detail == ""
    with zipfile.ZipFile(made.result_path) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert "tiny/model_index.json" in archive.namelist()
        assert archive.testzip() is None
    assert [path.name for path in made.result_path.parent.iterdir()] == ["tiny.zip"]
