import dataclasses
import json
import shutil

import pytest

from audioldm_site.jobs import lifecycle
from audioldm_site.jobs.models import Status
from datasets_app import services as datasets
from gpu.config import ConfigError, FinetuneJob
from gpu.errors import Fault
from gpu.events import EventWriter
from gpu.manifest import digest, read_manifest
from training_app import services, storage
from training_app.models import Checkpoint, TrainingRun


@pytest.fixture
def run(dataset, checkpoint, alice):
    return services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={"max_train_steps": 100}, name="first")


def say(run, type, **data):
    """What the trainer would say, recorded as the worker does."""
    with EventWriter(run.folder, attempt=run.attempt) as events:
        lifecycle.record_events(run, [events.write(type, **data)])
    run.refresh_from_db()


def save_checkpoint(run, step, **data):
    folder = run.folder / "checkpoints" / f"global_step={step:06d}"
    folder.mkdir(parents=True)
    (folder / "lora.safetensors").write_bytes(b"weights of " + str(step).encode())
    values = {"size_bytes": 13, "sha256": "ab" * 32, "method": "lora", "has_resume_state": True, **data}
    say(run, "checkpoint", step=step, path=f"checkpoints/global_step={step:06d}", **values)


def test_a_run_freezes_its_inputs(run, dataset, checkpoint):
    job = FinetuneJob.read(run.folder)
    assert job.config.max_train_steps == 100
    assert (job.model.base, job.model.base_sha256) == (str(checkpoint.folder), checkpoint.sha256)
    assert job.manifest_digest == run.manifest_digest == digest(read_manifest(run.folder))
    assert run.clip_count == len(read_manifest(run.folder)) == 10


def test_later_edits_do_not_change_what_a_run_trains_on(run, dataset):
    before = read_manifest(run.folder)
    clip = dataset.clips.first()
    datasets.update_clip(clip, caption="something else", excluded=True)
    assert read_manifest(run.folder) == before


def test_absent_parameters_come_from_the_checkpoint_then_from_the_configuration(dataset, checkpoint, alice):
    Checkpoint.objects.filter(pk=checkpoint.pk).update(defaults={"audio_length_in_s": 2.5, "num_inference_steps": 25})
    checkpoint.refresh_from_db()
    run = services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={"num_inference_steps": 30})
    assert (run.config["audio_length_in_s"], run.config["num_inference_steps"], run.config["guidance_scale"]) == (2.5, 30, 3.5)


def test_wrong_values_leave_neither_row_nor_folder(dataset, checkpoint, alice, settings):
    with pytest.raises(ConfigError):
        services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={"learning_rate": -1})
    assert not TrainingRun.objects.exists()
    assert not list((settings.DATA_DIR / "runs").iterdir())


def test_a_checkpoint_without_files_is_refused(dataset, checkpoint, alice, settings):
    checkpoint.folder.rename(settings.DATA_DIR / "gone")
    with pytest.raises(Fault) as caught:
        services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={})
    assert caught.value.code == "checkpoint.missing"
    assert not list((settings.DATA_DIR / "runs").iterdir())


def test_a_dataset_without_a_training_clip_is_refused(dataset, checkpoint, alice):
    dataset.clips.update(excluded=True)
    with pytest.raises(Fault) as caught:
        services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={})
    assert caught.value.code == "dataset.no_usable_clips"


def test_progress_moves_the_row(run):
    lifecycle.claim(run, worker_name="w")
    say(run, "started", step=0, max_steps=100, versions={"torch": "2"})
    say(run, "progress", step=7, max_steps=100, epoch=1, loss=0.5)
    say(run, "validated", step=7, epoch=1, loss=0.4)
    say(run, "validated", step=9, epoch=1, loss=0.6)
    assert (run.global_step, run.epoch, run.latest_loss, run.best_validation_loss) == (7, 1, 0.5, 0.4)
    assert run.versions == {"torch": "2"}


def test_a_saved_checkpoint_becomes_a_row_with_its_lineage(run, checkpoint):
    Checkpoint.objects.filter(pk=checkpoint.pk).update(licence="CC-BY-NC-SA-4.0")
    run.base_checkpoint.refresh_from_db()
    lifecycle.claim(run, worker_name="w")
    save_checkpoint(run, 50, best=True)
    row = run.checkpoints.get()
    assert (row.global_step, row.base, row.licence, row.is_best, row.owner) == (50, checkpoint, "CC-BY-NC-SA-4.0", True, run.owner)
    ref = storage.model_ref(row)
    assert (ref.base, ref.weights) == (str(checkpoint.folder), str(row.folder))


def test_only_the_newest_best_checkpoint_is_best(run):
    lifecycle.claim(run, worker_name="w")
    save_checkpoint(run, 50, best=True)
    save_checkpoint(run, 100, best=True)
    assert list(run.checkpoints.filter(is_best=True).values_list("global_step", flat=True)) == [100]


def test_a_checkpoint_deleted_by_an_attempt_that_was_killed_before_it_told_goes_when_the_next_begins(run):
    save_checkpoint(run, 10)
    save_checkpoint(run, 20)
    shutil.rmtree(run.folder / "checkpoints" / "global_step=000010")

    say(run, "started", step=20, max_steps=100)

    assert [row.global_step for row in run.checkpoints.all()] == [20]


def test_rows_of_removed_checkpoints_go_unless_something_was_made_from_them(run, dataset, alice):
    lifecycle.claim(run, worker_name="w")
    save_checkpoint(run, 10)
    save_checkpoint(run, 20)
    services.create_run(owner=alice, dataset=dataset, base_checkpoint=run.checkpoints.get(global_step=20), values={})
    save_checkpoint(run, 30, removed=["checkpoints/global_step=000010", "checkpoints/global_step=000020"])
    assert list(run.checkpoints.order_by("global_step").values_list("global_step", "missing")) == [(20, True), (30, False)]


def test_a_checkpoint_that_a_run_starts_from_is_kept_by_retention(run, dataset, alice):
    lifecycle.claim(run, worker_name="w")
    save_checkpoint(run, 10)
    services.create_run(owner=alice, dataset=dataset, base_checkpoint=run.checkpoints.get(), values={})
    assert run.checkpoints.get().pinned
    assert (run.folder / "pinned").read_text() == "10\n"


def test_a_checkpoint_told_twice_is_one_row(run):
    lifecycle.claim(run, worker_name="w")
    save_checkpoint(run, 50)
    say(run, "checkpoint", step=50, path="checkpoints/global_step=000050", size_bytes=14, sha256="cd" * 32, method="lora", has_resume_state=True)
    assert run.checkpoints.get().size_bytes == 14


def test_a_stopped_run_resumes_in_line(run):
    lifecycle.claim(run, worker_name="w")
    (run.folder / "control").mkdir(exist_ok=True)
    (run.folder / "control" / "stop").write_text("save")
    services.request_stop(run)
    say(run, "stopped", step=5, saved=True)
    assert run.status == Status.CANCELLED
    assert services.resume(run)
    assert run.status == Status.QUEUED
    assert not (run.folder / "control" / "stop").exists()


def test_a_running_run_cannot_be_resumed(run):
    lifecycle.claim(run, worker_name="w")
    assert not services.resume(run)


def test_save_and_sample_are_asked_of_a_running_run_only(run):
    assert not services.request_save(run)
    lifecycle.claim(run, worker_name="w")
    assert services.request_save(run)
    assert services.request_sample(run)
    assert sorted(path.name for path in (run.folder / "control").iterdir()) == ["sample", "save"]


def test_continuing_makes_a_child_with_the_same_frozen_clips(run, dataset, bob):
    lifecycle.claim(run, worker_name="w")
    save_checkpoint(run, 100)
    say(run, "finished", step=100)
    datasets.update_clip(dataset.clips.first(), caption="changed meanwhile")
    child = services.continue_run(run, more_steps=50, owner=bob)
    job = FinetuneJob.read(child.folder)
    assert (child.parent, child.owner, job.config.max_train_steps) == (run, bob, 150)
    assert job.resume_from == str(run.checkpoints.get().folder)
    assert read_manifest(child.folder) == read_manifest(run.folder)
    assert child.manifest_digest == run.manifest_digest


def test_a_run_without_full_state_cannot_be_continued(run, alice):
    lifecycle.claim(run, worker_name="w")
    say(run, "finished", step=100)
    with pytest.raises(Fault) as caught:
        services.continue_run(run, more_steps=50, owner=alice)
    assert caught.value.code == "run.no_resume_state"


def test_a_pin_reaches_the_trainer(run):
    lifecycle.claim(run, worker_name="w")
    save_checkpoint(run, 50)
    services.set_pinned(run.checkpoints.get(), pinned=True)
    assert (run.folder / "pinned").read_text() == "50\n"
    services.set_pinned(run.checkpoints.get(), pinned=False)
    assert (run.folder / "pinned").read_text() == ""


def test_what_people_wrote_can_be_changed_and_nothing_else(run):
    services.update_run(run, name="renamed", notes="good drums", tags="drums, night", archived=True)
    run.refresh_from_db()
    assert (run.name, run.notes, run.tags, run.archived) == ("renamed", "good drums", "drums, night", True)


def test_config_json_is_readable_by_a_person(run):
    raw = json.loads((run.folder / "config.json").read_text())
    assert raw["config"]["max_train_steps"] == 100
    assert set(raw) == {"job", *(field.name for field in dataclasses.fields(FinetuneJob))}
