from __future__ import annotations

import pytest

from datasets_app import services as datasets
from datasets_app.models import Origin
from tests.factories import tiny_model, write_dataset_zip
from training_app import storage
from training_app.models import Checkpoint


@pytest.fixture
def dataset(db, tmp_path, alice):
    source = write_dataset_zip(tmp_path / "tones.zip")
    return datasets.import_dataset(datasets.create_dataset(source=source, name="tones", owner=alice, origin=Origin.UPLOADED))


@pytest.fixture
def checkpoint(db):
    return storage.register_checkpoint(tiny_model(), origin=Checkpoint.Origin.IMPORTED, name="tiny")
