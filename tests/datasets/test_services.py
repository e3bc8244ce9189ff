"""Editing, splitting, freezing, deleting."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioldm_site.jobs.models import Status
from datasets_app import services
from datasets_app.models import Dataset
from datasets_app.services import validation_hashes
from gpu.errors import Fault
from gpu.manifest import read_manifest, sha256_of
from tests.datasets.conftest import table, tone, tones, wav
from training_app.models import TrainingRun

hashes = st.sets(st.text("0123456789abcdef", min_size=4, max_size=8), min_size=1, max_size=30)


def splits(dataset: Dataset) -> dict[str, str]:
    return dict(dataset.clips.values_list("path", "split"))


def refused(code: str):
    return pytest.raises(Fault, check=lambda fault: fault.code == code)


# The split


@given(hashes, st.integers(0, 2**31 - 1), st.floats(0.01, 0.9))
def test_both_sides_get_a_clip_where_there_are_two(found, seed, share):
    held_out = validation_hashes(found, prefer=found, seed=seed, share=share)
    assert held_out < found
    assert len(held_out) >= (1 if len(found) >= 2 else 0)


@given(hashes, hashes, st.integers(0, 2**31 - 1))
def test_usable_clips_are_on_both_sides(usable, others, seed):
    held_out = validation_hashes(usable | others, prefer=usable, seed=seed, share=0.1)
    assert usable - held_out
    assert len(usable) < 2 or usable & held_out


@given(hashes, hashes, st.integers(0, 100))
def test_a_clip_keeps_its_side_when_others_come(found, more, seed):
    before = validation_hashes(found, prefer=found, seed=seed, share=0.3)
    after = validation_hashes(found | more, prefer=found | more, seed=seed, share=0.3)
    # Only the guarantee of one clip on each side may move one: the first and the last in the order of the draw.
    assert len((before ^ after) & found) <= 2


def test_a_share_of_zero_holds_nothing_out():
    assert validation_hashes({"a", "b", "c"}, prefer={"a", "b", "c"}, seed=0, share=0) == set()


def test_the_share_is_met_in_the_long_run():
    many = {f"{index:08x}" for index in range(10_000)}
    assert len(validation_hashes(many, prefer=many, seed=3, share=0.1)) == pytest.approx(1_000, abs=100)


def test_the_same_seed_gives_the_same_split_and_another_another(make_dataset):
    dataset = make_dataset(tones(30))
    services.resplit(dataset, seed=1, validation_share=0.4)
    first = splits(dataset)
    services.resplit(dataset, seed=2, validation_share=0.4)
    assert splits(dataset) != first
    services.resplit(dataset, seed=1, validation_share=0.4)
    assert splits(dataset) == first
    dataset.refresh_from_db()
    assert (dataset.split_seed, dataset.validation_share) == (1, 0.4)


def test_the_split_depends_on_the_sounds_and_not_on_their_order(make_dataset):
    one = make_dataset(tones(30), name="one")
    other = make_dataset(dict(reversed(tones(30).items())), name="other")
    assert splits(one) == splits(other)


def test_a_new_dataset_holds_out_at_least_one_usable_clip(make_dataset):
    dataset = make_dataset(tones(2))
    assert sorted(splits(dataset).values()) == ["train", "validation"]


def test_a_single_clip_is_trained_on(make_dataset):
    assert splits(make_dataset(tones(1))) == {"tone 0.wav": "train"}


@pytest.mark.parametrize(("seed", "share", "code"), [(0, 0.95, "split.share"), (0, -0.1, "split.share"), (0, float("nan"), "split.share"), (-1, 0.1, "split.seed"), (2**31, 0.1, "split.seed")])
def test_a_split_out_of_bounds_is_refused(make_dataset, seed, share, code):
    with refused(code):
        services.resplit(make_dataset(tones(2)), seed=seed, validation_share=share)


def test_a_choice_by_hand_takes_the_duplicates_along_and_lasts_until_the_next_split(make_dataset):
    dataset = make_dataset({**tones(4), "copy.wav": tones(1)["tone 0.wav"]})
    services.resplit(dataset, seed=0, validation_share=0)
    services.update_clip(dataset.clips.get(path="copy.wav"), split="validation")
    assert splits(dataset) == {"tone 0.wav": "validation", "copy.wav": "validation", "tone 1.wav": "train", "tone 2.wav": "train", "tone 3.wav": "train"}
    services.resplit(dataset, seed=0, validation_share=0)
    assert set(splits(dataset).values()) == {"train"}


# Clips


def test_an_emptied_caption_takes_the_clip_out_of_use(make_dataset):
    clip = make_dataset(tones(1)).clips.get()
    services.update_clip(clip, caption=" \n ")
    assert (clip.caption, clip.flags) == ("", ["no_caption"])
    services.update_clip(clip, caption="Rain\non a roof")
    assert (clip.caption, clip.flags) == ("Rain on a roof", [])


def test_what_is_not_given_stays(make_dataset):
    clip = make_dataset(tones(1)).clips.get()
    services.update_clip(clip, excluded=True)
    clip.refresh_from_db()
    assert (clip.caption, clip.split, clip.excluded) == ("the sound of tone 0.wav", "train", True)


def test_an_unknown_split_is_refused(make_dataset):
    with refused("split.unknown"):
        services.update_clip(make_dataset(tones(1)).clips.get(), split="test")


# About


def test_a_dataset_is_renamed_and_described(make_dataset):
    dataset = make_dataset(tones(1))
    services.update_dataset(dataset, name="  Heavy   rain ", notes="from the roof", licence=" CC0 1.0 ")
    dataset.refresh_from_db()
    assert (dataset.name, dataset.notes, dataset.licence) == ("Heavy rain", "from the roof", "CC0 1.0")


@pytest.mark.parametrize("name", ["", "  ", "other"])
def test_an_empty_or_taken_name_is_refused(make_dataset, name):
    make_dataset(tones(1), name="other")
    with refused("dataset.name_taken"):
        services.rename_dataset(make_dataset(tones(1)), name=name)


def test_a_name_beyond_the_limit_is_refused(make_dataset):
    with refused("dataset.invalid"):
        services.rename_dataset(make_dataset(tones(1)), name="x" * 121)


# Freezing


def test_a_manifest_holds_the_usable_clips_in_order(make_dataset, tmp_path):
    dataset = make_dataset(tones(4), metadata=table(("tone 2.wav", "two"), ("tone 0.wav", ""), ("tone 1.wav", "one"), ("tone 3.wav", "three")))
    services.update_clip(dataset.clips.get(path="tone 3.wav"), excluded=True)
    services.freeze_manifest(dataset, tmp_path)
    clips = read_manifest(tmp_path)
    assert [clip.caption for clip in clips] == ["two", "one"]
    for clip in clips:
        assert Path(clip.audio).is_absolute()
        assert sha256_of(Path(clip.audio)) == clip.sha256
        assert clip.duration_s == 0.5


def test_editing_does_not_touch_what_was_frozen(make_dataset, tmp_path):
    dataset = make_dataset(tones(2))
    digest = services.freeze_manifest(dataset, tmp_path)
    before = read_manifest(tmp_path)
    services.update_clip(dataset.clips.first(), caption="something else")
    assert read_manifest(tmp_path) == before
    (tmp_path / "later").mkdir()
    assert services.freeze_manifest(dataset, tmp_path / "later") != digest


def test_a_dataset_without_usable_clips_cannot_be_frozen(make_dataset, tmp_path):
    dataset = make_dataset({"a.wav": wav()}, metadata=table(("a.wav", "")))
    with refused("dataset.no_usable_clips"):
        services.freeze_manifest(dataset, tmp_path)


def test_a_failed_dataset_cannot_be_frozen(make_dataset, tmp_path):
    with refused("dataset.not_ready"):
        services.freeze_manifest(make_dataset(metadata="nonsense"), tmp_path)


def test_a_lost_file_is_noticed_before_the_run(make_dataset, tmp_path):
    dataset = make_dataset(tones(2))
    dataset.clips.last().file.unlink()
    with refused("clip.missing"):
        services.freeze_manifest(dataset, tmp_path)


# Deleting


def a_run(dataset: Dataset, status: str) -> TrainingRun:
    return TrainingRun.objects.create(name="run", dataset=dataset, dataset_name=dataset.name, status=status)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING])
def test_a_dataset_that_a_run_reads_cannot_be_deleted(make_dataset, status):
    dataset = make_dataset(tones(1))
    a_run(dataset, status)
    with refused("dataset.in_use"):
        services.delete_dataset(dataset)
    assert dataset.clips.get().file.exists()


def test_deleting_takes_the_files_and_keeps_the_history_of_runs(make_dataset, settings):
    dataset = make_dataset(tones(2))
    run = a_run(dataset, Status.SUCCEEDED)
    services.delete_dataset(dataset)
    run.refresh_from_db()
    assert (run.dataset, run.dataset_name) == (None, "sounds")
    assert list((settings.DATA_DIR / "datasets").iterdir()) == []


def test_deleting_one_dataset_leaves_its_twin(make_dataset):
    one, two = make_dataset(tones(2), name="one"), make_dataset(tones(2), name="two")
    services.delete_dataset(one)
    assert two.clips.count() == 2
    assert two.clips.first().file.exists()


def test_a_longer_tone_is_another_sound(make_dataset):
    """Guards the helpers: files that differ only in length have different hashes."""
    dataset = make_dataset({"a.wav": wav(tone(0.5)), "b.wav": wav(tone(0.6))})
    assert dataset.clips.values("sha256").distinct().count() == 2
