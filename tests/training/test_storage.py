import json
import shutil

import pytest

from gpu.errors import Fault
from gpu.manifest import folder_digest
from tests.factories import tiny_model
from training_app import conversions, storage
from training_app.models import Checkpoint

pytestmark = pytest.mark.django_db


def test_a_model_from_elsewhere_is_copied_in(checkpoint, settings):
    assert checkpoint.folder.is_relative_to(settings.DATA_DIR / "checkpoints")
    assert tiny_model().is_dir()
    assert checkpoint.sha256 == folder_digest(checkpoint.folder) == folder_digest(tiny_model())
    assert (checkpoint.family, checkpoint.facts["sample_rate_hz"]) == ("audioldm2", 16_000)


def test_the_same_model_twice_is_one_checkpoint(checkpoint):
    again = storage.register_checkpoint(tiny_model(), origin=Checkpoint.Origin.IMPORTED, name="other name")
    assert again == checkpoint


def test_scanning_registers_models_and_names_what_is_not_one(settings):
    incoming = settings.DATA_DIR / "incoming" / "checkpoints"
    shutil.copytree(tiny_model(), incoming / "dropped")
    (incoming / "notes.txt").write_text("hello")
    (incoming / "linked").symlink_to("/etc")
    registered, ignored = conversions.scan()[::3]
    assert [checkpoint.name for checkpoint in registered] == ["dropped"]
    assert {item["path"]: item["code"] for item in ignored} == {"notes.txt": "checkpoint.unrecognised", "linked": "checkpoint.link"}
    assert not (incoming / "dropped").exists()


def test_scanning_a_second_copy_says_which_checkpoint_it_is(settings):
    incoming = settings.DATA_DIR / "incoming" / "checkpoints"
    shutil.copytree(tiny_model(), incoming / "first")
    conversions.scan()
    shutil.copytree(tiny_model(), incoming / "second")

    registered, ignored = conversions.scan()[::3]

    assert registered == []
    assert ignored == [{"path": "second", "code": "checkpoint.known", "message": "its content is already the checkpoint first"}]


def test_a_checkpoint_that_was_changed_on_disk_fails_verification(checkpoint):
    assert storage.verify(checkpoint)
    weights = next(checkpoint.folder.rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not storage.verify(checkpoint)


def test_files_that_vanish_and_return_are_noticed(checkpoint, settings):
    aside = settings.DATA_DIR / "aside"
    checkpoint.folder.rename(aside)
    storage.mark_missing()
    assert not Checkpoint.objects.usable().exists()
    aside.rename(checkpoint.folder)
    storage.mark_missing()
    assert Checkpoint.objects.usable().exists()


def test_a_full_disk_refuses_before_copying(settings, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Fault) as caught:
        storage.register_checkpoint(tiny_model(), origin=Checkpoint.Origin.IMPORTED)
    assert (caught.value.code, caught.value.operator) == ("disk.full", True)
    assert not list((settings.DATA_DIR / "checkpoints").iterdir())


def test_what_a_model_recommends_is_limited_to_parameters(checkpoint):
    Checkpoint.objects.filter(pk=checkpoint.pk).update(defaults={"audio_length_in_s": 2.6, "colour": "blue"})
    checkpoint.refresh_from_db()
    assert storage.recommended(checkpoint) == {"audio_length_in_s": 2.6}


def test_a_newer_starter_takes_the_name_and_the_older_one_stays(tmp_path):
    first = storage.ensure_starter(tiny_model())
    newer = shutil.copytree(tiny_model(), tmp_path / "newer")
    index = json.loads((newer / "model_index.json").read_text())
    (newer / "model_index.json").write_text(json.dumps(index) + "\n\n")
    second = storage.ensure_starter(newer)
    first.refresh_from_db()
    assert second.name == "starter"
    assert first.name.startswith("starter of ")
    assert storage.ensure_starter(newer) == second
