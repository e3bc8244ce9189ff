import json

import pytest

from audioldm_site.jobs import lifecycle
from audioldm_site.jobs.models import Status
from generation_app import services, tasks
from generation_app.models import Generation
from gpu.config import ConfigError, GenerateJob
from gpu.errors import Fault
from gpu.sound import read_recipe
from training_app import storage
from training_app.models import Checkpoint

pytestmark = pytest.mark.django_db(transaction=True)  # the recorder thread has a connection of its own
FEW = {"num_inference_steps": 2, "audio_length_in_s": 0.5, "num_waveforms_per_prompt": 2}


@pytest.fixture
def generation(checkpoint, alice):
    return services.create_generation(owner=alice, checkpoint=checkpoint, values={"prompt": "a dog barking", "seed": 5, **FEW})


def perform(generation):
    tasks.run_generation(str(generation.pk))
    generation.refresh_from_db()
    return generation


def test_a_request_is_frozen_in_its_folder(generation, checkpoint):
    job = GenerateJob.read(generation.folder)
    assert (job.config.prompt, job.config.seed, job.model.base_sha256) == ("a dog barking", 5, checkpoint.sha256)
    assert job.provenance["checkpoint_sha256"] == checkpoint.sha256


def test_wrong_values_leave_neither_row_nor_folder(checkpoint, alice, settings):
    with pytest.raises(ConfigError):
        services.create_generation(owner=alice, checkpoint=checkpoint, values={"prompt": ""})
    assert not Generation.objects.exists()
    assert not list((settings.DATA_DIR / "generations").iterdir())


def test_a_retired_checkpoint_makes_no_sound(checkpoint, alice):
    Checkpoint.objects.filter(pk=checkpoint.pk).update(retired=True)
    checkpoint.refresh_from_db()
    with pytest.raises(Fault) as caught:
        services.create_generation(owner=alice, checkpoint=checkpoint, values={"prompt": "x"})
    assert caught.value.code == "checkpoint.retired"


def test_candidates_are_ranked_and_all_are_kept(generation):
    perform(generation)
    assert generation.status == Status.SUCCEEDED, generation.error_detail
    scores = [waveform.clap_score for waveform in generation.waveforms.all()]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert all(waveform.file.is_file() and waveform.peaks for waveform in generation.waveforms.all())


def test_a_sound_carries_its_recipe(generation, checkpoint):
    Checkpoint.objects.filter(pk=checkpoint.pk).update(licence="CC0-1.0")
    perform(generation)
    recipe = json.dumps(read_recipe(generation.waveforms.first().file))
    assert "a dog barking" in recipe
    assert checkpoint.sha256 in recipe


def test_the_same_seed_prompt_and_checkpoint_give_the_same_bytes(generation, checkpoint, alice):
    perform(generation)
    again = perform(services.create_generation(owner=alice, checkpoint=checkpoint, values=generation.config))
    assert [w.sha256 for w in again.waveforms.all()] == [w.sha256 for w in generation.waveforms.all()]


def test_delivering_it_twice_does_nothing(generation):
    perform(generation)
    seq = generation.last_seq
    perform(generation)
    assert (generation.status, generation.last_seq, generation.attempt) == (Status.SUCCEEDED, seq, 1)


def test_a_checkpoint_that_vanished_meanwhile_fails_honestly(generation, checkpoint, settings):
    checkpoint.folder.rename(settings.DATA_DIR / "gone")
    perform(generation)
    assert generation.status == Status.FAILED
    assert generation.error_code.startswith("checkpoint.")


def test_a_waiting_generation_is_stopped_at_once_and_can_be_put_back(generation):
    assert services.request_stop(generation)
    generation.refresh_from_db()
    assert generation.status == Status.CANCELLED
    assert services.retry(generation)
    assert perform(generation).status == Status.SUCCEEDED


def test_only_an_ended_generation_can_be_deleted(generation):
    with pytest.raises(Fault):
        services.delete_generation(generation)
    perform(generation)
    folder = generation.folder
    services.delete_generation(generation)
    assert not folder.exists()


def test_a_sound_made_from_a_run_names_run_and_dataset(dataset, checkpoint, alice):
    from training_app import services as training

    run = training.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={})
    lifecycle.claim(run, worker_name="w")
    tuned = Checkpoint.objects.create(name="tuned", family="audioldm2", format="run", origin="run", run=run, base=checkpoint, global_step=7, path="runs/x")
    found = storage.provenance(tuned)
    assert (found["run"], found["dataset"], found["global_step"], found["base_checkpoint"]) == (run.name, dataset.name, 7, "tiny")
