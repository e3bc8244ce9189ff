"""Every management command, as a script would call it: `--json` on stdout, faults as `code: words` with exit code 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.core.management import call_command

from audioldm_site.jobs.models import Status
from datasets_app.models import Dataset
from tests.factories import tiny_model, write_dataset_zip
from training_app import services
from training_app.models import Checkpoint, TrainingRun

pytestmark = pytest.mark.django_db(transaction=True)
ROOT = Path(__file__).parents[2]
FEW = ["--num_inference_steps", "2", "--audio_length_in_s", "0.5", "--num_waveforms_per_prompt", "1"]


@pytest.fixture
def call(capsys):
    def run(*args: str) -> dict:
        capsys.readouterr()
        call_command(*args, "--json")
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    def run(*args: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            call_command(*args)
        assert caught.value.code == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return run


def test_every_command_has_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    commands = [path.stem for path in ROOT.glob("*/management/commands/*.py") if path.stem != "__init__"]
    commands += [path.stem for path in ROOT.glob("*/*/management/commands/*.py") if path.stem != "__init__"]
    assert [name for name in commands if f'"{name}"' not in tests] == []


def test_import_dataset_reports_what_it_found(call, tmp_path):
    result = call("import_dataset", str(write_dataset_zip(tmp_path / "tones.zip", clips=4)), "--name", "tones")
    assert (result["name"], result["status"], result["clips"], result["problems"]) == ("tones", "ready", 4, [])
    assert result["duration_s"] == pytest.approx(4.0)
    assert Dataset.objects.get(pk=result["id"]).clips.count() == 4


def test_import_dataset_refuses_with_code_and_words(refused, tmp_path):
    (tmp_path / "x.zip").write_text("not a zip")
    assert refused("import_dataset", str(tmp_path / "x.zip")).startswith("dataset.not_a_zip: ")


def test_import_checkpoint_registers_a_model(call):
    result = call("import_checkpoint", str(tiny_model()), "--name", "tiny")
    assert (result["name"], result["family"], result["format"]) == ("tiny", "audioldm2", "diffusers")


def test_import_checkpoint_refuses_what_is_no_model(refused, tmp_path):
    assert refused("import_checkpoint", str(tmp_path)).startswith("checkpoint.unrecognised: ")


def test_scan_storage_takes_what_was_dropped(call, tmp_path, settings):
    source = write_dataset_zip(tmp_path / "dropped.zip", clips=3)
    target = settings.DATA_DIR / "incoming" / "datasets" / "dropped.zip"
    source.rename(target)
    import os

    os.utime(target, (1_000_000_000, 1_000_000_000))
    result = call("scan_storage")
    assert [dataset["name"] for dataset in result["datasets"]] == ["dropped"]
    assert result["ignored"] == []


def test_finetune_works_with_no_worker_running(call, dataset, checkpoint):
    result = call("finetune", "--dataset", dataset.name, "--checkpoint", "tiny", "--max_train_steps", "3", *FEW)
    assert (result["status"], result["global_step"]) == ("succeeded", 3)
    assert Path(result["checkpoints"][-1]["path"]).is_dir()
    assert Checkpoint.objects.get(pk=result["checkpoints"][-1]["id"]).global_step == 3


def test_finetune_names_a_wrong_parameter(refused, dataset, checkpoint):
    said = refused("finetune", "--dataset", dataset.name, "--checkpoint", "tiny", "--learning_rate", "fast")
    assert said.startswith("config.invalid: learning_rate ('fast') must be a number")


def test_finetune_names_the_datasets_there_are(refused, dataset, checkpoint):
    said = refused("finetune", "--dataset", "nonsense", "--checkpoint", "tiny")
    assert said.startswith("lookup.not_found: ")
    assert dataset.name in said


def test_finetune_detached_leaves_the_run_in_line(call, dataset, checkpoint):
    result = call("finetune", "--dataset", dataset.name, "--checkpoint", "tiny", "--detach")
    assert (result["status"], result["global_step"]) == ("queued", 0)


def test_generate_copies_the_sounds_out(call, checkpoint, tmp_path):
    result = call("generate", "a dog barking", "--checkpoint", "tiny", "--out", str(tmp_path / "out"), *FEW)
    waveform = result["waveforms"][0]
    assert Path(waveform["path"]) == tmp_path / "out" / "a-dog-barking-0.wav"
    assert Path(waveform["path"]).is_file()
    assert set(waveform) == {"path", "index", "seed", "clap_score", "duration_s", "sha256"}
    assert result["elapsed_s"] > 0


def test_stop_run_cancels_a_waiting_run(call, dataset, checkpoint):
    run = services.create_run(owner=None, dataset=dataset, base_checkpoint=checkpoint, values={}, name="waiting")
    assert call("stop_run", "waiting")["status"] == "cancelled"
    run.refresh_from_db()
    assert run.status == Status.CANCELLED


def test_stop_run_refuses_one_that_has_ended(refused, dataset, checkpoint):
    run = services.create_run(owner=None, dataset=dataset, base_checkpoint=checkpoint, values={}, name="waiting")
    services.request_stop(run)
    assert refused("stop_run", str(run.pk)).startswith("run.ended: ")


def test_list_runs_lists_the_newest_first(call, dataset, checkpoint):
    for name in ("older", "newer"):
        services.create_run(owner=None, dataset=dataset, base_checkpoint=checkpoint, values={}, name=name)
    assert [run["name"] for run in call("list_runs")["runs"]] == ["newer", "older"]
    assert TrainingRun.objects.count() == 2


def test_demo_does_the_main_job(call, tmp_path, settings, checkpoint, dataset):
    Checkpoint.objects.filter(pk=checkpoint.pk).update(name="starter", defaults={"audio_length_in_s": 0.5, "num_inference_steps": 2})
    Dataset.objects.filter(pk=dataset.pk).update(name="demo")
    result = call("demo", "--steps", "2", "--out", str(tmp_path / "demo"), "--prompt", dataset.clips.first().caption)
    for name in ("before", "after", "picture"):
        assert Path(result[name]).stat().st_size > 0
    assert Path(result["picture"]).read_bytes().startswith(b"\x89PNG")
