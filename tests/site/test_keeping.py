"""Backing up and restoring, checking what is stored, clearing what nobody needs, and saying how it is."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from audioldm_site import logs
from audioldm_site.environment import Environment
from audioldm_site.jobs import lifecycle
from audioldm_site.jobs.models import Status
from audioldm_site.maintenance import restore
from audioldm_site.maintenance.backup import back_up
from audioldm_site.maintenance.prune import targets
from audioldm_site.maintenance.storage_check import check_storage
from generation_app.models import Generation
from gpu.config import FinetuneJob
from gpu.errors import Fault
from gpu.events import EventWriter, read_events
from gpu.manifest import digest, read_manifest
from training_app import services as training
from training_app.models import Checkpoint

LONG_AGO_S = 400 * 24 * 3600


@contextmanager
def elsewhere(settings, folder: Path):
    """DATA_DIR at another place, as a fresh installation finds it."""
    before = settings.DATA_DIR
    settings.DATA_DIR = folder
    for name in settings.MEDIA_FOLDERS:
        (folder / name).mkdir(parents=True)
    try:
        yield folder
    finally:
        settings.DATA_DIR = before


def age(path: Path, *, seconds: float = LONG_AGO_S) -> Path:
    moment = time.time() - seconds
    for item in [*path.rglob("*"), path]:
        os.utime(item, (moment, moment))
    return path


def rewritten(source: Path, target: Path, change) -> Path:
    """A copy of a backup whose members went through `change(name, data) -> (name, data) | None`."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            if changed := change(member.name, old.extractfile(member).read()):
                entry = tarfile.TarInfo(changed[0])
                entry.size = len(changed[1])
                new.addfile(entry, io.BytesIO(changed[1]))
    return target


# --- backup and restore


@pytest.fixture
def waiting_run(transactional_db, alice, dataset, checkpoint):
    return training.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={"max_train_steps": 4})


@pytest.fixture
def backup(waiting_run, tmp_path) -> Path:
    return back_up(tmp_path / "kept.tar").path


def test_a_restored_run_finds_its_clips_and_its_model_at_the_new_place(backup, waiting_run, settings, tmp_path):
    with elsewhere(settings, tmp_path / "moved") as folder:
        restore.restore(backup)

        moved = folder / "runs" / str(waiting_run.pk)
        job, clips = FinetuneJob.read(moved), read_manifest(moved)
        assert digest(clips) == job.manifest_digest == waiting_run.manifest_digest
        assert all(Path(clip.audio).is_file() and Path(clip.audio).is_relative_to(folder) for clip in clips)
        assert Path(job.model.base).is_relative_to(folder) and (Path(job.model.base) / "model_index.json").is_file()
        assert (folder / "db.sqlite3").stat().st_size > 0


def test_rows_and_files_agree_in_the_copy(backup, settings, tmp_path, django_db_blocker):
    import sqlite3

    with elsewhere(settings, tmp_path / "moved") as folder:
        restore.restore(backup)

        with sqlite3.connect(folder / "db.sqlite3") as rows:
            clips = rows.execute("SELECT dataset_id, path FROM datasets_app_clip").fetchall()
            assert len(clips) == 10
            assert len(list((folder / "datasets").rglob("*.wav"))) == 10
            assert rows.execute("SELECT count(*) FROM jobs_worker").fetchone() == (0,)


def test_a_running_job_is_kept_as_its_rows_know_it(waiting_run, settings, tmp_path):
    lifecycle.claim(waiting_run, worker_name="w")
    with EventWriter(waiting_run.folder, attempt=1) as events:
        known = [events.write("progress", step=step, max_steps=4, loss=0.5) for step in (1, 2)]
        lifecycle.record_events(waiting_run, known)
        events.write("progress", step=3, max_steps=4, loss=0.4)
    with open(waiting_run.folder / "events.jsonl", "ab") as file:
        file.write(b'{"v":1,"seq":4,"att')
    unrecorded = waiting_run.folder / "checkpoints" / "global_step=000003"
    unrecorded.mkdir(parents=True)
    (unrecorded / "lora.safetensors").write_bytes(b"x")
    (waiting_run.folder / "control").mkdir(exist_ok=True)
    (waiting_run.folder / "control" / "stop").touch()

    done = back_up(tmp_path / "kept.tar")
    with elsewhere(settings, tmp_path / "moved") as folder:
        restore.restore(done.path)
        moved = folder / "runs" / str(waiting_run.pk)
        assert [event.seq for event in read_events(moved)] == [1, 2]
        assert not (moved / "checkpoints").exists() and not (moved / "control").exists()
    assert [event.seq for event in read_events(waiting_run.folder)] == [1, 2, 3]


def test_a_backup_leaves_nothing_behind(backup, settings):
    assert not list(settings.DATA_DIR.glob(".tmp-*"))
    assert not list(backup.parent.glob(".*.part"))


def test_a_backup_is_never_written_over_anything(backup, tmp_path):
    for target in (backup, tmp_path / "kept.zip", tmp_path / "nowhere" / "kept.tar"):
        with pytest.raises(Fault) as caught:
            back_up(target)
        assert caught.value.code == "backup.target"


def test_nothing_is_restored_over_anything(backup, settings):
    with pytest.raises(Fault) as caught:
        restore.restore(backup)

    assert caught.value.code == "restore.not_empty"


def flip(name: str, data: bytes):
    return name, (bytes([data[0] ^ 1]) + data[1:] if name.endswith(".wav") else data)



@pytest.mark.parametrize(
    "change",
    [
        flip,
        lambda name, data: None if name == "index.json" else (name, data),
        lambda name, data: None if name == "backup.json" else (name, data),
        lambda name, data: ("../" + name if name.endswith(".wav") else name, data),
        lambda name, data: ("/etc/" + name if name.endswith(".wav") else name, data),
        lambda name, data: ("cache/" + name if name.endswith(".wav") else name, data),
        lambda name, data: None if name == "db.sqlite3" else (name, data),
        lambda name, data: (name, data.replace(b'"format": 1', b'"format": 9') if name == "backup.json" else data),
        lambda name, data: (name, b"[]" if name == "index.json" else data),
        lambda name, data: None if name.endswith("config.json") else (name, data),
    ],
)
def test_a_backup_that_was_changed_is_refused_whole(backup, settings, tmp_path, change):
    damaged = rewritten(backup, tmp_path / "damaged.tar", change)
    with elsewhere(settings, tmp_path / "moved") as folder:
        with pytest.raises(Fault) as caught:
            restore.restore(damaged)
        assert caught.value.code == "backup.damaged"
        assert not [path for path in folder.rglob("*") if path.is_file()]
    assert not (tmp_path / "datasets").exists()


def test_a_backup_that_was_cut_short_is_refused(backup, tmp_path):
    cut = tmp_path / "cut.tar"
    cut.write_bytes(backup.read_bytes()[: backup.stat().st_size // 2])
    (tmp_path / "noise.tar").write_bytes(os.urandom(2000))

    for damaged in (cut, tmp_path / "noise.tar"):
        with pytest.raises(Fault) as caught:
            restore.check(damaged)
        assert caught.value.code == "backup.damaged"


def test_a_link_in_a_backup_is_refused(tmp_path, backup, settings):
    damaged = tmp_path / "link.tar"
    with tarfile.open(backup) as old, tarfile.open(damaged, "w") as new:
        new.addfile(old.getmember("backup.json"), old.extractfile("backup.json"))
        link = tarfile.TarInfo("datasets/x")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        new.addfile(link)

    with pytest.raises(Fault) as caught:
        restore.check(damaged)
    assert caught.value.code == "backup.damaged"


def test_the_commands_say_what_they_did(waiting_run, settings, tmp_path, capsys):
    call_command("backup", str(tmp_path / "kept.tar.gz"), "--json")
    made = json.loads(capsys.readouterr().out)
    call_command("restore", str(tmp_path / "kept.tar.gz"), "--check", "--json")
    assert json.loads(capsys.readouterr().out)["files"] == made["files"] > 10


# --- what is stored


@pytest.mark.django_db
def test_what_is_as_it_should_be_has_no_findings(dataset, checkpoint, alice):
    run = training.create_run(owner=alice, dataset=dataset, base_checkpoint=checkpoint, values={"max_train_steps": 4})
    lifecycle.request_stop(run)

    assert list(check_storage(hashes=True)) == []


@pytest.mark.django_db
def test_both_sides_of_a_disagreement_are_named(dataset, checkpoint, run, settings):
    first, second = dataset.clips.all()[:2]
    first.file.unlink()
    data = second.file.read_bytes()
    second.file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (settings.DATA_DIR / "datasets" / "stray").mkdir()
    (settings.DATA_DIR / "datasets" / "stray" / "x.wav").write_bytes(b"1234567")
    (run.folder / "manifest.jsonl").touch()
    Checkpoint.objects.filter(pk=run.base_checkpoint_id).update(missing=True)

    found = {(finding.code, finding.path.split("/")[-1], finding.size_bytes) for finding in check_storage(hashes=True)}

    assert found == {
        ("storage.missing", first.file.name, 0),
        ("storage.changed", second.file.name, 0),
        ("storage.unknown", "stray", 7),
    }


@pytest.mark.django_db
def test_only_what_is_safe_is_mended(dataset, base_checkpoint, settings):
    abandoned = settings.DATA_DIR / "datasets" / ".tmp-dead"
    abandoned.mkdir()
    (abandoned / "x").write_bytes(b"12")
    age(abandoned)
    fresh = settings.DATA_DIR / "datasets" / ".tmp-alive"
    fresh.mkdir()
    stray = settings.DATA_DIR / "runs" / "stray"
    stray.mkdir()

    findings = list(check_storage(fix=True))

    assert {finding.code: finding.fixed for finding in findings} == {"storage.missing": True, "storage.unknown": False, "storage.abandoned": True}
    assert not abandoned.exists() and fresh.exists() and stray.exists()
    base_checkpoint.refresh_from_db()
    assert base_checkpoint.missing


@pytest.mark.django_db
def test_check_storage_ends_with_1_when_something_is_wrong(base_checkpoint, capsys):
    with pytest.raises(SystemExit) as caught:
        call_command("check_storage")

    assert caught.value.code == 1
    assert "storage.missing: checkpoints/base: checkpoint base is gone" in capsys.readouterr().out
    call_command("check_storage", "--fix")


# --- clearing


def made_checkpoint(run, step: int, **values) -> Checkpoint:
    folder = run.folder / "checkpoints" / f"global_step={step:06d}"
    folder.mkdir(parents=True)
    (folder / "lora.safetensors").write_bytes(b"x" * step)
    path = f"runs/{run.pk}/checkpoints/{folder.name}"
    return Checkpoint.objects.create(
        owner=run.owner, name=f"bells, step {step}", family="audioldm2", format="run", origin="run", run=run, base=run.base_checkpoint, global_step=step, path=path, **values
    )  # fmt: skip


def kinds(**ages: float) -> list[tuple[str, int]]:
    return sorted((target.kind, target.size_bytes) for target in targets(**ages))


@pytest.mark.django_db
def test_only_checkpoints_that_nothing_needs_may_go(run, alice):
    plain, pinned, best = made_checkpoint(run, 1), made_checkpoint(run, 2, pinned=True), made_checkpoint(run, 3, is_best=True)
    heard, base, last = made_checkpoint(run, 4), made_checkpoint(run, 5), made_checkpoint(run, 6)
    Generation.objects.create(owner=alice, prompt="x", checkpoint=heard, config={})
    made_checkpoint(run, 7, missing=True)
    Checkpoint.objects.create(name="child", family="audioldm2", format="run", origin="run", base=base, path="runs/x/checkpoints/y")
    assert kinds(checkpoint_days=0) == []  # the run has not ended

    type(run).objects.update(status=Status.SUCCEEDED, finished_at=timezone.now() - timedelta(days=2))

    assert kinds(checkpoint_days=3) == []
    assert kinds() == []
    assert kinds(checkpoint_days=1) == [("checkpoint", 1)]
    call_command("prune", "--checkpoint-days", "1", "--yes")
    assert not plain.folder.exists()
    assert all(kept.folder.exists() for kept in (pinned, best, heard, base, last))


@pytest.mark.django_db
def test_without_yes_nothing_is_deleted(settings, capsys):
    latents = settings.DATA_DIR / "cache" / "latents"
    latents.mkdir()
    (latents / "old.bin").write_bytes(b"x" * 3_000_000)
    age(latents)
    (latents / "new.bin").write_bytes(b"x")

    call_command("prune")
    assert "3.0 MB in 1 items could be deleted" in capsys.readouterr().out
    assert (latents / "old.bin").exists()

    call_command("prune", "--yes", "--dry-run")
    assert (latents / "old.bin").exists()

    call_command("prune", "--yes")
    assert [path.name for path in latents.iterdir()] == ["new.bin"]


@pytest.mark.django_db
def test_the_cache_of_a_run_that_works_stays(run, settings):
    (settings.DATA_DIR / "cache" / "old.bin").write_bytes(b"x")
    age(settings.DATA_DIR / "cache", seconds=40 * 24 * 3600)
    assert kinds() == [("cache", 1)]

    lifecycle.claim(run, worker_name="w")
    type(run).objects.update(started_at=timezone.now() - timedelta(days=50))

    assert kinds() == []


@pytest.mark.django_db
def test_left_over_uploads_and_exports_may_go_and_waiting_ones_stay(settings, alice):
    from datasets_app.models import Dataset

    waiting = Dataset.objects.create(owner=alice, name="waiting", origin="uploaded", source_name="x")
    for name in ("uploads/dead.upload", f"uploads/{waiting.pk}.upload", "exports/model.ckpt"):
        (settings.DATA_DIR / name).write_bytes(b"xx")
    for folder in ("uploads", "exports"):
        age(settings.DATA_DIR / folder)

    assert kinds() == [("export", 2), ("upload", 2)]


@pytest.mark.django_db
def test_sounds_that_somebody_likes_stay(alice, base_checkpoint):
    old = {"status": Status.SUCCEEDED, "finished_at": timezone.now() - timedelta(days=10), "owner": alice, "checkpoint": base_checkpoint, "config": {}}
    Generation.objects.create(prompt="liked", favourite=True, **old)
    plain = Generation.objects.create(prompt="plain", **old)

    assert [target.name for target in targets(sound_days=5)] == ["plain"]
    call_command("prune", "--sound-days", "5", "--yes")
    assert not Generation.objects.filter(pk=plain.pk).exists()


# --- how it is


@pytest.mark.django_db
def test_metrics_are_for_this_machine_and_for_the_monitors_token(settings):
    settings.ENVIRONMENT = Environment.read({"METRICS_TOKEN": "monitor"})
    far = Client(REMOTE_ADDR="203.0.113.9")

    assert Client().get("/metrics").status_code == 200
    assert Client().get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 403
    assert far.get("/metrics").status_code == 403
    assert far.get("/metrics", headers={"Authorization": "Bearer guess"}).status_code == 403
    assert far.get("/metrics", headers={"Authorization": "Bearer monitor"}).status_code == 200


@pytest.mark.django_db
def test_without_a_token_set_none_is_right(settings):
    settings.ENVIRONMENT = Environment.read({})
    assert Client(REMOTE_ADDR="203.0.113.9").get("/metrics", headers={"Authorization": "Bearer "}).status_code == 403


@pytest.mark.django_db
def test_metrics_count_jobs_queues_events_and_room(run, say):
    lifecycle.claim(run, worker_name='w"\n')
    lifecycle.record_events(run, [say("progress", step=1), say("progress", step=2)])

    lines = dict(line.rsplit(" ", 1) for line in Client().get("/metrics").content.decode().splitlines() if not line.startswith("#"))

    assert lines['studio_jobs{kind="training",status="running"}'] == "1"
    assert lines['studio_events_total{kind="training"}'] == "2"
    assert lines['studio_worker_alive{queue="training"}'] == "0"
    assert float(lines['studio_events_per_second{kind="training"}']) == pytest.approx(2 / 60)
    assert float(lines['studio_heartbeat_age_seconds{kind="training"}']) < 60
    assert 0 < float(lines["studio_disk_free_bytes"]) <= float(lines["studio_disk_total_bytes"])


def test_a_line_of_json_knows_its_request_and_its_job():
    record = logging.LogRecord("studio", logging.INFO, "x.py", 1, "two\nlines %s", ("é",), None)
    logs.request_id.set("abc-12345")

    @logs.about_its_job
    def work(job) -> str:
        logs.Context().filter(record)
        return logs.Json().format(record)

    line = json.loads(work(type("Job", (), {"pk": 7})()))
    assert (line["message"], line["request_id"], line["job_id"]) == ("two\nlines é", "abc-12345", "7")
    assert logs.job_id.get() == ""


def test_a_log_that_several_processes_write_rotates_and_stays_bounded(tmp_path):
    handler = logs.SharedFile(tmp_path / "web.log", limit_bytes=100, kept=2)
    handler.setFormatter(logging.Formatter("%(message)s"))
    other = logs.SharedFile(tmp_path / "web.log", limit_bytes=100, kept=2)
    other.setFormatter(logging.Formatter("%(message)s"))
    for number in range(40):
        (handler if number % 2 else other).emit(logging.LogRecord("x", logging.INFO, "x.py", 1, f"line {number:04d}", (), None))

    files = sorted(path.name for path in tmp_path.glob("*.log"))
    assert files == ["web.1.log", "web.2.log", "web.log"]
    assert all(path.stat().st_size <= 100 for path in tmp_path.glob("*.log"))
    assert (tmp_path / "web.log").read_text().splitlines()[-1] == "line 0039"


@pytest.mark.django_db
def test_ready_says_when_the_disk_is_low(monkeypatch):
    from audioldm_site import machine

    monkeypatch.setattr(machine, "LOW_SPACE_BYTES", 10**18)
    assert Client().get("/health/ready").json()["disk"] == "low"
