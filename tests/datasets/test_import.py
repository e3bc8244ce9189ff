from __future__ import annotations

from tests.datasets.conftest import codes, tones


def test_a_plain_zip_becomes_a_ready_dataset(make_dataset):
    dataset = make_dataset(tones(3))
    assert dataset.status == "ready", dataset.error_detail
    assert dataset.clips.count() == 3
    assert codes(dataset) == []
