"""What belongs to a model folder and what does not: stray files, adapters, foreign classes, and weights that are no numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gpu.config import ConvertJob, ExportJob, ModelRef
from gpu.errors import Fault
from gpu.models import describe
from gpu.models import main as inspect
from gpu.originals.contents import digests, kept_files, kept_names, kept_of_run, weights_digest
from gpu.originals.convert import convert
from gpu.originals.export import export
from gpu.originals.finite import not_finite
from gpu.originals.sizes import exported_files
from gpu.pipelines import load_pipeline

STRAYS = (
    "evil.py", "unet/evil.py", "unet/notebook.ipynb", "unet/optimizer.bin", "unet/adapter_config.json", "unet/adapter_model.safetensors",
    "unet/deep/config.json", "extra/config.json", "unet/.hidden.json", "training.log", "pipeline.json", "tokenizer/code.txt",
)  # fmt: skip


def quiet(stage: str, done: int, total: int) -> None:
    pass


def job(source: Path, destination: Path) -> ConvertJob:
    return ConvertJob(source=str(source), destination=str(destination))


def littered(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    for name in STRAYS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"stray")
    return folder


def edited(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def spoilt(path: Path, name: str, *, values: int) -> None:
    """Some values of a tensor are no numbers, and one is infinite."""
    tensors = load_file(path)
    flat = tensors[name].reshape(-1)
    flat[: values - 1], flat[values - 1] = np.nan, np.inf
    save_file(tensors, path, metadata={"format": "pt"})


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- which files ---


def test_the_files_of_a_model_are_known_by_name_and_place():
    index = {"_class_name": "AudioLDMPipeline"}
    kept = [
        "LICENSE", "README.md", "audio_encoder/model.safetensors", "model_index.json", "original.safetensors", "preview.wav", "studio.json",
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model.safetensors.index.json", "tokenizer/merges.txt", "unet/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]  # fmt: skip
    spare = ["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16-00001-of-00001.safetensors"]
    unknown = ["language_model/config.json", "LICENSE.py", "README.md.py", "preview.svg", "unet/pytorch_model.bin", *STRAYS]
    assert kept_names([*kept, *spare, *unknown, "unet/diffusion_pytorch_model.safetensors"], index) == sorted([*kept, "unet/diffusion_pytorch_model.safetensors"])
    assert kept_of_run(["checkpoint.json", "lora.safetensors", "resume.pt", "x.py", "README.md"]) == ["README.md", "checkpoint.json", "lora.safetensors"]


def test_every_file_that_we_write_ourselves_is_kept(tiny):
    assert {path.as_posix() for path in kept_files(tiny)} == everything(tiny)


def test_a_folder_comes_in_without_what_does_not_belong_to_it(tiny, tmp_path):
    source = littered(tiny, tmp_path / "source")
    convert(job(source, tmp_path / "m"), quiet)
    assert everything(tmp_path / "m") == everything(tiny) | {"studio.json", "README.md"}
    assert {path.relative_to(source).as_posix() for path in exported_files(source)} == everything(tiny)


def test_one_file_comes_in_without_what_does_not_belong_to_it(tiny, tmp_path):
    whole = export(ExportJob(model=ModelRef(base=str(tiny)), format="safetensors", destination=str(tmp_path / "whole.safetensors")), quiet)
    tensors = load_file(whole)
    with open(whole, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    stray = {f"files/{name}": np.frombuffer(b"stray", np.uint8) for name in ("unet/evil.py", "text_encoder/adapter_config.json")}
    save_file({**tensors, **stray, "extra.weight": np.ones(2, np.float32)}, whole, metadata=header["__metadata__"])
    convert(job(whole, tmp_path / "m"), quiet)
    assert everything(tmp_path / "m") == everything(tiny) | {"studio.json", "README.md"}
    assert load_pipeline(ModelRef(base=str(tmp_path / "m")), device="cpu").family == "audioldm2"


def test_an_adapter_beside_a_part_is_never_applied(tiny, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "elsewhere"), "r": 4, "target_modules": ["q"]}
    for part in ("text_encoder", "text_encoder_2", "language_model", "vocoder"):
        (source / part / "adapter_config.json").write_text(json.dumps(adapter))
    opened, clean = (load_pipeline(ModelRef(base=str(folder)), device="cpu").pipeline for folder in (source, tiny))
    for mine, its in zip(opened.modules(), clean.modules(), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(mine.state_dict().values(), its.state_dict().values(), strict=True))


def test_name_licence_and_card_make_no_other_model_but_a_setting_does(tiny, tmp_path):
    one, other, third = tmp_path / "one", tmp_path / "other", tmp_path / "third"
    for folder in (one, other, third):
        shutil.copytree(tiny, folder)
    (other / "README.md").write_text("another card")
    (other / "LICENSE").write_text("mine")
    (other / "studio.json").write_text(json.dumps({"name": "another", "licence": "mit"}))
    edited(third / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    found = [digests(folder) for folder in (one, other, third)]
    assert len({digest.whole for digest in found}) == 3
    assert found[0].content == found[1].content != found[2].content
    assert {digest.weights for digest in found} == {weights_digest(one)}


# --- foreign classes ---


def foreign_index(folder: Path) -> str:
    edited(folder / "model_index.json", vocoder=["os", "system"])
    return "its vocoder is a system of os"


def foreign_class(folder: Path) -> str:
    edited(folder / "model_index.json", unet=["diffusers", "DiffusionPipeline"])
    return "its unet is a DiffusionPipeline of diffusers"


def foreign_configuration(folder: Path) -> str:
    edited(folder / "vae" / "config.json", _class_name="EvilVAE")
    return "its vae is a EvilVAE by its configuration"


def foreign_architecture(folder: Path) -> str:
    edited(folder / "text_encoder" / "config.json", architectures=["EvilModel"])
    return "its text_encoder is a EvilModel by its configuration"


def foreign_scheduler(folder: Path) -> str:
    edited(folder / "model_index.json", scheduler=["diffusers", "DiffusionPipeline"])
    return "its scheduler is a DiffusionPipeline of diffusers"


@pytest.mark.parametrize("spoil", [foreign_index, foreign_class, foreign_configuration, foreign_architecture, foreign_scheduler])
def test_inspect_and_convert_refuse_a_foreign_class_in_the_same_words(tiny, tmp_path, capsys, spoil):
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    words = spoil(source)
    with pytest.raises(Fault) as caught:
        convert(job(source, tmp_path / "m"), quiet)
    assert inspect([str(source)]) == 1
    assert capsys.readouterr().err.strip() == f"{caught.value.code}: {caught.value.message}"
    assert caught.value.code == "checkpoint.unrecognised"
    assert words in caught.value.message


def test_classes_that_published_folders_name_are_known(tiny, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    edited(source / "model_index.json", language_model=["transformers", "GPT2Model"], tokenizer=["transformers", "RobertaTokenizerFast"], safety=[None, None])
    edited(source / "text_encoder_2" / "config.json", architectures=["T5ForConditionalGeneration"])
    assert describe(source).family == "audioldm2"


# --- weights that are no numbers ---


@pytest.mark.parametrize(("dtype", "kind"), [("F16", np.float16), ("F32", np.float32), ("F64", np.float64)])
def test_infinities_and_no_numbers_are_counted(dtype, kind):
    assert not_finite(np.array([1, np.nan, -np.inf, 0, np.inf], kind).tobytes(), dtype) == 3
    assert not_finite(np.array([1, np.finfo(kind).max], kind).tobytes(), dtype) == 0


def test_bfloat16_and_whole_numbers_are_judged_by_their_bits():
    values = torch.tensor([1.0, float("nan"), float("-inf"), 3e38], dtype=torch.bfloat16)
    assert not_finite(values.view(torch.uint8).numpy().tobytes(), "BF16") == 2
    assert not_finite(b"\xff" * 16, "I64") == 0


def test_a_folder_with_weights_that_are_no_numbers_is_refused_and_leaves_nothing(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "source")
    path = tmp_path / "source" / "unet" / "diffusion_pytorch_model.safetensors"
    spoilt(path, "conv_in.weight", values=3)
    with pytest.raises(Fault) as caught:
        convert(job(tmp_path / "source", tmp_path / "out" / "m"), quiet)
    size = load_file(path)["conv_in.weight"].size
    assert caught.value.code == "checkpoint.not_finite"
    assert caught.value.message == f"unet/diffusion_pytorch_model.safetensors: 3 of {size} values of conv_in.weight are infinite or no numbers"
    assert list((tmp_path / "out").iterdir()) == []


def test_one_file_with_weights_that_are_no_numbers_is_refused_and_leaves_nothing(tiny, tmp_path):
    whole = export(ExportJob(model=ModelRef(base=str(tiny)), format="safetensors", destination=str(tmp_path / "whole.safetensors")), quiet)
    with open(whole, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = load_file(whole)
    tensors["vae.decoder.conv_in.bias"][:2] = np.nan
    save_file(tensors, whole, metadata=header["__metadata__"])
    with pytest.raises(Fault) as caught:
        convert(job(whole, tmp_path / "out" / "m"), quiet)
    assert caught.value.code == "checkpoint.not_finite"
    assert f"2 of {tensors['vae.decoder.conv_in.bias'].size} values of vae.decoder.conv_in.bias" in caught.value.message
    assert list((tmp_path / "out").iterdir()) == []
