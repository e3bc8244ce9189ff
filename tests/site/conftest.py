from __future__ import annotations

from collections.abc import Callable

import pytest

from gpu.events import EventWriter
from training_app.models import Checkpoint, TrainingRun


@pytest.fixture
def base_checkpoint(db) -> Checkpoint:
    return Checkpoint.objects.create(name="base", family="audioldm2", format="diffusers", origin="builtin", path="checkpoints/base")


@pytest.fixture
def run(alice, base_checkpoint) -> TrainingRun:
    run = TrainingRun(owner=alice, name="bells", dataset_name="bells", base_checkpoint=base_checkpoint, config={"max_train_steps": 10})
    run.folder.mkdir(parents=True)
    run.save()
    return run


@pytest.fixture
def say(run) -> Callable:
    """Have the run's own process say something: `say("progress", step=1)`."""

    def write(type: str, /, **data):
        with EventWriter(run.folder, attempt=run.attempt or 1) as events:
            return events.write(type, **data)

    return write


def checkpoint_data(step: int) -> dict:
    return {"step": step, "path": f"checkpoints/global_step={step:06d}", "size_bytes": 1, "sha256": "0" * 64, "reason": "interval"}
