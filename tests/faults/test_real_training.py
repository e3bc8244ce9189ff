"""The real trainer with the tiny model, killed and stopped in the middle."""

from __future__ import annotations

import signal

import pytest

from audioldm_site.jobs.models import Status
from tests.faults.conftest import assert_whole, kill, reached, status_is, steps_of, the_trainer, the_worker, wait_for
from training_app import services

pytestmark = pytest.mark.faults
REAL_TRAINER = True
OPTIONS = {
    "max_train_steps": 60,
    "checkpointing_steps": 20,
    "checkpoints_total_limit": 2,
    "train_batch_size": 1,
    "audio_length_in_s": 0.64,
    "num_inference_steps": 1,
    "num_waveforms_per_prompt": 1,
    "validation_epochs": 1_000,
    "validation_prompts": ["a steady tone"],
}


@pytest.fixture
def run(dataset, checkpoint, alice):
    return services.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values=OPTIONS)


def test_a_run_goes_on_after_its_cluster_ended_and_after_everything_was_killed(run, start_cluster):
    cluster = start_cluster()
    wait_for(reached(run, 3), seconds=90)
    kill(cluster.pid, signal.SIGTERM)
    cluster.wait(timeout=60)

    run.refresh_from_db()
    assert run.status == Status.QUEUED
    saved = run.events.filter(type="checkpoint").last().data["step"]
    assert saved == run.global_step
    start_cluster()
    wait_for(reached(run, saved + 3), seconds=90)
    assert run.events.filter(type="started", attempt=2).get().data["step"] == saved

    worker = the_worker(run)
    kill(the_trainer(run))
    kill(worker)
    wait_for(status_is(run, Status.SUCCEEDED, Status.FAILED), seconds=120)

    assert run.status == Status.SUCCEEDED, run.error_detail
    assert run.attempt == 3
    assert steps_of(run, 3)[-1] == run.global_step == 60
    assert_whole(run)
