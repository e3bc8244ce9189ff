"""What is said of a run before it is made, on the page and in the terminal, and what is refused."""

from __future__ import annotations

import json

import pytest
from django.core.management import call_command
from django.urls import reverse

from audioldm_site.jobs import lifecycle
from gpu.config import FinetuneConfig
from gpu.errors import Fault
from gpu.events import EventWriter
from training_app import preflight, services
from training_app.models import TrainingRun

# The tiny model's own activations for a thousand sounds of two minutes are more than any machine of ours has.
HUGE = {"train_batch_size": 1024, "audio_length_in_s": 120.0}


def form_values(dataset, checkpoint, **values):
    config = {name: value for name, value in FinetuneConfig().to_dict().items() if value is not False and value != []}
    return {**config, "dataset": dataset.pk, "checkpoint": checkpoint.pk, **values}


def test_the_check_shows_memory_time_and_disk_and_starts_nothing(alice_client, dataset, checkpoint):
    answer = alice_client.post(reverse("training:new"), form_values(dataset, checkpoint, audio_length_in_s=1.0, check="1"))
    page = answer.content.decode()
    assert answer.status_code == 200
    assert "<strong>Memory: fits.</strong>" in page
    assert "s a step" in page
    assert "scaled from another machine" in page
    assert not TrainingRun.objects.exists()


def test_a_check_of_wrong_values_says_to_mend_them_first(alice_client, dataset, checkpoint):
    answer = alice_client.post(reverse("training:new"), form_values(dataset, checkpoint, learning_rate=-1, check="1"))
    assert answer.status_code == 200
    assert "then check again" in answer.content.decode()


def test_a_check_without_a_dataset_says_so_at_the_field(alice_client, dataset, checkpoint):
    answer = alice_client.post(reverse("training:new"), form_values(dataset, checkpoint, check="1") | {"dataset": ""})
    page = answer.content.decode()
    assert answer.status_code == 200
    assert "mend what is marked (Dataset), then check again" in page
    assert "Choose the dataset to train on." in page.split('data-field="dataset"')[1].split("data-field=")[0]


def test_a_precision_that_needs_a_gpu_is_marked_at_its_field(alice_client, dataset, checkpoint, monkeypatch):
    monkeypatch.setattr(preflight.hardware, "gpus", list)
    answer = alice_client.post(reverse("training:new"), form_values(dataset, checkpoint, mixed_precision="fp16", check="1"))
    page = answer.content.decode()
    assert answer.status_code == 200
    assert "mixed_precision (fp16) needs a GPU" in page.split('data-field="mixed_precision"')[1].split("data-field=")[0]
    assert 'data-suggestion="{&quot;mixed_precision&quot;: &quot;auto&quot;}"' in page
    assert 'name="force"' not in page


def test_a_run_that_cannot_fit_is_refused_and_shown_with_the_box_that_overrules(alice_client, dataset, checkpoint):
    answer = alice_client.post(reverse("training:new"), form_values(dataset, checkpoint, **HUGE))
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "does not fit" in page
    assert 'name="force"' in page
    assert not TrainingRun.objects.exists()


def test_the_box_overrules_the_estimate(alice_client, dataset, checkpoint):
    answer = alice_client.post(reverse("training:new"), form_values(dataset, checkpoint, force="1", **HUGE))
    assert answer.status_code == 302
    assert TrainingRun.objects.get().config["train_batch_size"] == 1024


def test_what_this_machine_cannot_do_at_all_is_not_overruled(dataset, checkpoint, alice, monkeypatch):
    monkeypatch.setattr(preflight.hardware, "gpus", list)
    with pytest.raises(Fault, match="mixed_precision \\(fp16\\) needs a GPU") as caught:
        services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={"mixed_precision": "fp16"}, force=True)
    assert caught.value.code == "preflight.refused"


def test_the_terminal_says_the_estimate_and_refuses_alike(dataset, checkpoint, capsys):
    with pytest.raises(SystemExit):
        call_command("finetune", dataset=dataset.name, checkpoint=checkpoint.name, detach=True, **HUGE)
    assert capsys.readouterr().err.startswith("preflight.refused: it needs about")

    call_command("finetune", "--force", dataset=dataset.name, checkpoint=checkpoint.name, detach=True, json=True, **HUGE)
    said = capsys.readouterr()
    assert "memory does not fit: about" in said.err
    assert json.loads(said.out)["status"] == "queued"


def test_an_earlier_run_of_the_same_kind_here_is_believed(dataset, checkpoint, alice):
    values = {"max_train_steps": 10, "train_batch_size": 2, "audio_length_in_s": 1.0}
    run = services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values=values)
    here = preflight.machine()
    assert lifecycle.claim(run, worker_name="w")
    with EventWriter(run.folder, attempt=run.attempt) as events:
        lifecycle.record_events(
            run,
            [
                events.write("started", step=0, max_steps=10, device=f"{here.name}, 2 threads"),
                events.write("progress", step=1, max_steps=10, loss=1.0, memory_bytes=600_000_000, gpu_memory_bytes=600_000_000, clips_per_second=4.0),
                events.write("progress", step=2, max_steps=10, loss=1.0, memory_bytes=500_000_000, gpu_memory_bytes=500_000_000, clips_per_second=8.0),
            ],
        )

    found = preflight.check(dataset=dataset, checkpoint=checkpoint, config=FinetuneConfig.parse(values))
    assert (found.memory_bytes, found.memory_basis) == (600_000_000, "measured on this machine")
    # Two sounds a step, eight a second.
    assert (found.step_s, found.total_s, found.time_basis) == (0.25, 2.5, "measured on this machine")

    # Half as many sounds are faster, but not twice: kernels are called as often. Their memory is another.
    other = preflight.check(dataset=dataset, checkpoint=checkpoint, config=FinetuneConfig.parse({**values, "train_batch_size": 1}))
    assert (other.memory_basis, other.time_basis) == ("counted from the model", "scaled from another run on this machine")
    assert 0.125 < other.step_s < 0.25

    full = preflight.check(dataset=dataset, checkpoint=checkpoint, config=FinetuneConfig.parse({**values, "method": "full"}))
    assert full.time_basis == "scaled from another machine"


def test_the_step_before_the_first_of_an_earlier_run_is_believed_already(dataset, checkpoint, alice):
    run = services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={"max_train_steps": 600})
    assert lifecycle.claim(run, worker_name="w")
    with EventWriter(run.folder, attempt=run.attempt) as events:
        device = f"{preflight.machine().name}, 2 threads"
        lifecycle.record_events(run, [events.write("waiting", stage="preflight", message="a step fits", memory_bytes=3_000_000_000, step_s=0.34, device=device)])
    words = preflight.of_run(run)
    assert "0.34 s a step, 3 min 24 s in all (measured on this machine)" in words


def test_what_another_machine_took_is_not_believed(dataset, checkpoint, alice):
    run = services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={})
    assert lifecycle.claim(run, worker_name="w")
    with EventWriter(run.folder, attempt=run.attempt) as events:
        lifecycle.record_events(run, [events.write("waiting", stage="preflight", message="a step fits", memory_bytes=1, step_s=0.34, device="Another, 8 threads")])
    assert "scaled from another machine" in preflight.of_run(run)


def test_the_run_page_shows_what_the_first_step_took(alice_client, dataset, checkpoint, alice):
    run = services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={"max_train_steps": 10})
    assert lifecycle.claim(run, worker_name="w")
    with EventWriter(run.folder, attempt=run.attempt) as events:
        started = events.write("started", step=0, max_steps=10, device="cpu", clips=8, validation_clips=2, trainable_parameters=1, total_parameters=2)
        said = events.write("waiting", stage="preflight", message="a step fits", memory_bytes=3_000_000_000, step_s=7.25)
        lifecycle.record_events(run, [started, said])
    page = alice_client.get(reverse("training:run", args=[run.pk])).content.decode()
    assert "3.0 GB of memory, 7.2 s" in page


def test_a_model_whose_files_are_gone_gets_no_estimate(dataset, checkpoint, settings):
    checkpoint.folder.rename(settings.DATA_DIR / "gone")
    assert preflight.check(dataset=dataset, checkpoint=checkpoint, config=FinetuneConfig()) is None
