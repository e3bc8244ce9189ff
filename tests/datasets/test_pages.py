"""What people see and press, without JavaScript."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import soundfile
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from datasets_app import services
from datasets_app.models import Clip, Dataset, Origin
from tests.datasets.conftest import table, tone, tones, wav, write_zip

pytestmark = pytest.mark.django_db


def page(client: Client, dataset: Dataset, **query: str) -> str:
    response = client.get(reverse("datasets:dataset", args=[dataset.pk]), query)
    assert response.status_code == 200
    return response.content.decode()


def shown_clips(client: Client, dataset: Dataset, **query: str) -> list[str]:
    response = client.get(reverse("datasets:dataset", args=[dataset.pk]), query)
    return [clip.path for clip in response.context["page"]]


def clip_url(clip: Clip) -> str:
    return reverse("datasets:clip", args=[clip.dataset_id, clip.pk])


def upload(client: Client, content: bytes, file_name: str = "rain.zip", *, called: str = ""):
    return client.post(reverse("datasets:upload"), {"archive": SimpleUploadedFile(file_name, content), "name": called})


@pytest.fixture
def zipped(tmp_path) -> bytes:
    return write_zip(tmp_path / "rain.zip", tones(3)).read_bytes()


@pytest.fixture
def dataset(make_dataset, alice) -> Dataset:
    return make_dataset(tones(12), owner=alice, name="alices tones")


# The list


def test_an_empty_list_explains_the_format(alice_client):
    text = alice_client.get(reverse("datasets:index")).content.decode()
    assert "No datasets yet" in text
    assert "audio,caption" in text
    assert 'enctype="multipart/form-data"' in text


def test_the_list_shows_counts(alice_client, dataset):
    text = alice_client.get(reverse("datasets:index")).content.decode()
    assert dataset.name in text
    assert reverse("datasets:dataset", args=[dataset.pk]) in text


def test_the_list_takes_the_same_queries_however_long_it_is(alice_client, make_dataset, django_assert_num_queries, django_assert_max_num_queries):
    for index in range(3):
        make_dataset(tones(3), name=f"d{index}")
    with django_assert_max_num_queries(6) as few:
        alice_client.get(reverse("datasets:index"))
    for index in range(20):
        make_dataset(tones(1), name=f"e{index}")
    with django_assert_num_queries(len(few.captured_queries)):
        alice_client.get(reverse("datasets:index"))


# Uploading


def test_an_upload_waits_to_be_imported_and_then_is_a_dataset(alice_client, alice, zipped):
    response = upload(alice_client, zipped, "My rain.zip")
    dataset = Dataset.objects.get()
    assert response.url == reverse("datasets:dataset", args=[dataset.pk])
    assert (dataset.name, dataset.status, dataset.owner, dataset.origin) == ("My rain", "importing", alice, "uploaded")
    text = page(alice_client, dataset)
    assert 'http-equiv="refresh"' in text
    assert "No worker is reading datasets" in text
    services.import_dataset(dataset)
    assert "Clips" in page(alice_client, dataset)


def test_a_large_upload_is_moved_and_not_copied(alice_client, zipped, settings, tmp_path):
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 10
    settings.FILE_UPLOAD_TEMP_DIR = str(tmp_path)
    upload(alice_client, zipped)
    assert services.import_dataset(Dataset.objects.get()).status == "ready"
    assert [path.name for path in tmp_path.iterdir() if "upload" in path.name] == []


def test_an_upload_leaves_nothing_beside_its_own_folder(alice_client, zipped, settings):
    upload(alice_client, zipped)
    assert [path.name for path in (settings.DATA_DIR / "uploads").iterdir()] == [str(Dataset.objects.get().pk)]


def test_an_upload_can_be_named(alice_client, zipped):
    upload(alice_client, zipped, called="Heavy rain")
    upload(alice_client, zipped)
    assert set(Dataset.objects.values_list("name", flat=True)) == {"Heavy rain", "rain"}


def test_an_upload_without_a_file_says_so(alice_client):
    response = alice_client.post(reverse("datasets:upload"), {})
    assert response.status_code == 400
    assert "This field is required" in response.content.decode()


def test_the_progress_of_an_import_is_shown(alice_client, zipped, settings):
    upload(alice_client, zipped)
    dataset = Dataset.objects.get()
    (settings.DATA_DIR / "uploads" / str(dataset.pk) / "progress.json").write_text('{"done": 7, "total": 30}')
    assert "sound 7 of 30" in page(alice_client, dataset)


def test_a_refused_upload_says_what_and_what_to_do(alice_client):
    upload(alice_client, b"nonsense")
    dataset = services.import_dataset(Dataset.objects.get())
    text = page(alice_client, dataset)
    assert "is not a zip" in text
    assert "Upload another" in text


def test_a_failed_dataset_shows_the_problems_of_its_clips(alice_client, alice, make_dataset):
    text = page(alice_client, make_dataset({"a.wav": b"x"}, owner=alice))
    assert "clip.not_audio" in text


def test_scanning_reports_what_was_found_and_what_was_not(alice_client, settings, zipped):
    import os

    incoming = settings.DATA_DIR / "incoming" / "datasets"
    (incoming / "rain.zip").write_bytes(zipped)
    os.utime(incoming / "rain.zip", (0, 0))
    (incoming / "fresh.zip").write_bytes(zipped)
    text = alice_client.post(reverse("datasets:scan"), follow=True).content.decode()
    assert "Found rain." in text
    assert "still being copied" in text


# The dataset


def test_the_page_shows_totals_clips_and_a_histogram(alice_client, dataset):
    text = page(alice_client, dataset)
    for expected in ("tone 0.wav", "the sound of tone 3.wav", "8 kHz mono: 12", "PCM_16: 12", "<rect", "data-sound"):
        assert expected in text


def test_problems_are_listed_with_line_and_remedy(alice_client, alice, make_dataset):
    text = page(alice_client, make_dataset({"a.wav": wav(), "b.wav": b""}, owner=alice))
    assert "clip.empty" in text
    assert "b.wav is an empty file" in text


def test_many_problems_are_shown_a_hundred_at_a_time(alice_client, alice, make_dataset):
    metadata = table(("a.wav", "x"), *((f"{index}.wav", "y") for index in range(150)))
    dataset = make_dataset({"a.wav": wav()}, metadata=metadata, owner=alice)
    assert "Show 50 more" in page(alice_client, dataset)
    assert "149.wav is not in the archive" in page(alice_client, dataset, problems="all")


def test_captions_and_names_are_escaped(alice_client, alice, make_dataset):
    dataset = make_dataset({"<b>.wav": wav()}, metadata=table(("<b>.wav", "<script>alert(1)</script>")), owner=alice)
    text = page(alice_client, dataset)
    assert "<script>alert(1)" not in text
    assert "<b>.wav" not in text


def test_clips_are_searched_filtered_and_sorted(alice_client, alice, make_dataset):
    files = {"rain.wav": wav(tone(1.0)), "dog.wav": wav(tone(0.5)), "hush.wav": wav(np.zeros((8000, 1))), "mute.wav": wav(tone(2.0))}
    metadata = table(("rain.wav", "Rain on a roof"), ("dog.wav", "A dog"), ("hush.wav", "Silence"), ("mute.wav", ""))
    dataset = make_dataset(files, metadata=metadata, owner=alice)
    services.resplit(dataset, seed=0, validation_share=0)
    services.update_clip(dataset.clips.get(path="dog.wav"), split="validation")
    assert shown_clips(alice_client, dataset) == list(files)
    assert shown_clips(alice_client, dataset, q="ROOF") == ["rain.wav"]
    assert shown_clips(alice_client, dataset, q="dog.w") == ["dog.wav"]
    assert shown_clips(alice_client, dataset, flag="silent") == ["hush.wav"]
    assert shown_clips(alice_client, dataset, flag="any") == ["hush.wav", "mute.wav"]
    assert shown_clips(alice_client, dataset, split="validation") == ["dog.wav"]
    assert shown_clips(alice_client, dataset, state="usable") == ["rain.wav", "dog.wav"]
    assert shown_clips(alice_client, dataset, state="unused") == ["hush.wav", "mute.wav"]
    assert shown_clips(alice_client, dataset, sort="longest")[0] == "mute.wav"
    assert shown_clips(alice_client, dataset, sort="quietest")[0] == "hush.wav"
    assert shown_clips(alice_client, dataset, sort="nonsense", flag="' OR 1=1", page="x") == list(files)
    assert "No clips like that" in page(alice_client, dataset, q="elephant")


def test_a_dataset_of_ten_thousand_clips_opens_fast(alice_client, dataset, django_assert_num_queries, django_assert_max_num_queries):
    with django_assert_max_num_queries(12) as few:
        page(alice_client, dataset)
    model = dataset.clips.first()
    rows = [
        Clip(dataset=dataset, position=position, path=f"{position}.wav", original_name=f"{position}.wav", caption=f"sound {position}",
             sha256=f"{position:064x}", size_bytes=1, duration_s=position % 90 / 10 + 0.1, sample_rate_hz=16_000, channels=1, subtype="PCM_16",
             peak_dbfs=-6.0, loudness_lufs=-20.0, flags=["clipped"] if position % 9 == 0 else [], peaks=model.peaks)
        for position in range(100, 10_100)
    ]  # fmt: skip
    Clip.objects.bulk_create(rows, batch_size=500)
    with django_assert_num_queries(len(few.captured_queries)):
        started = time.perf_counter()
        text = page(alice_client, dataset, page="100", sort="longest", flag="clipped")
        took_s = time.perf_counter() - started
    assert "10\u202f012" in text
    assert took_s < 1.0


def test_details_are_saved(alice_client, dataset):
    alice_client.post(reverse("datasets:edit", args=[dataset.pk]), {"name": "Rain", "licence": "CC0 1.0", "notes": "from the roof"})
    dataset.refresh_from_db()
    assert (dataset.name, dataset.licence, dataset.notes) == ("Rain", "CC0 1.0", "from the roof")


@pytest.mark.parametrize("name", ["", "x" * 200])
def test_a_bad_name_is_refused_in_words(alice_client, dataset, name):
    response = alice_client.post(reverse("datasets:edit", args=[dataset.pk]), {"name": name}, follow=True)
    assert "notice-error" in response.content.decode()
    dataset.refresh_from_db()
    assert dataset.name == "alices tones"


def test_the_split_is_made_again(alice_client, dataset):
    alice_client.post(reverse("datasets:resplit", args=[dataset.pk]), {"validation_percent": "50", "seed": "7"})
    dataset.refresh_from_db()
    assert (dataset.validation_share, dataset.split_seed) == (0.5, 7)
    assert 1 <= dataset.clips.filter(split="validation").count() <= 11


@pytest.mark.parametrize("values", [{"validation_percent": "99", "seed": "7"}, {"validation_percent": "x", "seed": "7"}, {"validation_percent": "nan", "seed": "1"}, {}])
def test_a_bad_split_is_refused_in_words(alice_client, dataset, values):
    response = alice_client.post(reverse("datasets:resplit", args=[dataset.pk]), values, follow=True)
    assert "notice-error" in response.content.decode()
    dataset.refresh_from_db()
    assert dataset.validation_share == 0.1


def test_a_dataset_is_deleted(alice_client, dataset):
    response = alice_client.post(reverse("datasets:delete", args=[dataset.pk]))
    assert response.url == reverse("datasets:index")
    assert not Dataset.objects.exists()


# Clips


def test_a_caption_is_saved_and_the_list_comes_back_as_it_was(alice_client, dataset):
    clip = dataset.clips.first()
    here = reverse("datasets:dataset", args=[dataset.pk]) + "?page=1&q=tone"
    response = alice_client.post(clip_url(clip), {"caption": "A beep", "split": "validation", "included": ["no"], "next": here})
    assert response.url == f"{here}#clip-{clip.pk}"
    clip.refresh_from_db()
    assert (clip.caption, clip.split, clip.excluded) == ("A beep", "validation", True)


def test_a_ticked_box_includes_the_clip(alice_client, dataset):
    clip = dataset.clips.first()
    services.update_clip(clip, excluded=True)
    alice_client.post(clip_url(clip), {"included": ["no", "yes"]})
    clip.refresh_from_db()
    assert (clip.excluded, clip.caption) == (False, "the sound of tone 0.wav")


def test_a_script_is_answered_in_json(alice_client, dataset):
    answer = alice_client.post(clip_url(dataset.clips.first()), {"caption": ""}, headers={"accept": "application/json"}).json()
    assert answer == {"caption": "", "split": "train", "included": True, "flags": [{"code": "no_caption", "label": "no caption"}]}


def test_a_refused_change_is_told_to_the_script(alice_client, alice, make_dataset):
    samples = tone()
    samples[0] = np.nan
    dataset = make_dataset({"a.wav": wav(), "nan.wav": wav(samples, subtype="FLOAT")}, owner=alice)
    response = alice_client.post(clip_url(dataset.clips.get(path="nan.wav")), {"included": "yes"}, headers={"accept": "application/json"})
    assert (response.status_code, response.json()["code"]) == (400, "clip.not_finite")


@pytest.mark.parametrize("address", ["https://evil.example/", "//evil.example", "javascript:alert(1)", ""])
def test_nobody_is_sent_elsewhere_after_saving(alice_client, dataset, address):
    response = alice_client.post(clip_url(dataset.clips.first()), {"caption": "x", "next": address})
    assert response.url.startswith(reverse("datasets:dataset", args=[dataset.pk]))


# Listening


def audio(client: Client, clip: Clip, **headers: str):
    return client.get(reverse("datasets:clip_audio", args=[clip.dataset_id, clip.pk]), headers=headers)


def test_a_plain_clip_is_sent_as_it_is_and_in_ranges(alice_client, dataset):
    clip = dataset.clips.first()
    assert b"".join(audio(alice_client, clip).streaming_content) == clip.file.read_bytes()
    part = audio(alice_client, clip, range="bytes=100-199")
    assert (part.status_code, b"".join(part.streaming_content)) == (206, clip.file.read_bytes()[100:200])


@pytest.mark.parametrize(("subtype", "rate_hz", "channels"), [("ALAW", 8_000, 1), ("PCM_24", 44_100, 2), ("FLOAT", 96_000, 1), ("PCM_16", 16_000, 6)])
def test_what_browsers_cannot_play_is_sent_as_what_they_can(alice_client, alice, make_dataset, subtype, rate_hz, channels):
    content = wav(tone(0.3, rate_hz=rate_hz, channels=channels), rate_hz=rate_hz, subtype=subtype)
    clip = make_dataset({"a.wav": content}, owner=alice).clips.get()
    for _ in range(2):  # made, then cached
        sent = b"".join(audio(alice_client, clip).streaming_content)
        with soundfile.SoundFile(io.BytesIO(sent)) as sound:
            assert (sound.subtype, sound.channels, sound.samplerate) == ("PCM_16", min(channels, 2), min(rate_hz, 48_000))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_lost_file_is_a_404(alice_client, alice, make_dataset, subtype):
    clip = make_dataset({"a.wav": wav(subtype=subtype)}, owner=alice).clips.get()
    clip.file.unlink()
    assert audio(alice_client, clip).status_code == 404


# Whose they are


def requests_of(dataset: Dataset) -> list[tuple[str, str]]:
    clip = dataset.clips.first()
    return [
        ("get", reverse("datasets:dataset", args=[dataset.pk])),
        ("post", reverse("datasets:edit", args=[dataset.pk])),
        ("post", reverse("datasets:resplit", args=[dataset.pk])),
        ("post", reverse("datasets:delete", args=[dataset.pk])),
        ("post", clip_url(clip)),
        ("get", reverse("datasets:clip_audio", args=[dataset.pk, clip.pk])),
    ]


def test_charlie_does_not_find_alices_dataset(client, charlie, dataset):
    client.force_login(charlie)
    assert dataset.name not in client.get(reverse("datasets:index")).content.decode()
    for method, address in requests_of(dataset):
        assert getattr(client, method)(address).status_code == 404, address
    assert Dataset.objects.exists()


def test_a_visitor_is_asked_to_log_in(client, dataset):
    for method, address in [*requests_of(dataset), ("get", reverse("datasets:index")), ("post", reverse("datasets:upload")), ("post", reverse("datasets:scan"))]:
        response = getattr(client, method)(address)
        assert response.status_code == 302, address
        assert response.url.startswith(reverse("login"))


def test_bob_may_use_and_mend_what_belongs_to_nobody_but_not_delete_it(client, bob, make_dataset):
    client.force_login(bob)
    dataset = make_dataset(tones(2), owner=None)
    assert "Delete 2" not in page(client, dataset)
    client.post(clip_url(dataset.clips.first()), {"caption": "mended"})
    assert dataset.clips.first().caption == "mended"
    assert client.post(reverse("datasets:delete", args=[dataset.pk])).status_code == 403
    assert Dataset.objects.exists()


def test_staff_see_and_delete_everything(client, root, dataset):
    client.force_login(root)
    assert dataset.name in page(client, dataset)
    client.post(reverse("datasets:delete", args=[dataset.pk]))
    assert not Dataset.objects.exists()


def test_a_clip_is_found_below_its_own_dataset_only(alice_client, dataset, make_dataset, bob):
    foreign = make_dataset(tones(1), owner=bob, name="bobs").clips.get()
    for name in ("datasets:clip_audio", "datasets:clip"):
        address = reverse(name, args=[dataset.pk, foreign.pk])
        assert alice_client.post(address).status_code in (404, 405)
        assert alice_client.get(address).status_code in (404, 405)


def test_what_changes_things_is_not_done_by_a_link(alice_client, dataset):
    for name in ("edit", "resplit", "delete"):
        assert alice_client.get(reverse(f"datasets:{name}", args=[dataset.pk])).status_code == 405
    assert alice_client.get(reverse("datasets:scan")).status_code == 405


def test_forms_need_their_token(alice, dataset):
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    assert client.post(reverse("datasets:delete", args=[dataset.pk])).status_code == 403
    assert Dataset.objects.exists()


# The administration


@pytest.mark.parametrize("model", ["dataset", "clip"])
def test_the_administration_lists_and_shows(client, root, dataset, model):
    client.force_login(root)
    assert client.get(reverse(f"admin:datasets_app_{model}_changelist"), {"q": "tone"}).status_code == 200
    pk = dataset.pk if model == "dataset" else dataset.clips.first().pk
    assert client.get(reverse(f"admin:datasets_app_{model}_change", args=[pk])).status_code == 200


def test_the_administration_hands_a_dataset_over_and_changes_nothing_else(client, root, bob, dataset):
    client.force_login(root)
    client.post(reverse("admin:datasets_app_dataset_change", args=[dataset.pk]), {"owner": bob.pk, "name": "other", "status": "failed"})
    dataset.refresh_from_db()
    assert (dataset.owner, dataset.name, dataset.status) == (bob, "alices tones", "ready")


def test_the_administration_deletes_through_the_service(client, root, dataset):
    client.force_login(root)
    client.post(reverse("admin:datasets_app_dataset_delete", args=[dataset.pk]), {"post": "yes"})
    assert not Dataset.objects.exists()
    assert not dataset.folder.exists()


def test_the_administration_keeps_what_a_run_reads(client, root, dataset):
    from training_app.models import TrainingRun

    client.force_login(root)
    TrainingRun.objects.create(name="run", dataset=dataset, dataset_name=dataset.name)
    client.post(reverse("admin:datasets_app_dataset_delete", args=[dataset.pk]), {"post": "yes"})
    assert Dataset.objects.exists()


def test_an_importing_dataset_can_be_seen_by_its_owner_only(client, charlie, alice, tmp_path):
    source = write_zip(tmp_path / "rain.zip", tones(1))
    dataset = services.create_dataset(source=source, owner=alice, origin=Origin.UPLOADED, enqueue=False)
    client.force_login(charlie)
    assert client.get(reverse("datasets:dataset", args=[dataset.pk])).status_code == 404
