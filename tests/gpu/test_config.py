from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.config import PRESETS, ConfigError, EvaluateConfig, FinetuneConfig, FinetuneJob, GenerateConfig, ListenConfig, ModelRef
from gpu.errors import Fault
from gpu.parameters import markdown

ROOT = Path(__file__).parents[2]


def test_the_predecessors_seven_options_keep_their_defaults():
    config = FinetuneConfig()
    assert (config.seed, config.checkpointing_steps, config.validation_epochs) == (0, 5000, 5)
    assert (config.guidance_scale, config.num_inference_steps, config.num_waveforms_per_prompt) == (3.5, 200, 3)
    assert config.audio_length_in_s == 10.24
    assert (config.learning_rate, config.train_batch_size, config.lr_warmup_steps, config.max_train_steps) == (1e-4, 2, 2000, 20_000)


@pytest.mark.parametrize("config", [GenerateConfig, EvaluateConfig, ListenConfig])
def test_sounds_outside_a_run_take_the_few_steps_of_the_measured_curve(config):
    assert (config().sampler, config().num_inference_steps) == ("dpmsolver++", 20)


def test_form_strings_become_typed_values():
    config = FinetuneConfig.parse({"guidance_scale": "3.5", "seed": "7", "use_ema": "on", "validation_prompts": " a dog \n\na cat"})
    assert config.guidance_scale == 3.5
    assert config.seed == 7
    assert config.use_ema is True
    assert config.validation_prompts == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("seed", "x", "seed ('x') must be a whole number"),
        ("seed", -1, "seed (-1) must be at least 0"),
        ("seed", 2**32, "seed (4294967296) must be at most 4294967295"),
        ("guidance_scale", "nan", "guidance_scale ('nan') must be a number"),
        ("guidance_scale", "inf", "guidance_scale ('inf') must be a number"),
        ("train_batch_size", 2.5, "train_batch_size (2.5) must be a whole number"),
        ("train_batch_size", True, "train_batch_size (True) must be a whole number"),
        ("method", "dreambooth", "method ('dreambooth') must be one of lora, full"),
        ("use_ema", "perhaps", "use_ema ('perhaps') must be true or false"),
    ],
)
def test_a_wrong_value_is_named_with_its_limit(name, value, says):
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig.parse({name: value})
    assert caught.value.errors == {name: says}


def test_every_wrong_value_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig.parse({"seed": "x", "learning_rate": 2, "nonsense": 1})
    assert set(caught.value.errors) == {"seed", "learning_rate", "nonsense"}


def test_a_chosen_warm_up_must_be_shorter_than_the_run():
    with pytest.raises(ConfigError, match=r"lr_warmup_steps \(5000\) must be less than max_train_steps \(1000\)"):
        FinetuneConfig.parse({"lr_warmup_steps": 5000, "max_train_steps": 1000})


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (20, 2), (1000, 100), (20_000, 2000), (50_000, 2000)])
def test_a_warm_up_that_nobody_chose_fits_the_run(steps, warmup):
    assert FinetuneConfig.parse({"max_train_steps": steps}).lr_warmup_steps == warmup


def test_guidance_above_15_is_allowed_with_a_warning():
    assert list(FinetuneConfig.parse({"guidance_scale": 16}).warnings()) == ["guidance_scale"]
    assert FinetuneConfig.parse({"guidance_scale": 15}).warnings() == {}


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="prompt is empty"):
        GenerateConfig.parse({"prompt": "  "})


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    FinetuneConfig.parse(PRESETS[preset])


@given(st.dictionaries(st.sampled_from([p.name for p in FinetuneConfig.parameters()]), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))))
def test_anything_is_parsed_or_refused_by_name(values):
    try:
        config = FinetuneConfig.parse(values)
    except ConfigError as error:
        assert error.errors
    else:
        assert FinetuneConfig.parse(config.to_dict()) == config


def test_a_job_survives_its_file(tmp_path):
    job = FinetuneJob(config=FinetuneConfig(seed=3, validation_prompts=["ein Hund, größer"]), model=ModelRef(base="/models/x", weights="/w"), manifest_digest="d")
    job.write(tmp_path)
    assert FinetuneJob.read(tmp_path) == job


@pytest.mark.parametrize("content", ["", "[]", "{", '{"job":"generate"}'])
def test_a_foreign_config_file_is_a_fault(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(Fault) as caught:
        FinetuneJob.read(tmp_path)
    assert caught.value.code == "config.unreadable"


def test_the_reference_page_matches_the_declarations():
    assert (ROOT / "docs" / "parameters.md").read_text() == markdown(), "run: python -m gpu.parameters > docs/parameters.md"


def test_the_schema_names_bounds_and_choices():
    schema = FinetuneConfig.json_schema()["properties"]
    assert schema["method"]["enum"] == ["lora", "full"]
    assert (schema["lora_rank"]["minimum"], schema["lora_rank"]["maximum"]) == (1, 256)
