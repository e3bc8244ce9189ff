"""What a validation says of its sounds, beside the loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu.config import FinetuneConfig, FinetuneJob, ModelRef
from gpu.evaluation.ears import open_ears
from gpu.events import SAMPLE, VALIDATED
from gpu.finetune import main
from gpu.finetune.validation import ValidationSounds
from gpu.manifest import ManifestClip, write_manifest
from gpu.pipelines import load_pipeline
from tests.gpu.conftest import QUICK, events_of, tones

PROMPTS = ["A high beep", "Rain", "A dog", "Wind", "Glass", "Steps", "An engine", "A piano"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny, cache_dir) -> Path:
    """A run of one step with eight prompts and eight held-out clips, the fewest that a distance is given for."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    digest = write_manifest(folder, tones(folder, train=2, validation=8))
    config = FinetuneConfig.parse({**QUICK, "max_train_steps": 1, "validation_prompts": PROMPTS})
    FinetuneJob(config=config, model=ModelRef(base=str(tiny)), manifest_digest=digest, cache_dir=str(cache_dir)).write(folder)
    assert main([str(folder)]) == 0
    return folder


def test_a_validation_gives_scores_with_their_intervals(ran):
    first = events_of(ran, VALIDATED)[0].data
    scores = [event.data["clap_score"] for event in events_of(ran, SAMPLE) if event.data["step"] == 0]
    assert first["clap_score"] == pytest.approx(sum(scores) / 8)
    assert first["clap_low"] < first["clap_score"] < first["clap_high"]
    assert first["kad_low"] < first["kad"] < first["kad_high"]
    assert (first["sounds"], first["kad_reference"]) == (8, 8)


def test_flagged_counts_the_sounds_with_a_flag(ran):
    for validated in events_of(ran, VALIDATED):
        flags = [event.data["flags"] for event in events_of(ran, SAMPLE) if event.data["step"] == validated.data["step"]]
        assert validated.data["flagged"] == sum(bool(found) for found in flags)


def test_few_prompts_have_no_distance(make_run):
    folder = make_run(max_train_steps=1)
    assert main([str(folder)]) == 0
    data = events_of(folder, VALIDATED)[0].data
    assert "kad" not in data
    assert "clap_low" not in data  # one prompt: a score, and no interval


def test_a_held_out_file_that_is_gone_by_then_does_not_end_the_run(ran, tmp_path, tiny):
    line = json.loads((ran / "manifest.jsonl").read_text().splitlines()[-1])
    gone = ManifestClip(**{**line, "audio": str(tmp_path / "gone.wav")})
    sounds = ValidationSounds(tmp_path, ["a bell"], FinetuneJob.read(ran).config, None, held_out=[gone])
    assert sounds._hear_held_out(open_ears(tiny, name="tiny"), load_pipeline(ModelRef(base=str(tiny)), device="cpu"), lambda *_: None) is None
    assert sounds.held_out == []
