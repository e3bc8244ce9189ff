"""Scanning, the demo, commands, and imports that die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from django.core.management import call_command
from django_q.models import OrmQ
from django_q.signals import post_spawn

from datasets_app import services
from datasets_app.apps import DEMO, _offer_demo
from datasets_app.models import Dataset, Origin
from tests.datasets.conftest import table_of, tone, tones, wav, write_zip

pytestmark = pytest.mark.django_db


@pytest.fixture
def incoming(settings) -> Path:
    return settings.DATA_DIR / "incoming" / "datasets"


def settled(path: Path) -> Path:
    """As if it had been copied a minute ago."""
    for file in [path, *(path.rglob("*") if path.is_dir() else [])]:
        os.utime(file, (time.time() - 60, time.time() - 60))
    return path


def import_all() -> None:
    for dataset in Dataset.objects.filter(status="importing"):
        services.import_dataset(dataset)


# Scanning


def test_a_dropped_zip_is_imported_and_moved_aside(incoming, alice):
    settled(write_zip(incoming / "rain.zip", tones(2)))
    imported, ignored = services.scan_incoming(owner=alice)
    import_all()
    dataset = Dataset.objects.get()
    assert ([found.pk for found in imported], ignored) == ([dataset.pk], [])
    assert (dataset.name, dataset.status, dataset.origin, dataset.owner) == ("rain", "ready", "scanned", alice)
    assert [path.relative_to(incoming).as_posix() for path in incoming.rglob("*.zip")] == ["imported/rain.zip"]


def test_a_dropped_folder_is_imported(incoming):
    folder = incoming / "rain"
    folder.mkdir()
    (folder / "metadata.csv").write_text(table_of(["a.wav"]))
    (folder / "a.wav").write_bytes(wav())
    settled(folder)
    services.scan_incoming()
    import_all()
    assert Dataset.objects.get().clips.count() == 1
    assert (incoming / "imported" / "rain" / "a.wav").exists()


def test_a_second_scan_finds_nothing_new(incoming):
    settled(write_zip(incoming / "rain.zip", tones(2)))
    services.scan_incoming()
    import_all()
    assert services.scan_incoming() == ([], [])


def test_the_same_content_under_another_name_is_not_imported_again(incoming):
    settled(write_zip(incoming / "rain.zip", tones(2)))
    services.scan_incoming()
    import_all()
    shutil.copy(incoming / "imported" / "rain.zip", incoming / "copy.zip")
    settled(incoming / "copy.zip")
    imported, ignored = services.scan_incoming()
    assert imported == []
    assert ignored == [{"path": "incoming/datasets/copy.zip", "message": "its content is already the dataset rain"}]
    assert (incoming / "copy.zip").exists()


def test_a_file_that_is_still_growing_is_left_for_later(incoming):
    write_zip(incoming / "rain.zip", tones(2))
    imported, ignored = services.scan_incoming()
    assert imported == []
    assert "still being copied" in ignored[0]["message"]
    settled(incoming / "rain.zip")
    assert len(services.scan_incoming().imported) == 1


def test_a_stalled_half_copy_is_left_alone(incoming):
    whole = write_zip(incoming / "rain.zip", tones(2)).read_bytes()
    (incoming / "rain.zip").write_bytes(whole[:-30])
    settled(incoming / "rain.zip")
    imported, ignored = services.scan_incoming()
    assert (imported, len(ignored)) == ([], 1)
    assert "not a whole one" in ignored[0]["message"]


def test_other_files_are_named_and_hidden_ones_passed_over(incoming):
    for name in ("notes.txt", ".hidden.zip", "_draft.zip"):
        (incoming / name).write_text("x")
        settled(incoming / name)
    (incoming / "folder").mkdir()
    _, ignored = services.scan_incoming()
    assert [Path(item["path"]).name for item in ignored] == ["folder", "notes.txt"]


def test_a_taken_name_in_the_imported_folder_gets_a_number(incoming):
    (incoming / "imported").mkdir()
    (incoming / "imported" / "rain.zip").write_text("an older one")
    settled(write_zip(incoming / "rain.zip", tones(2)))
    services.scan_incoming()
    assert (incoming / "imported" / "rain 2.zip").exists()


# The demo


def test_the_demo_is_a_sound_dataset():
    dataset = services.ensure_demo(DEMO)
    assert "CC BY" in dataset.licence
    assert (dataset.name, dataset.status, dataset.owner, dataset.origin) == ("demo", "ready", None, "builtin")
    assert dataset.clips.count() == dataset.clips.usable().count() == 172


@pytest.fixture
def small_demo(tmp_path) -> Path:
    return write_zip(tmp_path / "demo.zip", tones(2))


def test_the_demo_is_offered_once(small_demo):
    services.ensure_demo(small_demo)
    assert services.ensure_demo(small_demo) is None
    assert Dataset.objects.count() == 1


def test_a_deleted_demo_does_not_come_back(small_demo):
    services.delete_dataset(services.ensure_demo(small_demo))
    assert services.ensure_demo(small_demo) is None
    assert not Dataset.objects.exists()


def test_the_demo_is_not_forced_on_an_installation_in_use(small_demo, make_dataset):
    make_dataset(tones(1))
    assert services.ensure_demo(small_demo) is None


def test_a_demo_that_cannot_be_imported_does_not_stop_the_migration(tmp_path):
    assert services.ensure_demo(tmp_path / "none.zip") is None


def test_builtins_can_be_switched_off(settings):
    settings.BUILTINS = False
    _offer_demo()
    assert not Dataset.objects.exists()


# Commands


def test_import_dataset_prints_facts(tmp_path, capsys):
    source = write_zip(tmp_path / "rain.zip", {**tones(2), "bad.wav": b""})
    call_command("import_dataset", str(source), "--name", "Rain", "--json")
    facts = json.loads(capsys.readouterr().out)
    dataset = Dataset.objects.get()
    assert facts == {
        "id": str(dataset.pk), "name": "Rain", "status": "ready", "clips": 2, "duration_s": 1.0,
        "problems": [{"file": "bad.wav", "line": 4, "code": "clip.empty", "message": "bad.wav is an empty file"}],
    }  # fmt: skip


def test_import_dataset_speaks_to_people(tmp_path, capsys):
    call_command("import_dataset", str(write_zip(tmp_path / "rain.zip", {**tones(2), "bad.wav": b""})))
    out = capsys.readouterr().out
    assert "rain: 2 clips, 0.0 min" in out
    assert "line 4: clip.empty: bad.wav is an empty file" in out


def test_import_dataset_takes_a_folder(tmp_path, capsys):
    folder = tmp_path / "rain"
    folder.mkdir()
    (folder / "metadata.csv").write_text(table_of(["a.wav"]))
    (folder / "a.wav").write_bytes(wav())
    call_command("import_dataset", str(folder))
    assert Dataset.objects.get().name == "rain"
    assert (folder / "a.wav").exists()


@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_a_refused_import_ends_with_exit_code_1_and_the_code(tmp_path, capsys, content):
    if content:
        (tmp_path / "rain.zip").write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        call_command("import_dataset", str(tmp_path / "rain.zip"), "--json")
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("dataset.not_a_zip: ")


# Imports that die


def waiting_dataset(tmp_path: Path, count: int = 2) -> Dataset:
    source = write_zip(tmp_path / "rain.zip", tones(count))
    return services.create_dataset(source=source, owner=None, origin=Origin.UPLOADED, enqueue=False)


def test_an_import_that_died_is_put_in_line_again(tmp_path):
    dataset = waiting_dataset(tmp_path)
    assert [found.pk for found in services.recover_imports()] == [dataset.pk]
    assert OrmQ.objects.count() == 1


@pytest.mark.parametrize(("name", "expected"), [("datasets", 1), ("training", 0)])
def test_a_starting_datasets_worker_looks_after_them(tmp_path, monkeypatch, name, expected):
    waiting_dataset(tmp_path)
    monkeypatch.setenv("Q_CLUSTER_NAME", name)
    post_spawn.send(sender="django_q", proc_name="worker")
    assert OrmQ.objects.count() == expected


def test_an_import_whose_file_is_gone_fails_honestly(tmp_path, settings):
    dataset = waiting_dataset(tmp_path)
    shutil.rmtree(settings.DATA_DIR / "uploads" / str(dataset.pk))
    assert services.recover_imports() == []
    dataset.refresh_from_db()
    assert (dataset.status, dataset.error_code) == ("failed", "dataset.interrupted")


def test_a_living_import_is_left_alone(tmp_path):
    dataset = waiting_dataset(tmp_path)
    with services._lock(dataset) as free:
        assert free
        assert services.recover_imports() == []
        services.import_dataset(dataset)
        dataset.refresh_from_db()
        assert dataset.status == "importing"
    services.import_dataset(dataset)
    assert dataset.status == "ready"


def test_an_import_that_dies_again_and_again_fails_after_three_attempts(tmp_path, settings):
    dataset = waiting_dataset(tmp_path)
    (settings.DATA_DIR / "uploads" / str(dataset.pk) / "attempts").write_bytes(b"...")
    services.import_dataset(dataset)
    assert (dataset.status, dataset.error_code) == ("failed", "dataset.interrupted")
    assert "3 times" in dataset.error_detail


def test_leftovers_are_swept_away_when_they_are_old(settings, tmp_path):
    kept = waiting_dataset(tmp_path)
    old, young = settings.DATA_DIR / "datasets" / ".tmp-old", settings.DATA_DIR / "uploads" / "young"
    stray = settings.DATA_DIR / "uploads" / "x.upload"
    for folder in (old, young):
        folder.mkdir()
    stray.write_bytes(b"x")
    for path in (old, stray, settings.DATA_DIR / "uploads" / str(kept.pk)):
        os.utime(path, (0, 0))
    services.recover_imports()
    assert [path.exists() for path in (old, stray, young)] == [False, False, True]
    assert (settings.DATA_DIR / "uploads" / str(kept.pk) / "source").exists()


CHILD = """
import os, sys, time, django
from pathlib import Path
from django.conf import settings
django.setup()
settings.DATA_DIR = Path(sys.argv[1])
settings.DATABASES["default"]["NAME"] = sys.argv[2]
from django.db import connections
connections["default"].settings_dict["NAME"] = sys.argv[2]
from datasets_app import inspect, services
from datasets_app.models import Clip, Dataset
moment = sys.argv[3]
def stop_here(*args, **kwargs):
    os.write(1, b"here\\n")  # whole, though two threads may come here
    time.sleep(60)
if moment == "measuring":
    real, seen = inspect.inspect_sound, []
    def slow(path):
        seen.append(path)
        return real(path) if len(seen) < 5 else stop_here()
    inspect.inspect_sound = slow
elif moment == "renamed":
    services._publish = stop_here
elif moment == "inserting":
    Clip.objects.bulk_create = stop_here
services.import_dataset(Dataset.objects.get())
"""


@pytest.mark.faults
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("moment", ["measuring", "renamed", "inserting"])
def test_kill_9_leaves_nothing_half_done_and_the_next_attempt_succeeds(tmp_path, settings, moment):
    from django.db import connection

    dataset = waiting_dataset(tmp_path, count=10)
    command = [sys.executable, "-c", CHILD, str(settings.DATA_DIR), str(connection.settings_dict["NAME"]), moment]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"})
    assert child.stdout.readline() == b"here\n"
    child.send_signal(signal.SIGKILL)
    child.wait()

    dataset.refresh_from_db()
    assert (dataset.status, dataset.clips.count()) == ("importing", 0)
    assert [found.pk for found in services.recover_imports()] == [dataset.pk]
    services.import_dataset(dataset)
    assert (dataset.status, dataset.clips.count()) == ("ready", 10)
    assert [path.name for path in (settings.DATA_DIR / "datasets").iterdir()] == [str(dataset.pk)]
    assert list((settings.DATA_DIR / "uploads").iterdir()) == []


def test_measuring_keeps_the_order_of_the_table(make_dataset):
    """Long and short sounds finish out of order in the threads."""
    files = {f"{index}.wav": wav(tone(3.0 if index % 7 == 0 else 0.1, pitch_hz=100 + index)) for index in range(100)}
    dataset = make_dataset(files)
    assert list(dataset.clips.values_list("path", flat=True)) == list(files)


def test_a_large_zip_entry_is_stored_whole(make_dataset, tmp_path):
    big = wav(tone(30.0, rate_hz=48_000, channels=2), rate_hz=48_000)
    source = tmp_path / "big.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.csv", table_of(["big.wav"]))
        archive.writestr("big.wav", big)
    dataset = services.import_inline(source=source)
    assert dataset.clips.get().size_bytes == len(big)
    assert dataset.clips.get().file.read_bytes() == big
