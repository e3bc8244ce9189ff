"""What of a model is kept when it comes in, what is refused, and when it is one that is here already."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from django.core.management import call_command
from django.urls import reverse
from safetensors.numpy import load_file, save_file

from audioldm_site.jobs.models import Status
from gpu.config import ExportJob, ModelRef
from gpu.errors import Fault
from gpu.manifest import folder_digest, sha256_of
from gpu.models import CheckpointFacts, describe, read_checkpoint
from gpu.originals.contents import digests
from gpu.originals.export import export
from tests.factories import tiny_model
from tests.training.conftest import attention, zip_of
from tests.training.test_conversions import leftovers, studio
from training_app import conversions, sources, storage
from training_app.models import Checkpoint

pytestmark = pytest.mark.django_db(transaction=True)  # the recorder thread has a connection of its own
IMPORTED, SCANNED = Checkpoint.Origin.IMPORTED, Checkpoint.Origin.SCANNED


def everything(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def littered(folder):
    shutil.copytree(tiny_model(), folder)
    (folder / "unet" / "evil.py").write_text("import os")
    (folder / "vae" / "adapter_config.json").write_text("{}")
    (folder / "notebook.ipynb").write_text("{}")
    (folder / "optimizer.bin").write_bytes(b"a pickle")
    return folder


def spoilt(folder):
    shutil.copytree(tiny_model(), folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.bias"][:2] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def bring_in(carry_out, path, *, name: str = "", origin: str = IMPORTED, **about):
    return carry_out(conversions.import_model(sources.look_at(path), owner=None, origin=origin, name=name, **about))


# What does not belong to it


def test_a_folder_and_a_zip_come_in_without_what_does_not_belong_to_them(settings, tmp_path, carry_out):
    folder = littered(tmp_path / "model")
    first = bring_in(carry_out, folder).checkpoint
    assert everything(first.folder) == everything(tiny_model())
    assert first.sha256 == folder_digest(tiny_model()) == folder_digest(first.folder)
    assert first.size_bytes == sum((tiny_model() / name).stat().st_size for name in everything(tiny_model()))
    again = bring_in(carry_out, zip_of(folder, tmp_path / "model.zip"), name="zipped")
    assert (again.checkpoint, again.already_here) == (first, True)
    assert leftovers(settings) == [first.folder.name]


@pytest.mark.parametrize("way", ["scan", "worker"])
def test_what_does_not_belong_to_a_dropped_folder_is_set_aside(settings, carry_out, way):
    incoming = sources.incoming_folder()
    folder = littered(incoming / "model")
    if way == "scan":
        assert [row.name for row in conversions.scan().registered] == ["model"]
    else:
        assert bring_in(carry_out, folder, origin=SCANNED).status == Status.SUCCEEDED
    row = Checkpoint.objects.get()
    assert everything(row.folder) == everything(tiny_model())
    assert everything(incoming) == {f"imported/model/{name}" for name in ("unet/evil.py", "vae/adapter_config.json", "notebook.ipynb", "optimizer.bin")}
    assert storage.verify(row)


# Weights that are no numbers


@pytest.mark.parametrize("form", ["folder", "zip", "scanned"])
def test_a_model_with_weights_that_are_no_numbers_is_refused_and_leaves_nothing(settings, tmp_path, carry_out, form):
    if form == "scanned":
        spoilt(sources.incoming_folder() / "model")
        ((code, message),) = [(item["code"], item["message"]) for item in conversions.scan().ignored]
    else:
        path = spoilt(tmp_path / "model")
        conversion = bring_in(carry_out, zip_of(path, tmp_path / "model.zip") if form == "zip" else path)
        code, message = conversion.error_code, conversion.error_detail
    assert code == "checkpoint.not_finite"
    assert "2 of 4 values of conv_out.bias" in message
    assert leftovers(settings) == []


@pytest.mark.parametrize("where", ["a factor", "the alpha of the file"])
def test_a_lora_with_values_that_are_no_numbers_is_refused(settings, checkpoint, write_lora, carry_out, where):
    path = write_lora(studio, metadata={"alpha": "nan"} if where != "a factor" else None)
    if where == "a factor":
        tensors = load_file(path)
        next(iter(tensors.values()))[0, 0] = np.inf
        save_file(tensors, path)
    conversion = bring_in(carry_out, path, base=checkpoint)
    assert (conversion.status, conversion.error_code) == (Status.FAILED, "checkpoint.not_finite")
    assert leftovers(settings) == [checkpoint.folder.name]


# Here already


def test_one_file_twice_under_two_names_is_one_model_and_said(settings, tmp_path, carry_out, capsys, api_of_alice, alice_client):
    whole = export(ExportJob(model=ModelRef(base=str(tiny_model())), format="safetensors", destination=str(tmp_path / "whole.safetensors")), lambda *_: None)
    first = bring_in(carry_out, whole, name="first")
    second = bring_in(carry_out, shutil.copyfile(whole, tmp_path / "other.safetensors"), name="second")
    assert (first.status, first.already_here, second.status, second.already_here) == (Status.SUCCEEDED, False, Status.SUCCEEDED, True)
    assert second.checkpoint == first.checkpoint
    assert leftovers(settings) == [first.checkpoint.folder.name]
    assert "already here as first" in alice_client.get(reverse("checkpoints:conversion", args=[second.pk])).content.decode()
    assert "already here" not in alice_client.get(reverse("checkpoints:conversion", args=[first.pk])).content.decode()
    assert [api_of_alice("get", f"conversions/{row.pk}").json()["already_here"] for row in (first, second)] == [False, True]


def test_the_command_says_that_a_model_is_here_already(checkpoint, tmp_path, capsys):
    folder = shutil.copytree(tiny_model(), tmp_path / "other")
    (folder / "README.md").write_text("another card")
    call_command("import_checkpoint", str(folder), "--name", "other")
    assert "This model is already here as tiny; nothing was stored twice." in capsys.readouterr().out
    assert [row.name for row in Checkpoint.objects.all()] == ["tiny"]


def test_a_row_from_before_contents_were_noted_is_known_again(checkpoint, tmp_path, carry_out):
    Checkpoint.objects.update(facts=describe(checkpoint.folder).as_dict())
    folder = shutil.copytree(tiny_model(), tmp_path / "other")
    (folder / "LICENSE").write_text("mine")
    assert bring_in(carry_out, folder).checkpoint == checkpoint
    checkpoint.refresh_from_db()
    assert checkpoint.facts["content_sha256"] == digests(tiny_model()).content


# A run's checkpoint and its base


def runs_checkpoint(folder, checkpoint, **model):
    folder.mkdir()
    save_file({studio(layer, factor): np.ones((2, shape[1]) if factor == "A" else (shape[0], 2), np.float32)
               for layer, shape in attention(checkpoint).items() for factor in "AB"}, folder / "lora.safetensors")  # fmt: skip
    (folder / "resume.pt").write_bytes(b"a pickle")
    facts = CheckpointFacts(
        step=700, method="lora", weights="raw", base="../elsewhere", base_sha256="0" * 64, config={}, metrics={},
        files={name: sha256_of(folder / name) for name in ("lora.safetensors", "resume.pt")}, model={**describe(checkpoint.folder).as_dict(), **model},
    )  # fmt: skip
    (folder / "checkpoint.json").write_text(json.dumps(facts.as_dict()))
    return folder


@pytest.mark.parametrize("form", ["folder", "zip", "scanned"])
def test_a_runs_checkpoint_finds_its_base_by_weights_and_lies_on_it_from_then_on(checkpoint, tmp_path, carry_out, form):
    home = sources.incoming_folder() if form == "scanned" else tmp_path
    folder = runs_checkpoint(home / "step", checkpoint, weights_sha256=digests(checkpoint.folder).weights)
    if form == "scanned":
        (row,) = conversions.scan().registered
    else:
        row = bring_in(carry_out, zip_of(folder, tmp_path / "step.zip") if form == "zip" else folder).checkpoint
    assert row.base == checkpoint
    assert everything(row.folder) == {"checkpoint.json", "lora.safetensors"}
    assert read_checkpoint(row.folder).base_sha256 == checkpoint.sha256
    assert storage.verify(row)


def test_a_runs_checkpoint_from_before_weights_were_noted_finds_its_base_by_the_original_file(checkpoint, tmp_path):
    original = {"source_sha256": "a" * 64, "weights": "ema", "layout": "A"}
    Checkpoint.objects.update(facts={**checkpoint.facts, "original": original})
    facts = read_checkpoint(runs_checkpoint(tmp_path / "step", checkpoint, original=original))
    assert storage.base_model(facts, owner=None) == checkpoint


@pytest.mark.parametrize("model", [{"weights_sha256": "b" * 64}, {}, {"original": {"source_sha256": "c" * 64}}])
def test_another_base_of_the_same_sizes_is_not_taken(checkpoint, tmp_path, model):
    facts = read_checkpoint(runs_checkpoint(tmp_path / "step", checkpoint, **model))
    with pytest.raises(Fault) as caught:
        storage.base_model(facts, owner=None)
    assert caught.value.code == "checkpoint.base_missing"


@pytest.fixture
def api_of_alice(alice):
    from audioldm_site.accounts import tokens
    from audioldm_site.accounts.models import ApiToken
    from tests.api.conftest import Caller

    return Caller(tokens.create_token(user=alice, name="test", scope=ApiToken.Scope.WRITE)[1])


def test_the_api_takes_the_hubs_name_as_it_is_written(api_of_alice):
    answer = api_of_alice("post", "conversions/import", {"source": "hub:someone/model"})
    assert (answer.status_code, answer.json()["source"]) == (202, "hub:someone/model")


# A sound that is silence


def test_a_silent_sound_is_marked_on_its_page(checkpoint, alice, alice_client):
    from generation_app import services as generations
    from generation_app.models import Waveform

    generation = generations.create_generation(owner=alice, checkpoint=checkpoint, values={"prompt": "a dog"}, enqueue=False)
    Waveform.objects.create(generation=generation, index=0, seed=1, audio="0.wav", sha256="0" * 64, duration_s=1.0, sample_rate_hz=16_000, flags=["silent"])
    page = alice_client.get(reverse("generation:generation", args=[generation.pk])).content.decode()
    assert '<span class="tag tag-warn">silent</span>' in page
