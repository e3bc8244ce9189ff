"""What is kept between runs is what was computed, or it is computed again."""

from __future__ import annotations

import os

import torch

from gpu.cache import TensorCache, key_of, model_digest
from gpu.manifest import folder_digest

KEY = key_of(kind="test", number=1)


def test_an_entry_comes_back_bit_for_bit_in_another_process_life(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(7)}
    TensorCache(tmp_path).put(KEY, tensors)
    found = TensorCache(tmp_path).get(KEY)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_what_was_never_put_is_absent(tmp_path):
    assert TensorCache(tmp_path).get(KEY) is None


def test_a_damaged_entry_counts_as_absent(tmp_path):
    TensorCache(tmp_path).put(KEY, {"a": torch.ones(100)})
    path = next(tmp_path.rglob("*.safetensors"))
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:-5] + b"xxxxx"):
        path.write_bytes(damaged)
        assert TensorCache(tmp_path).get(KEY) is None


def test_memory_is_bounded_and_the_disk_takes_over(tmp_path):
    cache = TensorCache(tmp_path, memory_bytes=40)
    for number in range(3):
        cache.put(str(number) * 64, {"a": torch.full((10,), float(number))})
    assert [float(cache.get(str(number) * 64)["a"][0]) for number in (0, 1, 2, 0, 1, 2)] == [0, 1, 2, 0, 1, 2]


def test_keys_depend_on_every_part():
    assert len({key_of(a=1, b=2), key_of(a=2, b=1), key_of(a=1), key_of(a="1", b=2)}) == 4


def test_a_model_is_hashed_again_only_after_it_changed(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("one")
    first = model_digest(model, memo=tmp_path / "memo")
    assert first == folder_digest(model)
    notes = list((tmp_path / "memo/digests").iterdir())
    (model / "weights").write_text("two")
    os.utime(model / "weights", ns=(1, 1))
    assert model_digest(model, memo=tmp_path / "memo") == folder_digest(model) != first
    assert len(list((tmp_path / "memo/digests").iterdir())) == len(notes) + 1


def test_a_damaged_note_of_a_digest_counts_as_absent(tmp_path, monkeypatch):
    monkeypatch.setattr("gpu.cache._digests", {})
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("one")
    digest = model_digest(model, memo=tmp_path / "memo")
    (note,) = (tmp_path / "memo/digests").iterdir()
    whole = note.read_bytes()
    for damaged in (b"", b"\0" * 64, whole[:64], b"f" * 64 + whole[64:], whole[:-4] + b"zzzz"):
        note.write_bytes(damaged)
        monkeypatch.setattr("gpu.cache._digests", {})
        assert model_digest(model, memo=tmp_path / "memo") == digest
