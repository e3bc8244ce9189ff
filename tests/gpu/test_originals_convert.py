"""Original checkpoints in and out again: what the folder holds, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AudioLDM2Pipeline, AudioLDMPipeline
from peft import PeftModel

from gpu.config import ConvertJob, ExportJob, ModelRef
from gpu.errors import Fault
from gpu.finetune.checkpoints import save_tensors
from gpu.lora import TARGET_MODULES, inject_lora, lora_state
from gpu.manifest import sha256_of
from gpu.models import CheckpointFacts, describe
from gpu.originals.convert import convert
from gpu.originals.export import export
from gpu.originals.layouts import describe_file, ema_share_of_base
from gpu.originals.sizes import export_sizes
from gpu.originals.tensors import open_tensors

LORA_RANK = 2


def quiet(stage: str, done: int, total: int) -> None:
    pass


def imported(original, folder: Path, family: str = "audioldm-s", **about) -> Path:
    source = original(family)
    convert(ConvertJob(source=str(source.path), destination=str(folder), tokenizers=str(source.tokenizers), **about), quiet)
    return folder


@pytest.fixture(scope="module")
def small(original, tmp_path_factory) -> Path:
    """AudioLDM-S, brought in."""
    return imported(original, tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def second(original, tmp_path_factory) -> Path:
    """AudioLDM 2, brought in."""
    return imported(original, tmp_path_factory.mktemp("models") / "second", "audioldm2")


def written(ref: ModelRef, path: Path, format: str, **about) -> Path:
    return export(ExportJob(model=ref, format=format, destination=str(path), **about), quiet)


def unet_of(folder: Path) -> torch.nn.Module:
    kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["unet"][1])
    return kind.from_pretrained(folder / "unet").eval()


def trained(base: Path, folder: Path, method: str) -> Path:
    """A run's checkpoint with weights that training could have left."""
    folder.mkdir()
    unet = unet_of(base)
    torch.manual_seed(0)
    if method == "lora":
        inject_lora(unet, rank=LORA_RANK)
        values = {name: 0.1 * torch.randn_like(weight) for name, weight in lora_state(unet).items()}
        about = {"rank": str(LORA_RANK), "alpha": str(LORA_RANK), "target_modules": ",".join(TARGET_MODULES)}
        save_tensors(values, folder / "lora.safetensors", metadata={"format": "pt", **about})
    else:
        values = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in unet.state_dict().items()}
        save_tensors(values, folder / "unet.safetensors", metadata={"format": "pt"})
    facts = CheckpointFacts(
        step=7, method=method, weights="raw", base=str(base), base_sha256="", files={path.name: sha256_of(path) for path in folder.iterdir()},
        config={}, metrics={}, model={}, licence="cc-by-nc-sa-4.0",
    )  # fmt: skip
    (folder / "checkpoint.json").write_text(json.dumps(facts.as_dict()))
    return folder


def tensors_of(path: Path) -> dict[str, bytes]:
    with open_tensors(path) as file:
        return {name: file.array(name).tobytes() for name in file.names}


def noise_of(unet: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return unet(torch.randn(1, 8, 8, 16), torch.tensor([5]), encoder_hidden_states=None, class_labels=torch.randn(1, 512)).sample


# --- in ---


def test_the_folder_is_described_with_what_it_came_from(small, original):
    facts = describe(small)
    assert (facts.family, facts.ranks_by_clap, facts.licence) == ("audioldm", True, "cc-by-nc-sa-4.0")
    assert facts.original["layout"] == "A"
    assert facts.original["weights"] == "ema"
    assert facts.original["source_sha256"] == sha256_of(original("audioldm-s").path)
    assert "CC BY-NC-SA 4.0" in (small / "README.md").read_text()


@pytest.mark.parametrize(("folder", "kind"), [("small", AudioLDMPipeline), ("second", AudioLDM2Pipeline)])
def test_diffusers_own_pipeline_opens_it(request, folder, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = kind.from_pretrained(request.getfixturevalue(folder))
    assert pipeline.scheduler.config.beta_start == 0.0015
    assert pipeline.vae.config.scaling_factor == pytest.approx(0.4321)
    assert list(pipeline.unet.config.attention_head_dim) == describe(request.getfixturevalue(folder)).original["heads"]


def test_the_copy_of_the_unet_can_be_chosen(original, small, tmp_path):
    raw = imported(original, tmp_path / "raw", weights="raw")
    with open_tensors(original("audioldm-s").path) as file, open_tensors(raw / "unet" / "diffusion_pytorch_model.safetensors") as unet:
        assert np.array_equal(unet.array("conv_in.weight"), file.array("model.diffusion_model.input_blocks.0.0.weight"))
    with open_tensors(original("audioldm-s").path) as file, open_tensors(small / "unet" / "diffusion_pytorch_model.safetensors") as unet:
        assert np.array_equal(unet.array("conv_in.weight"), file.array("model_ema.diffusion_modelinput_blocks00weight"))


def test_the_average_of_a_short_fine_tune_is_said_to_have_barely_moved(original):
    facts = describe_file(original("audioldm-ft").path)
    assert facts.default_weights == "ema"
    assert "61%" in facts.warnings[0]
    assert ema_share_of_base(steps=5000, num_updates=355_000) == pytest.approx(0.9999**5000)
    assert ema_share_of_base(steps=5000, num_updates=5000) == 0.0 or ema_share_of_base(steps=5000, num_updates=5000) < 1e-6


def changed(original, path: Path, change) -> Path:
    """The small checkpoint with another state dict."""
    state = torch.load(original("audioldm-s").path, weights_only=True)["state_dict"]
    change(state)
    torch.save({"state_dict": state}, path)
    return path


def without(name: str):
    return lambda state: state.pop(name)


def filled(name: str, value: float):
    return lambda state: state[name].fill_(value)


UNET_WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"
VOCODER = "first_stage_model.vocoder.conv_pre.bias"


@pytest.mark.parametrize(
    ("change", "weights", "code", "words"),
    [
        (without("scale_factor"), "auto", "checkpoint.incomplete", "scale_factor"),
        (without(VOCODER), "auto", "checkpoint.incomplete", "vocoder lacks 1 of"),
        (without("model_ema.diffusion_modelinput_blocks00weight"), "ema", "checkpoint.incomplete", "no moving average"),
        (without("model_ema.diffusion_modelout2bias"), "auto", "checkpoint.incomplete", "model_ema.diffusion_modelout2bias"),
        (filled("scale_factor", 0.0), "auto", "checkpoint.malformed", "scale_factor"),
        (filled("scale_factor", float("nan")), "auto", "checkpoint.malformed", "scale_factor"),
        (filled("betas", 0.5), "auto", "checkpoint.unrecognised", "noise schedule"),
        (filled("betas", -1.0), "auto", "checkpoint.unrecognised", "betas"),
        (filled(UNET_WEIGHT, float("nan")), "raw", "checkpoint.not_finite", UNET_WEIGHT),
        (lambda state: state.update({VOCODER: torch.ones(3)}), "auto", "checkpoint.unrecognised", "does not fit"),
        (lambda state: state.update({"model.diffusion_model.surprise.weight": torch.ones(3)}), "auto", "", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_and_leaves_nothing(original, tmp_path, change, weights, code, words):
    path = changed(original, tmp_path / "changed.ckpt", change)
    job = ConvertJob(source=str(path), destination=str(tmp_path / "out" / "model"), weights=weights, tokenizers=str(original("audioldm-s").tokenizers))
    if not code:
        convert(job, quiet)
        assert "surprise" in "".join(tensors_of(tmp_path / "out" / "model" / "original.safetensors"))
        return
    with pytest.raises(Fault, match=words) as caught:
        convert(job, quiet)
    assert caught.value.code == code
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_another_schedule_of_the_same_kind_is_taken_over(original, tmp_path):
    linear = lambda state: state["betas"].copy_(torch.linspace(1e-4, 2e-2, 1000))  # noqa: E731
    path = changed(original, tmp_path / "changed.ckpt", linear)
    convert(ConvertJob(source=str(path), destination=str(tmp_path / "m"), tokenizers=str(original("audioldm-s").tokenizers)), quiet)
    schedule = json.loads((tmp_path / "m" / "scheduler" / "scheduler_config.json").read_text())
    assert (schedule["beta_schedule"], schedule["beta_end"]) == ("linear", pytest.approx(2e-2))


def test_without_tokenizers_nothing_heavy_begins_and_the_words_say_what_to_do(original, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    stages = []
    (tmp_path / "empty").mkdir()
    job = ConvertJob(source=str(original("audioldm-s").path), destination=str(tmp_path / "m"), tokenizers=str(tmp_path / "empty"))
    with pytest.raises(Fault, match="FacebookAI/roberta-base") as caught:
        convert(job, lambda stage, done, total: stages.append(stage))
    assert caught.value.code == "tokenizers.missing"
    assert "checking" not in stages


def test_the_tokenizers_of_a_model_folder_are_taken_when_they_fit(original, second, tmp_path):
    convert(ConvertJob(source=str(original("audioldm-s").path), destination=str(tmp_path / "m"), tokenizers=str(second)), quiet)
    assert (tmp_path / "m" / "tokenizer" / "tokenizer.json").is_file()


def test_tokenizers_of_another_size_are_refused(original, second, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(second / "tokenizer_2", tmp_path / "t" / "roberta")
    with pytest.raises(Fault, match="it is a T5Tokenizer"):
        convert(ConvertJob(source=str(original("audioldm-s").path), destination=str(tmp_path / "m"), tokenizers=str(tmp_path / "t")), quiet)


def test_a_stop_in_the_middle_leaves_nothing(original, tmp_path):
    class Enough(Exception):
        pass

    def report(stage: str, done: int, total: int) -> None:
        if stage == "converting" and done > total / 2:
            raise Enough

    source = original("audioldm-s")
    with pytest.raises(Enough):
        convert(ConvertJob(source=str(source.path), destination=str(tmp_path / "o" / "m"), tokenizers=str(source.tokenizers)), report)
    assert list((tmp_path / "o").iterdir()) == []


@pytest.mark.parametrize("how", ["written to", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_refused_and_leaves_nothing(original, tmp_path, how):
    source = original("audioldm-s")
    file, other = tmp_path / "x.ckpt", tmp_path / "y.ckpt"
    shutil.copyfile(source.path, file)
    shutil.copyfile(source.path, other)

    def report(stage: str, done: int, total: int) -> None:
        if stage == "converting" and done == 0:
            if how == "replaced":
                other.rename(file)
            else:
                os.utime(file)

    with pytest.raises(Fault) as caught:
        convert(ConvertJob(source=str(file), destination=str(tmp_path / "o" / "m"), tokenizers=str(source.tokenizers)), report)
    assert caught.value.code == "checkpoint.changed"
    assert list((tmp_path / "o").iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_written(original, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(Fault) as caught:
        imported(original, tmp_path / "m")
    assert caught.value.code == "disk.full"


def test_a_destination_that_exists_is_never_touched(original, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").write_text("x")
    with pytest.raises(Fault) as caught:
        imported(original, tmp_path / "m")
    assert caught.value.code == "file.unusable"
    assert (tmp_path / "m" / "precious").read_text() == "x"


def test_a_diffusers_folder_is_checked_and_copied_without_pickles(tiny, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    facts = convert(ConvertJob(source=str(source), destination=str(tmp_path / "m"), name="Mine", licence="mit"), quiet)
    assert (facts.name, facts.licence) == ("Mine", "mit")
    assert not list((tmp_path / "m").rglob("*.bin"))
    assert tensors_of(tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors") == tensors_of(tiny / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("named", [["os", "system"], ["os", "system", ""], ["os"], []])
def test_a_folder_that_names_a_class_from_elsewhere_is_refused(tiny, tmp_path, named):
    shutil.copytree(tiny, tmp_path / "source")
    index = json.loads((tmp_path / "source" / "model_index.json").read_text())
    index["vocoder"] = named
    (tmp_path / "source" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(Fault, match=r"its vocoder is .*only classes of diffusers"):
        convert(ConvertJob(source=str(tmp_path / "source"), destination=str(tmp_path / "m")), quiet)


def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "source")
    os.mkfifo(tmp_path / "source" / "unet" / "notes.txt")
    with pytest.raises(Fault, match=r"unet/notes\.txt is no ordinary file"):
        convert(ConvertJob(source=str(tmp_path / "source"), destination=str(tmp_path / "m")), quiet)


@pytest.mark.parametrize("name", ["lora.safetensors", "unet.safetensors"])
def test_a_part_of_a_model_alone_is_no_model(small, tmp_path, name):
    run = trained(small, tmp_path / "run", name.partition(".")[0].replace("unet", "full"))
    assert describe_file(run / name).kind == name.partition(".")[0]
    with pytest.raises(Fault) as caught:
        convert(ConvertJob(source=str(run / name), destination=str(tmp_path / "m")), quiet)
    assert caught.value.code == "checkpoint.not_whole"


# --- out ---


@pytest.mark.parametrize(("folder", "family"), [("small", "audioldm-s"), ("second", "audioldm2")])
def test_in_and_out_again_every_tensor_has_its_bits_its_type_and_its_place(request, original, tmp_path, folder, family):
    path = written(ModelRef(base=str(request.getfixturevalue(folder))), tmp_path / "again.ckpt", "ckpt")
    with open_tensors(original(family).path) as before, open_tensors(path) as after:
        assert list(after.names.items()) == list(before.names.items())
    assert tensors_of(path) == tensors_of(original(family).path)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_was_trained_is_in_both_copies_of_the_unet_and_nothing_else_changes(small, original, tmp_path, method):
    ref = ModelRef(base=str(small), weights=str(trained(small, tmp_path / "run", method)))
    after = tensors_of(written(ref, tmp_path / "tuned.ckpt", "ckpt"))
    before = tensors_of(original("audioldm-s").path)
    merged = tensors_of(written(ref, tmp_path / "tuned", "diffusers") / "unet" / "diffusion_pytorch_model.safetensors")

    assert after[UNET_WEIGHT] == after["model_ema.diffusion_modelinput_blocks00weight"] == merged["conv_in.weight"]
    assert {name for name in after if after[name] != before[name] and not name.startswith(("model.", "model_ema."))} == set()
    assert after["model_ema.num_updates"] == before["model_ema.num_updates"]
    to_q = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    assert after[to_q] != before[to_q]


def test_fp16_halves_the_weights_and_leaves_the_schedule(small, tmp_path):
    with open_tensors(written(ModelRef(base=str(small)), tmp_path / "half.ckpt", "ckpt", dtype="fp16")) as file:
        assert file.names[UNET_WEIGHT].dtype == "F16"
        assert file.names["betas"].dtype == "F32"
        assert file.names["model_ema.num_updates"].dtype == "I32"


def test_a_model_that_never_was_an_original_is_refused_with_words(tiny, tmp_path):
    with pytest.raises(Fault, match="not brought in from an original"):
        written(ModelRef(base=str(tiny)), tmp_path / "x.ckpt", "ckpt")
    assert "not brought in" in export_sizes(ModelRef(base=str(tiny)))["ckpt"]


def test_a_slim_import_cannot_be_written_as_an_original(original, tmp_path):
    slim = imported(original, tmp_path / "slim", keep_original=False)
    with pytest.raises(Fault) as caught:
        written(ModelRef(base=str(slim)), tmp_path / "x.ckpt", "ckpt")
    assert caught.value.code == "checkpoint.no_original"


@pytest.mark.parametrize(
    ("file", "key", "value", "code"),
    [("unet/config.json", "attention_head_dim", 8, "checkpoint.heads"), ("scheduler/scheduler_config.json", "prediction_type", "v_prediction", "export.impossible")],
)  # fmt: skip
def test_other_heads_or_another_prediction_is_not_written_as_an_original(small, tmp_path, file, key, value, code):
    shutil.copytree(small, tmp_path / "m", copy_function=shutil.os.link)
    config = json.loads((small / file).read_text())
    (tmp_path / "m" / file).unlink()
    (tmp_path / "m" / file).write_text(json.dumps({**config, key: value}))
    with pytest.raises(Fault) as caught:
        written(ModelRef(base=str(tmp_path / "m")), tmp_path / "x.ckpt", "ckpt")
    assert caught.value.code == code


def test_the_whole_model_in_one_file_comes_back_as_the_same_model(small, tmp_path):
    run = trained(small, tmp_path / "run", "lora")
    ref = ModelRef(base=str(small), weights=str(run))
    one = written(ref, tmp_path / "one.safetensors", "safetensors", provenance={"name": "Tuned", "run": "42"})
    assert describe_file(one).name == "Tuned"
    facts = convert(ConvertJob(source=str(one), destination=str(tmp_path / "back")), quiet)
    assert (facts.name, facts.family, facts.licence) == ("Tuned", "audioldm", "cc-by-nc-sa-4.0")
    half = written(ref, tmp_path / "half", "diffusers", dtype="fp16")
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model", "audio_encoder/model"):
        assert tensors_of(tmp_path / "back" / f"{part}.safetensors") == tensors_of(half / f"{part}.safetensors")


def test_a_file_path_that_leads_out_of_the_folder_is_refused(small, tmp_path):
    one = written(ModelRef(base=str(small)), tmp_path / "one.safetensors", "safetensors")
    content = one.read_bytes().replace(b'"files/README.md"', b'"files/../EVIL.m"')
    one.write_bytes(content)
    with pytest.raises(Fault) as caught:
        convert(ConvertJob(source=str(one), destination=str(tmp_path / "o" / "back")), quiet)
    assert caught.value.code == "checkpoint.malformed"
    assert not list(tmp_path.rglob("EVIL*"))


def test_a_lora_opens_in_diffusers_and_in_peft_as_it_sounds_here(small, tmp_path):
    ref = ModelRef(base=str(small), weights=str(trained(small, tmp_path / "run", "lora")))
    folder, file = written(ref, tmp_path / "lora", "lora"), written(ref, tmp_path / "lora.safetensors", "lora")
    expected = noise_of(unet_of(written(ref, tmp_path / "tuned", "diffusers")))
    by_peft = PeftModel.from_pretrained(unet_of(small), folder).eval()
    by_diffusers = unet_of(small)
    by_diffusers.load_lora_adapter(str(file), prefix=None)

    assert (noise_of(unet_of(small)) - expected).abs().max() > 0.01
    torch.testing.assert_close(noise_of(by_peft), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noise_of(by_diffusers), expected, atol=1e-4, rtol=1e-4)


def test_a_full_fine_tune_has_no_lora_to_write(small, tmp_path):
    ref = ModelRef(base=str(small), weights=str(trained(small, tmp_path / "run", "full")))
    with pytest.raises(Fault) as caught:
        written(ref, tmp_path / "l", "lora")
    assert caught.value.code == "export.impossible"


def test_the_sizes_that_are_told_before_are_those_of_the_files(small, tmp_path):
    run = trained(small, tmp_path / "run", "lora")
    ref = ModelRef(base=str(small), weights=str(run))
    sizes = export_sizes(ref)
    for format, name in (("ckpt", "x.ckpt"), ("safetensors", "x.safetensors"), ("lora", "l.safetensors")):
        assert written(ref, tmp_path / name, format).stat().st_size == pytest.approx(sizes[format], rel=0.02)
