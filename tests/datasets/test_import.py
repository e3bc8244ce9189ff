"""From a zip to rows: every kind of bad clip is named with its line and costs only itself."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest

from datasets_app import services
from datasets_app.archive import Limits
from datasets_app.models import Clip, Dataset, Origin
from gpu.errors import Fault
from tests.datasets.conftest import RATE_HZ, codes, table, table_of, tone, tones, wav, write_zip

pytestmark = pytest.mark.django_db


def problem(dataset: Dataset, code: str) -> dict:
    found = [item for item in dataset.problems if item["code"] == code]
    assert len(found) == 1, dataset.problems
    return found[0]


def test_a_plain_zip_becomes_a_ready_dataset(make_dataset, alice):
    dataset = make_dataset(tones(3), owner=alice, name="Rain")
    assert (dataset.status, dataset.name, dataset.source_name, dataset.owner) == ("ready", "Rain", "Rain.zip", alice)
    assert len(dataset.source_sha256) == 64
    assert dataset.problems == []
    clip = dataset.clips.first()
    assert (clip.original_name, clip.caption, clip.channels, clip.sample_rate_hz) == ("tone 0.wav", "the sound of tone 0.wav", 1, RATE_HZ)
    assert clip.duration_s == 0.5
    assert clip.peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert clip.file.read_bytes() == tones(1)["tone 0.wav"]
    assert len(clip.peaks) == 200


def test_the_folder_of_a_dataset_can_be_imported_again(make_dataset):
    first = make_dataset({"audio/a.wav": wav(), "readme.txt": "hello"}, metadata=table_of(["audio/a.wav"]))
    assert sorted(path.relative_to(first.folder).as_posix() for path in first.folder.rglob("*.*")) == ["audio/a.wav", "metadata.csv"]
    again = services.import_inline(source=first.folder, name="again")
    assert again.clips.get().sha256 == first.clips.get().sha256


def test_nothing_is_left_of_the_upload(make_dataset, settings):
    make_dataset()
    make_dataset(metadata="nonsense", name="bad")
    assert list((settings.DATA_DIR / "uploads").iterdir()) == []
    assert len(list((settings.DATA_DIR / "datasets").iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "clip.empty"),
        (wav(np.zeros((0, 1))), "clip.empty"),
        (b"this is no sound", "clip.not_audio"),
        (wav(format="FLAC"), "clip.not_audio"),
        (wav(format="OGG", subtype="VORBIS"), "clip.not_audio"),
        (wav(format="AIFF"), "clip.not_audio"),
        (b"RIFF\x24\0\0\0WAVEfmt garbage", "clip.corrupt"),
        (wav(tone(0.02)), "clip.too_short"),
    ],
)
def test_a_bad_clip_costs_only_itself(make_dataset, content, code):
    dataset = make_dataset({"good.wav": wav(), "bad.wav": content})
    assert dataset.status == "ready"
    assert [clip.path for clip in dataset.clips.all()] == ["good.wav"]
    assert {key: problem(dataset, code)[key] for key in ("file", "line")} == {"file": "bad.wav", "line": 3}
    assert not (dataset.folder / "bad.wav").exists()


def test_a_clip_that_is_damaged_inside_the_zip_costs_only_itself(make_dataset, tmp_path):
    source = tmp_path / "rain.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("metadata.csv", table_of(["a.wav", "b.wav"]))
        archive.writestr("a.wav", wav(tone(pitch_hz=300)))
        archive.writestr("b.wav", wav(tone(pitch_hz=500)))
    middle = wav(tone(pitch_hz=500))[3000:3100]
    source.write_bytes(source.read_bytes().replace(middle, bytes(100)))
    dataset = services.import_inline(source=source)
    assert [clip.path for clip in dataset.clips.all()] == ["a.wav"]
    assert problem(dataset, "clip.corrupt")["line"] == 3


def test_a_missing_clip_is_named_with_its_line(make_dataset):
    dataset = make_dataset({"a.wav": wav()}, metadata=table(("a.wav", 'two\nlines of "caption"'), ("gone.wav", "x")))
    assert problem(dataset, "clip.missing") == {"file": "gone.wav", "line": 4, "code": "clip.missing", "message": "gone.wav is not in the archive"}


@pytest.mark.parametrize("written", ["../a.wav", "/a.wav", "C:\\a.wav", "..\\a.wav"])
def test_an_unsafe_row_is_left_out(make_dataset, written):
    dataset = make_dataset({"a.wav": wav(), "b.wav": wav(tone(pitch_hz=500))}, metadata=table((written, "evil"), ("b.wav", "good")))
    assert [clip.path for clip in dataset.clips.all()] == ["b.wav"]
    assert problem(dataset, "clip.path_unsafe")["line"] == 2


@pytest.mark.parametrize("written", ["audio/a.wav", "./audio/a.wav", "audio\\a.wav", ".\\audio\\a.wav", " audio/a.wav "])
def test_every_spelling_of_a_path_finds_its_file(make_dataset, written):
    dataset = make_dataset({"audio/a.wav": wav()}, metadata=table((written, "x")))
    assert dataset.clips.get().path == "audio/a.wav"
    assert codes(dataset) == []


@pytest.mark.parametrize(("written", "name"), [("a.wav", "A.WAV"), ("a.wav", "audio/a.wav"), ("clips/a.wav", "audio/a.wav")])
def test_a_name_that_nearly_fits_is_found_and_reported(make_dataset, written, name):
    dataset = make_dataset({name: wav()}, metadata=table((written, "x")))
    assert dataset.clips.get().path == name
    assert codes(dataset) == ["clip.name_differs"]


def test_a_name_that_fits_two_files_is_missing(make_dataset):
    dataset = make_dataset({"x/a.wav": wav(), "y/a.wav": wav(), "b.wav": wav()}, metadata=table(("a.wav", "x"), ("b.wav", "y")))
    assert codes(dataset) == ["dataset.unlisted", "clip.missing"]


def test_composed_and_decomposed_names_meet(make_dataset):
    dataset = make_dataset({"cafe\u0301.wav": wav()}, metadata=table(("café.wav", "x")))
    assert dataset.clips.get().path == "café.wav"
    assert codes(dataset) == []


def test_a_sound_listed_twice_is_kept_once(make_dataset):
    dataset = make_dataset({"a.wav": wav()}, metadata=table(("a.wav", "first"), ("./a.wav", "second")))
    assert dataset.clips.get().caption == "first"
    assert problem(dataset, "clip.duplicate_row")["line"] == 3


def test_the_same_content_under_two_names_is_kept_on_one_side(make_dataset):
    dataset = make_dataset({**tones(20), "copy.wav": tones(1)["tone 0.wav"]})
    first, copy = dataset.clips.get(path="tone 0.wav"), dataset.clips.get(path="copy.wav")
    assert first.flags == copy.flags == ["duplicate"]
    assert problem(dataset, "clip.duplicate_audio")["file"] == "copy.wav"
    for seed in range(20):
        services.resplit(dataset, seed=seed, validation_share=0.5)
        assert len({clip.split for clip in dataset.clips.filter(sha256=first.sha256)}) == 1


def test_a_clip_without_a_caption_waits_for_one(make_dataset):
    dataset = make_dataset({"a.wav": wav(), "b.wav": wav(tone(pitch_hz=500))}, metadata="audio,caption\na.wav,  \nb.wav,good\n")
    clip = dataset.clips.get(path="a.wav")
    assert clip.flags == ["no_caption"]
    assert problem(dataset, "clip.caption_empty")["line"] == 2
    assert dataset.clips.usable().count() == 1
    services.update_clip(clip, caption="A dog")
    assert dataset.clips.usable().count() == 2


def test_a_silent_clip_is_excluded_until_someone_includes_it(make_dataset):
    dataset = make_dataset({"a.wav": wav(), "hush.wav": wav(np.zeros((RATE_HZ, 1)))})
    clip = dataset.clips.get(path="hush.wav")
    assert (clip.flags, clip.excluded, clip.peak_dbfs) == (["silent"], True, None)
    assert codes(dataset) == ["clip.silent"]
    services.update_clip(clip, excluded=False)
    assert dataset.clips.usable().count() == 2


def test_a_clip_with_samples_that_are_no_numbers_can_never_be_included(make_dataset):
    samples = tone()
    samples[7] = np.nan
    dataset = make_dataset({"a.wav": wav(), "nan.wav": wav(samples, subtype="FLOAT")})
    clip = dataset.clips.get(path="nan.wav")
    assert (clip.flags, clip.excluded) == (["not_finite"], True)
    with pytest.raises(Fault) as caught:
        services.update_clip(clip, excluded=False)
    assert caught.value.code == "clip.not_finite"


def test_clipping_and_truncation_are_reported_and_the_clips_kept(make_dataset):
    loud = wav(np.clip(tone(level=4.0), -1, 1))
    dataset = make_dataset({"loud.wav": loud, "cut.wav": wav(tone(2.0))[:8_000]})
    assert sorted(codes(dataset)) == ["clip.clipped", "clip.truncated"]
    assert dataset.clips.usable().count() == 2


@pytest.mark.parametrize(("duration_s", "flags"), [(0.1, ["very_short"]), (0.5, []), (121, ["very_long"])])
def test_unusual_lengths_are_flagged(make_dataset, duration_s, flags):
    assert make_dataset({"a.wav": wav(tone(duration_s))}).clips.get().flags == flags


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"])
@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (44_100, 2), (192_000, 8)])
def test_every_kind_of_wav_is_taken(make_dataset, subtype, rate_hz, channels):
    dataset = make_dataset({"a.WAV": wav(tone(0.3, rate_hz=rate_hz, channels=channels), rate_hz=rate_hz, subtype=subtype)})
    clip = dataset.clips.get()
    assert (clip.subtype, clip.sample_rate_hz, clip.channels, clip.flags) == (subtype, rate_hz, channels, [])


def test_unlisted_sounds_are_counted_and_left_behind(make_dataset):
    dataset = make_dataset({**tones(3), "notes.txt": "x"}, metadata=table_of(["tone 1.wav"]))
    assert dataset.clips.count() == 1
    assert problem(dataset, "dataset.unlisted")["message"].startswith("2 WAV files")
    assert len(list(dataset.folder.iterdir())) == 2


def test_a_name_written_at_length_is_found_and_cut_for_the_row(make_dataset):
    clip = make_dataset({"a.wav": wav()}, metadata=table(("./" * 400 + "a.wav", "x"))).clips.get()
    assert (clip.path, len(clip.original_name)) == ("a.wav", 500)


def test_captions_become_one_line_and_the_original_is_kept(make_dataset):
    clip = make_dataset({"a.wav": wav()}, metadata=table(("a.wav", "  A  dog\n barks cafe\u0301 "))).clips.get()
    assert clip.caption == "A dog barks café"
    assert clip.original_caption == "A  dog\n barks cafe\u0301"


# Refusals


@pytest.mark.parametrize(
    ("files", "metadata", "code"),
    [
        ({"a.wav": wav()}, "audio,label\na.wav,x\n", "dataset.columns_missing"),
        ({"a.wav": wav()}, "audio,caption\n", "dataset.no_rows"),
        ({"a.wav": b"x"}, None, "dataset.no_usable_clips"),
        ({"a.wav": wav()}, "audio,caption\nb.wav,x\n", "dataset.no_usable_clips"),
        ({"../a.wav": wav()}, None, "archive.path_unsafe"),
    ],
)
def test_a_refused_dataset_says_why_and_keeps_nothing(make_dataset, settings, files, metadata, code):
    dataset = make_dataset(files, metadata=metadata)
    assert (dataset.status, dataset.error_code) == ("failed", code)
    assert dataset.error_detail
    assert dataset.clips.count() == 0
    assert list((settings.DATA_DIR / "datasets").iterdir()) == []


def test_the_problems_of_a_dataset_without_usable_clips_are_kept(make_dataset):
    dataset = make_dataset({"a.wav": b"x", "b.wav": b""})
    assert codes(dataset) == ["clip.not_audio", "clip.empty"]


def test_a_full_disk_is_said_in_words(make_dataset, monkeypatch, settings):
    monkeypatch.setattr("datasets_app.archive.shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    dataset = make_dataset()
    assert (dataset.status, dataset.error_code) == ("failed", "disk.full")
    assert "10 bytes are free" in dataset.error_detail


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(make_dataset, monkeypatch, settings):
    real = open

    def no_space(file, mode="r", *args, **kwargs):
        if mode == "xb" and "tone 2" in str(file):
            raise OSError(28, "No space left on device", str(file))
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", no_space)
    dataset = make_dataset(tones(3))
    assert (dataset.status, dataset.error_code) == ("failed", "disk.full")
    assert list((settings.DATA_DIR / "datasets").iterdir()) == []


def test_an_error_of_our_own_ends_as_failed_and_not_as_importing(make_dataset, monkeypatch):
    monkeypatch.setattr("datasets_app.services.inspect_source", lambda *args, **kwargs: 1 / 0)
    assert make_dataset().error_code == "dataset.import_failed"


def test_limits_hold_for_imports(make_dataset, monkeypatch):
    monkeypatch.setattr("datasets_app.services.LIMITS", Limits(total_bytes=10_000))
    assert make_dataset(tones(5)).error_code == "archive.too_large"


def test_thousands_of_problems_are_cut_off_with_a_count(make_dataset):
    dataset = make_dataset({"a.wav": wav()}, metadata=table(("a.wav", "x"), *((f"{index}.wav", "y") for index in range(2_500))))
    assert len(dataset.problems) == 2_001
    assert dataset.problems[-1]["message"] == "500 more problems are not listed"


# Names, repetition, order


def test_a_taken_name_gets_a_number(make_dataset, tmp_path):
    source = write_zip(tmp_path / "rain.zip", tones(1))
    names = [services.import_inline(source=source).name for _ in range(3)]
    assert names == ["rain", "rain 2", "rain 3"]


def test_importing_twice_does_nothing(make_dataset):
    dataset = make_dataset(tones(2))
    before = list(dataset.clips.values_list("id", flat=True))
    services.import_dataset(dataset)
    assert list(dataset.clips.values_list("id", flat=True)) == before


def test_a_dataset_deleted_while_it_is_read_stays_deleted(tmp_path, settings, monkeypatch):
    source = write_zip(tmp_path / "rain.zip", tones(2))
    dataset = services.create_dataset(source=source, owner=None, origin=Origin.UPLOADED, enqueue=False)
    real = services.inspect_source

    def deleted_meanwhile(*args, **kwargs):
        Dataset.objects.all().delete()
        return real(*args, **kwargs)

    monkeypatch.setattr(services, "inspect_source", deleted_meanwhile)
    services.import_dataset(dataset)
    assert not Dataset.objects.exists()
    assert not Clip.objects.exists()
    assert list((settings.DATA_DIR / "datasets").iterdir()) == []


def test_the_source_stays_where_it_was(tmp_path):
    source = write_zip(tmp_path / "rain.zip", tones(1))
    content = source.read_bytes()
    services.import_inline(source=source)
    assert source.read_bytes() == content


def test_a_refused_inline_import_raises_and_leaves_no_row(tmp_path):
    (tmp_path / "rain.zip").write_bytes(b"nonsense")
    with pytest.raises(Fault) as caught:
        services.import_inline(source=tmp_path / "rain.zip")
    assert caught.value.code == "dataset.not_a_zip"
    assert not Dataset.objects.exists()


def test_creating_puts_the_import_in_line_with_the_row(tmp_path):
    from django_q.models import OrmQ

    dataset = services.create_dataset(source=write_zip(tmp_path / "rain.zip", tones(1)), owner=None, origin=Origin.UPLOADED)
    (entry,) = OrmQ.objects.all()
    assert (entry.key, entry.task["func"], entry.task["args"]) == ("datasets", "datasets_app.tasks.import_dataset", (str(dataset.pk),))


def test_the_task_imports_and_ignores_what_is_gone(tmp_path):
    from datasets_app import tasks

    dataset = services.create_dataset(source=write_zip(tmp_path / "rain.zip", tones(1)), owner=None, origin=Origin.UPLOADED, enqueue=False)
    tasks.import_dataset(str(dataset.pk))
    dataset.refresh_from_db()
    assert dataset.status == "ready"
    services.delete_dataset(dataset)
    tasks.import_dataset(str(dataset.pk))
