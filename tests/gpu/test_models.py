"""What a folder says of itself, and that no pickle is ever opened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu.config import ModelRef
from gpu.errors import Fault
from gpu.models import describe, main, read_checkpoint


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def code_of(folder: Path) -> str:
    with pytest.raises(Fault) as caught:
        describe(folder)
    return caught.value.code


def test_the_facts_of_two_models_that_differ(tiny, tiny_v):
    facts, other = describe(tiny), describe(tiny_v)
    assert (facts.family, facts.sample_rate_hz, facts.n_mels, facts.latent_scale, facts.prediction_type) == (
        "audioldm2",
        16_000,
        64,
        4,
        "epsilon",
    )
    assert (other.sample_rate_hz, other.n_mels, other.latent_scale, other.prediction_type) == (22_050, 80, 2, "v_prediction")
    assert facts.ranks_by_clap
    assert facts.size_bytes == sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file())


def test_parameters_are_counted_without_loading_them(tiny):
    from gpu.pipelines import load_pipeline

    pipeline = load_pipeline(ModelRef(base=str(tiny)), device="cpu").pipeline
    parameters = describe(tiny).parameters
    for part in ("unet", "vae", "text_encoder_2"):
        assert parameters[part] == sum(weight.numel() for weight in getattr(pipeline, part).parameters())


def test_describing_a_model_does_not_import_torch(tiny):
    script = f"import sys; from gpu.models import describe; from pathlib import Path; describe(Path({str(tiny)!r})); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_studio_file_recommends_parameters_and_names_the_licence(model):
    studio = {"name": "starter", "licence": "CC0-1.0", "defaults": {"audio_length_in_s": 2.6, "guidance_scale": 2.0, "unknown": 1}}
    (model / "studio.json").write_text(json.dumps(studio))
    facts = describe(model)
    assert (facts.name, facts.licence) == ("starter", "CC0-1.0")
    assert facts.defaults == {"audio_length_in_s": 2.6, "guidance_scale": 2.0}


def test_the_licence_is_read_from_a_model_card(model):
    (model / "README.md").write_text("---\ntags: [audio]\nlicense: cc-by-nc-sa-4.0\n---\n# A model\nlicense: other\n")
    assert describe(model).licence == "cc-by-nc-sa-4.0"


def test_a_folder_of_something_else_is_named_with_what_was_expected(tmp_path):
    (tmp_path / "song.mp3").touch()
    with pytest.raises(Fault, match=r"song\.mp3.*model_index\.json") as caught:
        describe(tmp_path)
    assert caught.value.code == "checkpoint.unrecognised"


def test_another_pipeline_is_not_taken_for_ours(model):
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert code_of(model) == "checkpoint.unrecognised"


@pytest.mark.parametrize("named", [["AudioLDM2Pipeline"], {"AudioLDM2Pipeline": 1}, None, 7])
def test_a_pipeline_that_is_no_name_is_refused_in_words(model, named):
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": named}))
    assert code_of(model) == "checkpoint.unrecognised"


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "studio.json"])
def test_brackets_without_end_are_refused_in_words(model, file):
    (model / file).write_text("[" * 200_000 + "]" * 200_000)
    assert code_of(model) == "checkpoint.incomplete"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("language_model/config.json", "n_layer", 10**7), ("unet/config.json", "layers_per_block", 10**6),
        ("text_encoder/config.json", "text_config", {"num_hidden_layers": 10**7}), ("vae/config.json", "block_out_channels", [32] * 100_000),
        ("vocoder/config.json", "sampling_rate", 10**15), ("vocoder/config.json", "sampling_rate", float("nan")),
        ("vocoder/config.json", "upsample_rates", [0, 2]), ("vocoder/config.json", "model_in_dim", -64),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**11),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused_before_anything_is_built(model, file, key, value):
    config = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**config, key: value}))
    with pytest.raises(Fault, match=key if key != "text_config" else "num_hidden_layers") as caught:
        describe(model)
    assert caught.value.code == "checkpoint.malformed"


def test_a_missing_part_is_named(model):
    shutil.rmtree(model / "vocoder")
    with pytest.raises(Fault, match="vocoder") as caught:
        describe(model)
    assert caught.value.code == "checkpoint.incomplete"


def test_a_file_cut_short_by_a_broken_download_is_found(model):
    weights = next((model / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    assert code_of(model) == "checkpoint.incomplete"


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x00" * 64, b"hello, this is no model"])
def test_rubbish_in_place_of_weights_is_found(model, content):
    next((model / "unet").glob("*.safetensors")).write_bytes(content)
    assert code_of(model) == "checkpoint.incomplete"


def test_a_pickle_is_refused_and_never_opened(model, tmp_path):
    from gpu.pipelines import load_pipeline

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    next((model / "unet").glob("*.safetensors")).unlink()
    torch.save({"weight": Trap()}, model / "unet" / "diffusion_pytorch_model.bin")
    assert code_of(model) == "checkpoint.pickled"
    with pytest.raises(Fault):
        load_pipeline(ModelRef(base=str(model)), device="cpu")
    assert not (tmp_path / "sprung").exists()


def test_inspect_prints_json_or_says_what_is_wrong(tiny, tmp_path, capsys):
    assert main([str(tiny)]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "audioldm2"
    assert main([str(tmp_path)]) == 1
    assert "checkpoint.unrecognised" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"), [("files", "lora.safetensors"), ("files", ["lora.safetensors"]), ("files", {"../x": "0"}), ("config", [])]
)
def test_a_checkpoint_that_does_not_say_its_files_is_refused_in_words(tmp_path, key, value):
    facts = {
        "format_version": 1,
        "step": 1,
        "method": "lora",
        "weights": "raw",
        "base": "x",
        "base_sha256": "",
        "licence": "MIT",
        "files": {},
        "config": {},
        "metrics": {},
        "model": {},
    }
    (tmp_path / "checkpoint.json").write_text(json.dumps(facts))
    assert read_checkpoint(tmp_path).step == 1
    (tmp_path / "checkpoint.json").write_text(json.dumps({**facts, key: value}))
    with pytest.raises(Fault) as caught:
        read_checkpoint(tmp_path)
    assert caught.value.code == "checkpoint.incomplete"
