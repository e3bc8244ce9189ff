"""An evaluation and a listening test, with tiny models and real files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from gpu.config import EvaluateConfig, EvaluateJob, EvaluateSubject, ListenConfig, ListenJob, ModelRef
from gpu.errors import Fault
from gpu.evaluation.ears import can_hear, open_ears
from gpu.evaluation.listen import SAME_MOMENT_S, make_pairs, pair_file
from gpu.evaluation.loudness import level_db
from gpu.evaluation.report import AGAINST, CHECKPOINT, CLAP_SCORE, FRECHET, HELD_OUT, KAD, NEAR_TRAINING, TRAINING, Report
from gpu.evaluation.run import evaluate
from gpu.events import FINISHED, PROGRESS, STOPPED, EventWriter, read_events
from gpu.generate import Generator
from gpu.manifest import write_manifest
from gpu.pipelines import load_pipeline
from gpu.sampling import clap_scores
from gpu.sound import read_recipe
from gpu.tiny import write_tiny
from tests.gpu.conftest import events_of, tones

FEW = {"prompts": 9, "num_inference_steps": 1, "audio_length_in_s": 0.5}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def make_job(tmp_path_factory, tiny, cache_dir):
    def make(*, against: Path | None = None, ears: Path = tiny, validation=8, train=3, cache: Path = cache_dir, **values) -> Path:
        folder = tmp_path_factory.mktemp("jobs") / "evaluation"
        folder.mkdir()
        digest = write_manifest(folder, tones(folder, train=train, validation=validation))
        subjects = [EvaluateSubject(key=CHECKPOINT, name="tiny", model=ModelRef(base=str(tiny)))]
        if against:
            subjects.append(EvaluateSubject(key=AGAINST, name="other", model=ModelRef(base=str(against))))
        EvaluateJob(config=EvaluateConfig.parse({**FEW, **values}), subjects=subjects, ears=str(ears), ears_name=ears.name, dataset="tones",
                    manifest_digest=digest, cache_dir=str(cache)).write(folder)  # fmt: skip
        return folder

    return make


def perform(folder: Path, generator: Generator, *, should_stop=lambda: False) -> None:
    with EventWriter(folder) as events:
        evaluate(EvaluateJob.read(folder), folder, events, should_stop, generator=generator)


@pytest.fixture(scope="module")
def performed(make_job, generator, tiny_v) -> Path:
    """The folder of an evaluation of two tiny models, with nine sounds of each."""
    folder = make_job(against=tiny_v)
    perform(folder, generator)
    return folder


@pytest.fixture
def report(performed) -> Report:
    return Report.read(performed)


def test_an_evaluation_compares_both_checkpoints_and_real_sounds(performed, report):
    assert [subject.key for subject in report.subjects] == [CHECKPOINT, AGAINST, HELD_OUT, TRAINING]
    score = report.subject(CHECKPOINT).figure(CLAP_SCORE)
    assert (score.n, report.prompts, report.captions) == (9, 9, 8)
    assert score.low < score.value < score.high
    assert score.value == pytest.approx(np.mean([sound.clap_score for sound in report.subject(CHECKPOINT).sounds]))
    assert report.subject(CHECKPOINT).figure(KAD).reference_n == 8
    assert [figure.name for figure in report.differences] == [CLAP_SCORE, KAD]
    # The tiny models differ in rate: everything is heard at the lower one.
    assert (report.embedding.heard_rate_hz, report.embedding.dimensions) == (16_000, 16)
    assert events_of(performed, FINISHED)[0].data["summary"] == report.summary()


def test_frechet_distance_is_refused_at_this_size(report):
    figure = report.subject(CHECKPOINT).figure(FRECHET)
    assert figure.value is None
    assert "at least 17 in both sets" in figure.why_not


def test_kernel_distance_is_refused_for_very_few_sounds(make_job, generator):
    folder = make_job(prompts=3)
    perform(folder, generator)
    assert "below 8 of each" in Report.read(folder).subject(CHECKPOINT).figure(KAD).why_not


def test_every_output_has_its_nearest_training_sound(performed, report):
    training = {json.loads(line)["sha256"] for line in (performed / "manifest.jsonl").read_text().splitlines() if '"train"' in line}
    for sound in report.subject(CHECKPOINT).sounds:
        assert sound.nearest.sha256 in training
        assert (NEAR_TRAINING in sound.flags) == (sound.nearest.similarity > report.memory.threshold)


def test_the_same_job_gives_the_same_report(make_job, generator):
    folders = [make_job(prompts=2), make_job(prompts=2)]
    for folder in folders:
        perform(folder, generator)
    first, second = (json.loads((folder / "report.json").read_text()) for folder in folders)
    for report in (first, second):
        del report["made_at"]
    assert first == second


def test_what_was_made_before_a_stop_is_not_made_again(make_job, generator):
    folder = make_job(prompts=4)

    def after_three() -> bool:
        return len(list(folder.glob("sounds/checkpoint/*.wav"))) >= 3

    perform(folder, generator, should_stop=after_three)
    assert [event.type for event in read_events(folder)][-1] == STOPPED
    assert not (folder / "report.json").exists()
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("sounds/checkpoint/*.wav")}

    perform(folder, generator)
    now = {path.name: path.stat().st_mtime_ns for path in folder.glob("sounds/checkpoint/*.wav")}
    assert len(made) == 3
    assert made.items() <= now.items()
    assert [event.data["step"] for event in events_of(folder, PROGRESS)][-1] == 4
    assert Report.read(folder).prompts == 4


def test_nothing_held_out_is_refused_before_a_sound_is_made(make_job, generator):
    folder = make_job(validation=1)
    with pytest.raises(Fault) as caught:
        perform(folder, generator)
    assert caught.value.code == "evaluation.nothing_held_out"
    assert not (folder / "sounds").exists()


def test_a_real_sound_that_was_changed_is_refused(make_job, generator, tmp_path):
    folder = make_job(cache=tmp_path)  # what was heard of a file before is remembered
    first = json.loads((folder / "manifest.jsonl").read_text().splitlines()[-1])["audio"]
    soundfile.write(first, np.full(1234, 0.1), 16_000)
    with pytest.raises(Fault) as caught:
        perform(folder, generator)
    assert caught.value.code == "clip.changed"


def test_a_report_that_is_no_report_is_refused_in_words(tmp_path):
    (tmp_path / "report.json").write_text('{"version": 1}')
    with pytest.raises(Fault) as caught:
        Report.read(tmp_path)
    assert caught.value.code == "evaluation.report_unreadable"


def test_a_table_has_a_line_for_every_figure_and_every_sound(report):
    lines = report.csv().splitlines()
    assert sum(line.startswith("tiny,") for line in lines) == 4 + 9


def test_a_caption_never_becomes_a_formula_of_a_spreadsheet(report):
    subject = report.subject(CHECKPOINT)
    evil = replace(subject, sounds=[replace(subject.sounds[0], prompt='=HYPERLINK("x")')])
    assert "\"'=HYPERLINK" in replace(report, subjects=[evil]).csv()


# Ears


def test_a_sound_is_heard_the_same_at_every_level(tiny):
    ears = open_ears(tiny, name="tiny")
    sound = np.sin(np.arange(8000) / 5)
    assert ears.hear(0.1 * sound, 16_000) @ ears.hear(0.9 * sound, 16_000) == pytest.approx(1)


def test_a_model_without_ears_is_refused_in_words(tmp_path):
    deaf = write_tiny(tmp_path / "deaf", "audioldm_deaf")
    assert not can_hear(deaf)
    with pytest.raises(Fault) as caught:
        open_ears(deaf, name="deaf")
    assert caught.value.code == "evaluation.cannot_hear"
    assert "--clap" in caught.value.message


@pytest.mark.parametrize("variant", ["audioldm", "audioldm_ranker", "audioldm_t5", "audioldm2"])
def test_every_family_hears_as_its_candidates_are_ranked(variant, tmp_path):
    folder = write_tiny(tmp_path / variant, variant)
    loaded = load_pipeline(ModelRef(base=str(folder)), device="cpu")
    ears = open_ears(folder, name=variant)
    sound = 0.5 * np.sin(np.arange(8000) / 5)  # at the level that ears bring everything to
    assert can_hear(folder)
    assert float(ears.read(["a bell"])[0] @ ears.hear(sound, loaded.mel.sample_rate_hz)) == pytest.approx(clap_scores(loaded, "a bell", [sound])[0], abs=1e-5)


def test_an_adapter_beside_a_clap_is_never_applied(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "model")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "elsewhere"), "r": 4, "target_modules": ["q"]}
    (tmp_path / "model" / "text_encoder" / "adapter_config.json").write_text(json.dumps(adapter))

    sound = np.sin(np.arange(8000) / 5)

    heard, plain = (open_ears(folder, name="model").hear(sound, 16_000) for folder in (tmp_path / "model", tiny))
    assert np.array_equal(heard, plain)


def test_a_clap_that_was_saved_by_itself_hears(tiny, tmp_path):
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    for part in (ClapModel.from_pretrained(tiny / "text_encoder"), AutoTokenizer.from_pretrained(tiny / "tokenizer"),
                 ClapFeatureExtractor.from_pretrained(tiny / "feature_extractor")):  # fmt: skip
        part.save_pretrained(tmp_path / "clap")
    assert can_hear(tmp_path / "clap")
    assert open_ears(tmp_path / "clap", name="clap").hear(np.sin(np.arange(8000) / 5), 16_000).shape == (16,)


def test_samples_that_are_no_numbers_are_heard_as_silence(tiny):
    ears = open_ears(tiny, name="tiny")
    assert np.isfinite(ears.hear(np.full(8000, np.nan), 16_000)).all()


def test_a_long_sound_is_heard_the_same_every_time(tiny):
    ears = open_ears(tiny, name="tiny")
    sound = np.random.default_rng(0).standard_normal(16_000 * 12)
    assert (ears.hear(sound, 16_000) == ears.hear(sound, 16_000)).all()


# Blind pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, generator, tiny, tiny_v) -> Path:
    folder = tmp_path_factory.mktemp("listening")
    config = ListenConfig.parse({"prompts": "a bell\nrain", "num_inference_steps": 1, "audio_length_in_s": 0.5})
    subjects = [EvaluateSubject(key=key, name=key, model=ModelRef(base=str(model))) for key, model in (("checkpoint", tiny), ("against", tiny_v))]
    ListenJob(config=config, subjects=subjects).write(folder)
    with EventWriter(folder) as events:
        make_pairs(ListenJob.read(folder), folder, events, lambda: False, generator=generator)
    return folder


def test_nothing_about_a_pair_of_files_tells_whose_they_are(pairs):
    for index in range(2):
        files = [pair_file(pairs, index, number) for number in (0, 1)]
        assert {path.stat().st_mtime for path in files} == {SAME_MOMENT_S}
        assert len({path.stat().st_size for path in files}) == 1
        assert [read_recipe(path) for path in files] == [{}, {}]
        assert len({soundfile.info(path).samplerate for path in files}) == 1


def test_both_sounds_of_a_pair_are_equally_loud(pairs):
    for index in range(2):
        (first, rate), (second, _) = (soundfile.read(pair_file(pairs, index, number)) for number in (0, 1))
        assert level_db(first, rate) == pytest.approx(level_db(second, rate), abs=0.3)
        assert max(np.abs(first).max(), np.abs(second).max()) <= 1


def test_both_sounds_of_a_pair_have_one_prompt_and_seed(pairs):
    recipes = [[read_recipe(path) for path in sorted(pairs.glob(f"sounds/{key}/*.wav"))] for key in ("checkpoint", "against")]
    assert [(r["prompt"], r["seed"]) for r in recipes[0]] == [(r["prompt"], r["seed"]) for r in recipes[1]]
    assert [r["prompt"] for r in recipes[0]] == ["a bell", "rain"]
