"""Models come in and checkpoints go out, whole or not at all."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from datetime import timedelta

import numpy as np
import pytest
from django.db import connection
from django.utils import timezone
from safetensors.numpy import load_file, save_file

from audioldm_site.jobs import lifecycle, processes
from audioldm_site.jobs.models import Status
from gpu.errors import Fault
from gpu.events import EventWriter, read_events
from gpu.manifest import folder_digest, sha256_of
from gpu.models import CheckpointFacts, describe
from tests.factories import tiny_model
from tests.faults.conftest import wait_for
from tests.training.conftest import attention, zip_of
from training_app import conversions, folders, services, sources, storage, tasks
from training_app.models import Checkpoint, Conversion

pytestmark = pytest.mark.django_db(transaction=True)  # the recorder thread has a connection of its own
UPLOADED, SCANNED, IMPORTED = Checkpoint.Origin.UPLOADED, Checkpoint.Origin.SCANNED, Checkpoint.Origin.IMPORTED


def studio(layer: str, factor: str) -> str:
    return f"{layer}.lora_{factor}.weight"


def leftovers(settings) -> list[str]:
    """Whatever lies where checkpoints and exports appear, below the name that they will have or another."""
    return sorted(path.name for name in ("checkpoints", "exports") for path in (settings.DATA_DIR / name).iterdir())


def uploaded(settings, source, *, name: str):
    """A file as the page keeps it until its owner has chosen."""
    folder = settings.DATA_DIR / "uploads" / "draft"
    folder.mkdir(parents=True)
    return shutil.copyfile(source, folder / name)


# Zips and folders


def test_a_zip_of_a_model_folder_becomes_a_checkpoint_of_its_owner(alice, settings, tiny_zip, carry_out):
    path = uploaded(settings, tiny_zip, name="tiny.zip")
    conversion = carry_out(conversions.import_model(sources.look_at(path), owner=alice, origin=UPLOADED, name="zipped"))

    assert conversion.status == Status.SUCCEEDED
    assert (conversion.checkpoint.name, conversion.checkpoint.owner, conversion.checkpoint.origin) == ("zipped", alice, "uploaded")
    assert conversion.checkpoint.sha256 == folder_digest(tiny_model()) == folder_digest(conversion.checkpoint.folder)
    assert not path.exists()
    assert not (conversion.folder / "source").exists()


def test_the_same_model_again_is_the_same_checkpoint(alice, checkpoint, settings, tiny_zip, carry_out):
    conversion = carry_out(conversions.import_model(sources.look_at(tiny_zip), owner=alice, origin=IMPORTED, name="other name"))
    assert conversion.checkpoint == checkpoint
    assert leftovers(settings) == [checkpoint.folder.name]


def test_what_somebody_else_keeps_to_herself_is_not_given_away(alice, bob, settings, tiny_zip, carry_out):
    first = carry_out(conversions.import_model(sources.look_at(tiny_zip), owner=alice, origin=IMPORTED))
    second = carry_out(conversions.import_model(sources.look_at(tiny_zip), owner=bob, origin=IMPORTED))
    assert first.checkpoint != second.checkpoint
    assert second.checkpoint.owner == bob


def test_a_stop_in_the_middle_leaves_nothing_and_a_retry_begins_anew(alice, settings, tiny_zip, carry_out):
    path = uploaded(settings, tiny_zip, name="tiny.zip")
    conversion = conversions.import_model(sources.look_at(path), owner=alice, origin=UPLOADED)
    lifecycle.claim(conversion, worker_name="w")
    looks = iter([False, False, True])
    with EventWriter(conversion.folder, attempt=1) as events:
        folders.bring_in(conversion, events, lambda: next(looks))

    assert list(read_events(conversion.folder))[-1].type == "stopped"
    assert leftovers(settings) == []

    lifecycle.request_stop(conversion)
    lifecycle.resync(conversion)
    assert conversions.retry(conversion)
    assert carry_out(conversion).status == Status.SUCCEEDED


def test_a_damaged_zip_is_refused_in_words_and_leaves_nothing(alice, settings, tiny_zip, carry_out):
    content = bytearray(tiny_zip.read_bytes())
    content[len(content) // 2] ^= 255
    tiny_zip.write_bytes(content)
    conversion = carry_out(conversions.import_model(sources.look_at(tiny_zip), owner=alice, origin=IMPORTED))
    assert (conversion.status, conversion.error_code) == (Status.FAILED, "checkpoint.incomplete")
    assert leftovers(settings) == []


def test_a_model_whose_parts_come_from_elsewhere_is_refused(alice, tmp_path, settings, carry_out):
    folder = shutil.copytree(tiny_model(), tmp_path / "evil")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "extra": ["antigravity", "Fly"]}))
    with pytest.raises(Fault, match="antigravity"):
        sources.look_at(folder)
    conversion = carry_out(conversions.import_model(sources.look_at(zip_of(folder, tmp_path / "evil.zip")), owner=alice, origin=IMPORTED))
    assert conversion.error_code == "checkpoint.unrecognised"
    assert leftovers(settings) == []


def test_no_room_is_said_before_anything_is_done(alice, settings, tiny_zip, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Fault) as caught:
        conversions.import_model(sources.look_at(tiny_zip), owner=alice, origin=IMPORTED)
    assert (caught.value.code, caught.value.operator) == ("disk.full", True)
    assert not Conversion.objects.exists()
    assert not list((settings.DATA_DIR / "conversions").iterdir())


def test_a_large_folder_of_the_incoming_ones_is_left_to_the_worker(settings, monkeypatch, carry_out):
    monkeypatch.setattr(storage, "QUICK_BYTES", 1000)
    incoming = shutil.copytree(tiny_model(), settings.DATA_DIR / "incoming" / "checkpoints" / "dropped")
    found = conversions.scan()
    assert (found.registered, found.ignored) == ([], [])
    assert conversions.scan().started == []  # it is under way

    conversion = carry_out(found.started[0])

    assert (conversion.checkpoint.name, conversion.checkpoint.owner) == ("dropped", None)
    assert not incoming.exists()


def test_files_of_the_incoming_folder_are_recognised_and_wait(settings, tiny_zip):
    incoming = settings.DATA_DIR / "incoming" / "checkpoints"
    shutil.copyfile(tiny_zip, incoming / "tiny.zip")
    found = conversions.scan()
    assert [(seen.label, seen.kind, seen.title) for seen in found.offered] == [("tiny.zip", "zip", "AudioLDM2Pipeline, zipped")]
    assert not Conversion.objects.exists()


def test_a_file_of_the_incoming_folder_is_set_aside_when_it_has_come_in(settings, tiny_zip, carry_out):
    incoming = settings.DATA_DIR / "incoming" / "checkpoints"
    path = shutil.copyfile(tiny_zip, incoming / "tiny.zip")
    carry_out(conversions.import_model(sources.look_at(path), owner=None, origin=SCANNED))
    assert not path.exists()
    assert (incoming / "imported" / "tiny.zip").is_file()
    assert sources.incoming() == []


@pytest.mark.parametrize("name", ["../../secret_key", "/etc/passwd", "imported", ".hidden", ""])
def test_a_name_from_a_page_never_leads_out_of_the_incoming_folder(settings, name):
    (settings.DATA_DIR / "incoming" / "checkpoints" / ".hidden").write_text("x")
    with pytest.raises(Fault) as caught:
        sources.incoming_path(name)
    assert caught.value.code == "checkpoint.missing"


# LoRAs and runs' checkpoints


def spellings() -> list:
    def diffusers(layer: str, factor: str) -> str:
        return f"unet.{layer}.lora.{'down' if factor == 'A' else 'up'}.weight"

    def kohya(layer: str, factor: str) -> str:
        return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if factor == 'A' else 'up'}.weight"

    def peft(layer: str, factor: str) -> str:
        return f"base_model.model.{layer}.lora_{factor}.default.weight"

    def processor(layer: str, factor: str) -> str:
        site, _, part = layer.removesuffix(".0").rpartition(".")
        return f"{site}.processor.{part}_lora.{'down' if factor == 'A' else 'up'}.weight"

    return [studio, diffusers, kohya, peft, processor]


@pytest.mark.parametrize("spell", spellings(), ids=lambda spell: spell.__name__)
def test_a_lora_is_laid_on_its_base_whatever_its_names(spell, checkpoint, write_lora, tmp_path):
    from training_app import loras

    path = write_lora(spell)
    found = sources.Found(kind="lora", path=path, label=path.name, title="LoRA", facts=_lora_facts(path))
    loras.write_checkpoint(found, checkpoint, tmp_path / "out", report=lambda done, total: None)

    tensors = load_file(tmp_path / "out" / "lora.safetensors")
    assert set(tensors) == {studio(layer, factor) for layer in attention(checkpoint) for factor in "AB"}
    assert all((tensor == 1).all() for tensor in tensors.values())


def _lora_facts(path):
    from types import SimpleNamespace

    return SimpleNamespace(step=None, base_sha256="")


def test_a_lora_becomes_a_runs_checkpoint_that_sounds_are_made_with(alice, checkpoint, write_lora, carry_out):
    found = sources.look_at(write_lora(studio, metadata={"licence": "CC0-1.0", "step": "700"}))
    conversion = carry_out(conversions.import_model(found, owner=alice, origin=IMPORTED, base=checkpoint, name="sparkle"))

    row = conversion.checkpoint
    assert (row.format, row.base, row.method, row.global_step, row.licence) == ("run", checkpoint, "lora", 700, "CC0-1.0")
    assert row.sha256 == sha256_of(row.folder / "lora.safetensors")
    ref = storage.model_ref(row)
    assert (ref.base, ref.weights) == (str(checkpoint.folder), str(row.folder))


def test_the_same_lora_in_other_words_is_the_same_checkpoint(alice, checkpoint, write_lora, carry_out):
    ours, kohya = write_lora(studio), write_lora(spellings()[2], name="kohya.safetensors")
    rows = [carry_out(conversions.import_model(sources.look_at(path), owner=alice, origin=IMPORTED, base=checkpoint)).checkpoint for path in (ours, kohya)]
    assert rows[0] == rows[1]


def test_alpha_is_multiplied_into_the_second_factor(checkpoint, write_lora, tmp_path, alice, carry_out):
    layer = next(iter(attention(checkpoint)))
    path = write_lora(studio, extra={f"{layer}.alpha": np.float32([6.0])})
    row = carry_out(conversions.import_model(sources.look_at(path), owner=alice, origin=IMPORTED, base=checkpoint)).checkpoint
    tensors = load_file(row.folder / "lora.safetensors")
    assert (tensors[studio(layer, "B")] == 3).all()  # alpha 6 / rank 2
    assert (tensors[studio(layer, "A")] == 1).all()


def test_layers_that_a_lora_leaves_alone_stay_as_they_are(checkpoint, tmp_path, alice, carry_out):
    layer, (rows, columns) = next(iter(attention(checkpoint).items()))
    path = tmp_path / "one.safetensors"
    save_file({studio(layer, "A"): np.ones((1, columns), np.float32), studio(layer, "B"): np.ones((rows, 1), np.float32)}, path)
    row = carry_out(conversions.import_model(sources.look_at(path), owner=alice, origin=IMPORTED, base=checkpoint)).checkpoint
    tensors = load_file(row.folder / "lora.safetensors")
    assert [name for name, values in tensors.items() if values.any()] == [studio(layer, "A"), studio(layer, "B")]


def test_a_lora_of_another_model_is_refused_with_the_layer(checkpoint, tmp_path, alice):
    layer, (rows, columns) = next(iter(attention(checkpoint).items()))
    path = tmp_path / "wide.safetensors"
    save_file({studio(layer, "A"): np.ones((1, columns + 1), np.float32), studio(layer, "B"): np.ones((rows, 1), np.float32)}, path)
    with pytest.raises(Fault, match=layer.replace(".", r"\.")) as caught:
        conversions.import_model(sources.look_at(path), owner=alice, origin=IMPORTED, base=checkpoint)
    assert caught.value.code == "checkpoint.mismatch"


def test_a_lora_needs_a_base(write_lora, alice):
    with pytest.raises(Fault) as caught:
        conversions.import_model(sources.look_at(write_lora(studio)), owner=alice, origin=IMPORTED)
    assert caught.value.code == "checkpoint.base_missing"


@pytest.fixture
def runs_checkpoint(checkpoint, tmp_path):
    """The folder of a run's checkpoint on the tiny model, as another studio would hand it over."""
    folder = tmp_path / "global_step=000700"
    folder.mkdir()
    save_file({studio(layer, factor): np.ones((2, shape[1]) if factor == "A" else (shape[0], 2), np.float32)
               for layer, shape in attention(checkpoint).items() for factor in "AB"}, folder / "lora.safetensors")  # fmt: skip
    facts = CheckpointFacts(step=700, method="lora", weights="raw", base="../tiny", base_sha256=checkpoint.sha256,
                            files={"lora.safetensors": sha256_of(folder / "lora.safetensors")}, config={}, metrics={"loss": 0.5}, model=describe(checkpoint.folder).as_dict())  # fmt: skip
    (folder / "checkpoint.json").write_text(json.dumps(facts.as_dict()))
    return folder


def test_a_runs_checkpoint_comes_in_where_its_base_is_registered(runs_checkpoint, checkpoint, carry_out):
    row = carry_out(conversions.import_model(sources.look_at(runs_checkpoint), owner=None, origin=IMPORTED)).checkpoint
    assert (row.name, row.base, row.global_step, row.metrics) == ("global_step=000700", checkpoint, 700, {"loss": 0.5})
    assert runs_checkpoint.is_dir()


def test_a_runs_checkpoint_without_its_base_says_which_one_it_needs(runs_checkpoint, checkpoint):
    Checkpoint.objects.all().delete()
    with pytest.raises(Fault) as caught:
        conversions.import_model(sources.look_at(runs_checkpoint), owner=None, origin=IMPORTED)
    assert caught.value.code == "checkpoint.base_missing"
    assert checkpoint.sha256[:12] in caught.value.message


# What cannot be used is not offered


def test_a_model_that_cannot_speak_is_offered_nowhere_and_refused_with_its_reason(checkpoint, dataset, alice):
    from generation_app import services as generations
    from training_app import selectors

    Checkpoint.objects.update(can_generate=False, can_finetune=False, facts={"why_not": "it speaks from phonemes"})
    checkpoint.refresh_from_db()
    assert list(selectors.playable_checkpoints(alice)) == list(selectors.trainable_checkpoints(alice)) == []
    with pytest.raises(Fault, match="phonemes"):
        services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={})
    with pytest.raises(Fault, match="phonemes"):
        generations.create_generation(owner=alice, checkpoint=checkpoint, values={"prompt": "a dog"})


# Keeping house


def test_old_exports_and_forgotten_uploads_go_and_new_ones_stay(checkpoint, alice, settings):
    made = {}
    for name, days in (("old", conversions.KEPT_DAYS + 1), ("new", 1)):
        row = Conversion(owner=alice, direction="export", name=name, source="tiny", checkpoint=checkpoint, format="ckpt", status=Status.SUCCEEDED)
        row.finished_at = timezone.now() - timedelta(days=days)
        path = settings.DATA_DIR / "exports" / str(row.pk) / "tiny.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
        row.result = path.relative_to(settings.DATA_DIR).as_posix()
        row.save()
        made[name] = row
    conversions.sweep()
    made["old"].refresh_from_db()
    assert made["old"].result == "" and not (settings.DATA_DIR / "exports" / str(made["old"].pk)).exists()
    assert made["new"].result_path.is_file()


def test_a_deleted_import_leaves_its_checkpoint(alice, tiny_zip, carry_out):
    conversion = carry_out(conversions.import_model(sources.look_at(tiny_zip), owner=alice, origin=IMPORTED))
    row = conversion.checkpoint
    conversions.delete_conversion(conversion)
    assert not conversion.folder.exists()
    assert row.folder.is_dir() and Checkpoint.objects.filter(pk=row.pk).exists()


# The converter, in a process of its own


@pytest.fixture
def small(original, settings):
    """The smallest AudioLDM of the original code, and vocabularies for it where an operator would put them."""
    made = original("audioldm-s")
    shutil.copytree(made.tokenizers, settings.DATA_DIR / "tokenizers", dirs_exist_ok=True)
    return made


def test_an_original_comes_in_goes_out_and_is_known_when_it_comes_again(small, alice, settings, carry_out):
    found = sources.look_at(small.path)
    assert (found.kind, found.family, found.weights) == ("original", "audioldm", "ema")
    first = carry_out(conversions.import_model(found, owner=alice, origin=IMPORTED, name="small"))
    assert (first.status, first.error_detail) == (Status.SUCCEEDED, "")
    row = first.checkpoint
    assert (row.name, row.family, row.can_generate, row.sha256) == ("small", "audioldm", True, folder_digest(row.folder))
    assert row.is_non_commercial

    again = carry_out(conversions.import_model(found, owner=alice, origin=IMPORTED, name="small again"))
    assert again.checkpoint == row
    assert leftovers(settings) == [row.folder.name]

    export = carry_out(conversions.export_model(row, owner=alice, format="ckpt"))
    assert (export.status, export.error_detail) == (Status.SUCCEEDED, "")
    assert export.sha256 == sha256_of(export.result_path)
    assert sources.look_at(export.result_path).title == found.title


def test_what_was_made_of_an_original_since_is_not_taken_for_it(small, alice, settings, carry_out):
    # Both lack what only the original layout needs, and both name the same original file; the values of the second are fp16.
    slim = carry_out(conversions.import_model(sources.look_at(small.path), owner=alice, origin=IMPORTED, name="slim", keep_original=False)).checkpoint
    whole = carry_out(conversions.export_model(slim, owner=alice, format="safetensors")).result_path
    half = carry_out(conversions.import_model(sources.look_at(whole), owner=alice, origin=IMPORTED, name="half")).checkpoint
    assert (half.name, half == slim) == ("half", False)
    assert half.size_bytes < 0.6 * slim.size_bytes

    Checkpoint.objects.filter(pk=slim.pk).delete()
    shutil.rmtree(slim.folder)
    again = carry_out(conversions.import_model(sources.look_at(small.path), owner=alice, origin=IMPORTED, name="again", keep_original=False)).checkpoint
    assert again.name == "again"


def supervised(conversion: Conversion) -> threading.Thread:
    """The conversion carried out by a thread, as soon as its converter writes."""
    assert lifecycle.claim(conversion, worker_name="w")

    def work() -> None:
        try:
            tasks.execute_conversion(Conversion.objects.get(pk=conversion.pk), worker_name="w")
        finally:
            connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    home = (storage.settings.DATA_DIR / conversion.config["destination"]).parent
    wait_for(lambda: list(home.glob(".tmp-*")), seconds=120)
    return thread


def test_a_converter_that_is_killed_or_stopped_leaves_nothing_and_can_begin_anew(small, alice, settings):
    conversion = conversions.import_model(sources.look_at(small.path), owner=alice, origin=IMPORTED, name="small")
    thread = supervised(conversion)
    for process in processes.processes_of(conversion):
        process.send_signal(signal.SIGKILL)
    thread.join()
    conversion.refresh_from_db()
    assert (conversion.status, conversion.error_code) == (Status.FAILED, "process.died")
    assert leftovers(settings) == []

    assert conversions.retry(conversion)
    thread = supervised(conversion)
    assert conversions.request_stop(conversion)
    thread.join()
    conversion.refresh_from_db()
    assert conversion.status in (Status.CANCELLED, Status.SUCCEEDED)  # it may have been faster than the stop
    assert leftovers(settings) == ([] if conversion.status == Status.CANCELLED else [conversion.checkpoint.folder.name])
    assert small.path.is_file()
