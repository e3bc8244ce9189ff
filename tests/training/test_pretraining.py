"""A pretraining as a job: stopped, taken up again and finished by a worker; its page, its row, its command."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection
from django.urls import reverse

from audioldm_site.jobs import lifecycle
from audioldm_site.jobs.models import Status
from audioldm_site.maintenance.storage_check import check_storage
from gpu.errors import Fault
from gpu.events import CHECKPOINT, FINISHED, PROGRESS, SAMPLE, STARTED, STOPPED, Event, EventTail
from tests.gpu.test_pretrain import corpus_files, recipe_file, toy_hifigan  # noqa: F401
from training_app import pretraining, services, tasks
from training_app.models import Checkpoint, TrainingRun

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def recipe(recipe_file) -> Path:  # noqa: F811
    """The miniature, long enough in its last stage to be met there, with one sound at its end."""
    raw = json.loads(recipe_file.read_text())
    raw["clap"]["max_train_steps"], raw["diffusion"]["max_train_steps"] = 6, 40
    raw["samples"] = {"prompts": ["a siren"], "every_steps": 1000}
    raw["studio"]["defaults"] = {"num_inference_steps": 2, "audio_length_in_s": 0.5}
    recipe_file.write_text(json.dumps(raw))
    return recipe_file


@pytest.fixture
def run(recipe, corpus_files, alice) -> TrainingRun:  # noqa: F811
    return pretraining.create_pretraining(owner=alice, recipe=recipe, data=[corpus_files[0]], enqueue=False)


def work(run: TrainingRun) -> None:
    """Carry the run out as the worker does."""
    assert lifecycle.claim(run, worker_name="w")
    tasks.execute_run(run, worker_name="w")
    run.refresh_from_db()


@contextmanager
def stopped_in(stage: str, run: TrainingRun) -> Iterator[None]:
    """Within it the run's owner presses Stop and save once it is in a stage."""
    left = threading.Event()

    def watch() -> None:
        tail = EventTail(run.folder)
        while not left.wait(0.02):
            if any(event.type == PROGRESS and event.data["stage"] == stage for event in tail.read()):
                services.request_stop(TrainingRun.objects.get(pk=run.pk))
                # As its supervisor does within half a second: the miniature might have ended by then.
                (run.folder / "control" / "stop").write_text("save")
                break
        connection.close()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def test_a_pretraining_that_was_stopped_goes_on_to_a_model(run, alice_client, tmp_path, toy_hifigan, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with stopped_in("diffusion", run):
        work(run)
    assert run.status == Status.CANCELLED, run.error_detail
    stopped = run.events.get(type=STOPPED).data
    assert stopped["saved"] and 10 < stopped["step"] < 50

    assert services.resume(run)
    work(run)
    assert run.status == Status.SUCCEEDED, run.error_detail
    assert [event.data["step"] for event in run.events.filter(type=STARTED)] == [0, stopped["step"]]
    assert run.events.filter(type=FINISHED).exists() and run.global_step == 50
    sample = run.events.get(type=SAMPLE).data
    assert (run.folder / sample["audio"]).is_file() and sample["prompt"] == "a siren"

    model = run.checkpoints.get()
    assert (model.origin, model.format, model.name) == (Checkpoint.Origin.RUN, Checkpoint.Format.DIFFUSERS, "miniature")
    assert model in Checkpoint.objects.playable() and model in Checkpoint.objects.trainable() and model.folder.is_dir()
    assert run.events.get(type=CHECKPOINT).data["size_bytes"] == model.size_bytes

    page = alice_client.get(reverse("training:run", args=[run.pk])).content.decode()
    assert page.count('data-state="done"') == 3 and "a siren" in page and reverse("checkpoints:checkpoint", args=[model.pk]) in page
    assert alice_client.get(reverse("checkpoints:checkpoint", args=[model.pk])).status_code == 200
    events = alice_client.get(reverse("training:events", args=[run.pk])).json()["events"]
    assert {event["data"].get("stage") for event in events if event["type"] == PROGRESS} == {"vae", "clap", "diffusion"}


def test_a_pretraining_in_line_shows_its_kind_and_its_stages(run, alice_client, client, charlie):
    page = alice_client.get(reverse("training:run", args=[run.pk])).content.decode()
    assert page.count('data-state="waiting"') == 3 and "pretraining" in page and "from nothing" in page
    assert "pretraining" in alice_client.get(reverse("training:index")).content.decode()
    assert alice_client.get(reverse("training:clone", args=[run.pk])).status_code == 404

    client.force_login(charlie)
    assert client.get(reverse("training:run", args=[run.pk])).status_code == 404


def test_a_stage_is_active_when_the_one_before_it_is_done(run, alice_client):
    assert lifecycle.claim(run, worker_name="w")
    said = {"step": 5, "max_steps": 50, "stage": "clap", "stage_step": 1, "stage_max_steps": 6, "loss": 1.5, "loss_smooth": 1.5}
    lifecycle.record_events(run, [Event(seq=1, attempt=1, type=PROGRESS, at="2026-11-22T13:00:00.000+00:00", data=said)])

    found = pretraining.stage_list(run, {"progress": {"step": [5], "loss_smooth": [1.5]}})

    assert [(stage["state"], stage["done"], stage["losses"]) for stage in found] == [("done", 4, []), ("active", 1, [1.5]), ("waiting", 0, [])]
    assert alice_client.get(reverse("training:run", args=[run.pk])).content.decode().count('data-state="active"') == 1


def test_a_pretraining_needs_its_recipe_and_no_list_of_clips(run):
    assert list(check_storage()) == []

    (run.folder / "recipe.json").unlink()

    assert [finding.code for finding in check_storage()] == ["storage.missing"]


def test_the_command_puts_a_pretraining_in_line(recipe, corpus_files, capsys):  # noqa: F811
    call_command("pretrain", str(recipe), "--data", str(corpus_files[0]), "--name", "mine", "--detach", "--json")

    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["status"], told["max_train_steps"]) == ("mine", "queued", 4 + 6 + 40)
    assert (Path(told["folder"]) / "recipe.json").is_file()


def test_recordings_without_a_registry_are_refused_before_anything_is_made(recipe, corpus_files, tmp_path):  # noqa: F811
    lonely = tmp_path / "lonely.zip"
    lonely.write_bytes(corpus_files[0].read_bytes())

    with pytest.raises(Fault, match=r"lonely\.csv") as caught:
        pretraining.create_pretraining(owner=None, recipe=recipe, data=[lonely])

    assert caught.value.code == "pretrain.data_unusable" and not TrainingRun.objects.exists()


def test_a_recipe_that_lacks_a_stage_is_refused(recipe, corpus_files):  # noqa: F811
    raw = json.loads(recipe.read_text())
    del raw["clap"]
    recipe.write_text(json.dumps(raw))

    with pytest.raises(Fault, match="clap") as caught:
        pretraining.create_pretraining(owner=None, recipe=recipe, data=[corpus_files[0]])

    assert caught.value.code == "pretrain.recipe_invalid"
