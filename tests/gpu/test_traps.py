"""Traps that published models and the libraries lay, each by its name. The libraries are real, and so are the defects."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file

from gpu.config import FinetuneConfig, GenerateConfig, ModelRef
from gpu.device import require_precision
from gpu.errors import Fault
from gpu.finetune import main
from gpu.finetune.data import Batch
from gpu.finetune.module import Denoiser
from gpu.lora import inject_lora
from gpu.models import describe
from gpu.pipelines import LoadedPipeline, apply_weights, collate, encode, encode_unconditional, load_pipeline, unet_inputs
from gpu.sampling import decode, make_scheduler

FAMILIES = ("audioldm", "audioldm_48k", "audioldm_t5", "audioldm2", "audioldm2_large")


@pytest.fixture
def copy_of(tiny_of, tmp_path) -> Callable[[str], Path]:
    return lambda variant: Path(shutil.copytree(tiny_of(variant), tmp_path / variant))


def opened(folder: Path) -> LoadedPipeline:
    return load_pipeline(ModelRef(base=str(folder)), device="cpu")


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def weights_of(part: Path) -> Path:
    return next(part.glob("*.safetensors"))


def answer(loaded: LoadedPipeline, prompt: str = "A dog barking") -> torch.Tensor:
    """What the UNet says of fixed noise and a prompt: it depends on every text part and on the UNet."""
    noisy = torch.randn(1, *loaded.latent_shape(0.5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return loaded.unet(noisy, torch.tensor([500]), **unet_inputs(encode(loaded, [prompt]), loaded.unet)).sample


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(Fault) as caught:
        act()
    return caught.value.code


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradient_checkpointing_with_masks_changes_neither_loss_nor_gradients_and_keeps_less(tiny_of, variant, method):
    loaded = opened(tiny_of(variant))
    random = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, *loaded.latent_shape(0.5), generator=random) for _ in range(2))
    # Prompts of two lengths: one of them is masked in part.
    embeds = collate([encode(loaded, ["A dog barking and an engine"]), encode_unconditional(loaded)])
    batch = Batch(latents=latents, noise=noise, timesteps=torch.tensor([10, 700]), embeds=embeds, captions=("", ""))
    found = []
    for checkpointing in (False, True):
        unet = copy.deepcopy(loaded.unet).train()
        if method == "lora":
            inject_lora(unet, rank=2)
        else:
            unet.requires_grad_(True)
        module = Denoiser(unet, loaded.pipeline.scheduler, FinetuneConfig(method=method, gradient_checkpointing=checkpointing))
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            loss = module.training_step(batch, 0)
        loss.backward()
        found.append((loss.detach(), {name: weight.grad for name, weight in module.trained().items()}, sum(kept)))
    (plain, gradients, kept_plain), (again, gradients_again, kept_again) = found
    assert torch.equal(plain, again)
    assert len(gradients) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, msg=name)
    assert kept_again < kept_plain / 2


@pytest.mark.parametrize("variant", ["audioldm", "audioldm2"])
def test_a_lora_leaves_no_name_of_its_own_in_a_saved_unet(make_run, tiny_of, tmp_path, variant):
    run = make_run(model=tiny_of(variant), max_train_steps=2)
    assert main([str(run)]) == 0
    loaded = opened(tiny_of(variant))
    polluted = copy.deepcopy(loaded.unet)
    inject_lora(polluted, rank=2)
    assert any("base_layer" in name for name in polluted.state_dict())

    apply_weights(loaded.unet, run / "checkpoints/global_step=000002")
    loaded.unet.save_pretrained(tmp_path / "saved")

    base, saved = load_file(weights_of(tiny_of(variant) / "unet")), load_file(weights_of(tmp_path / "saved"))
    assert saved.keys() == base.keys()
    assert any(not torch.equal(saved[name], base[name]) for name in base)


@pytest.mark.parametrize("heads", [[1, 2], 8, 2])
def test_heads_are_what_the_folder_says_and_stay_so(copy_of, make_run, heads):
    folder = copy_of("audioldm")
    change(folder / "unet/config.json", attention_head_dim=heads)
    before = (folder / "unet/config.json").read_bytes()
    run = make_run(model=folder, method="full", max_train_steps=1)
    assert main([str(run)]) == 0
    trained = load_pipeline(ModelRef(base=str(folder), weights=str(run / "checkpoints/global_step=000001")), device="cpu")
    assert trained.unet.config.attention_head_dim == heads
    number = heads[1] if isinstance(heads, list) else heads
    assert trained.unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == number
    assert (folder / "unet/config.json").read_bytes() == before


def test_the_same_weights_with_other_heads_are_another_function(copy_of, tiny_of):
    folder = copy_of("audioldm")
    change(folder / "unet/config.json", attention_head_dim=8)
    assert not torch.allclose(answer(opened(folder)), answer(opened(tiny_of("audioldm"))), atol=1e-6)


@pytest.mark.parametrize("variant", ["audioldm2", "audioldm"])
def test_an_index_may_name_classes_that_no_longer_fit(copy_of, tiny_of, variant):
    folder = copy_of(variant)
    published = {"tokenizer": ["transformers", "RobertaTokenizerFast"]}
    if variant == "audioldm2":
        published |= {"tokenizer_2": ["transformers", "T5TokenizerFast"], "language_model": ["transformers", "GPT2Model"]}
    change(folder / "model_index.json", **published)
    for part in published:
        if part.startswith("tokenizer"):
            change(folder / part / "tokenizer_config.json", tokenizer_class=published[part][1])
    assert torch.equal(answer(opened(folder)), answer(opened(tiny_of(variant))))


def test_gpt2_saved_without_its_word_head_is_whole(copy_of, tiny_of):
    folder = copy_of("audioldm2")
    file = weights_of(folder / "language_model")
    save_file(
        {name.removeprefix("transformer."): value for name, value in load_file(file).items() if "lm_head" not in name},
        file,
        metadata={"format": "pt"},
    )
    change(folder / "language_model/config.json", architectures=["GPT2Model"])
    assert torch.equal(answer(opened(folder)), answer(opened(tiny_of("audioldm2"))))


@pytest.mark.parametrize("variant, hop, extra", [("audioldm", 160, 32), ("audioldm_48k", 480, 16)])
def test_the_published_vocoders_give_samples_too_many_and_they_are_cut(tiny_of, variant, hop, extra):
    loaded = opened(tiny_of(variant))
    frames = loaded.num_frames(0.64)
    with torch.no_grad():
        raw = loaded.pipeline.vocoder(torch.zeros(1, frames, loaded.mel.n_mels))
        sound = decode(loaded, torch.zeros(1, *loaded.latent_shape(0.64)), duration_s=0.64)[0]
    assert raw.shape == (1, hop * frames + extra)
    assert len(sound) == int(0.64 * loaded.mel.sample_rate_hz)


def test_the_projection_gets_both_masks(tiny_of):
    loaded = opened(tiny_of("audioldm2"))
    seen: dict[str, torch.Tensor] = {}
    loaded.pipeline.projection_model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    encode(loaded, ["Rain", "A piano playing a single low note"])
    assert seen["attention_mask"].tolist() == [[1], [1]]
    assert (
        seen["attention_mask_1"].sum(1).tolist()
        == encode(loaded, ["Rain", "A piano playing a single low note"]).attention_mask.sum(1).tolist()
    )
    assert seen["attention_mask_1"][0, -1] == 0


@pytest.mark.parametrize("variant", ["audioldm", "audioldm2"])
def test_position_ids_of_older_files_are_passed_over(copy_of, tiny_of, variant):
    folder = copy_of(variant)
    file = weights_of(folder / "text_encoder")
    save_file({**load_file(file), "text_model.embeddings.position_ids": torch.arange(514)[None]}, file, metadata={"format": "pt"})
    assert torch.equal(answer(opened(folder)), answer(opened(tiny_of(variant))))


@pytest.mark.parametrize("parts", [("unet", "text_encoder"), ("unet", "vae", "vocoder", "text_encoder", "audio_encoder")])
def test_a_folder_with_half_precision_files_alone_is_opened_in_full_precision(copy_of, parts):
    folder = copy_of("audioldm")
    whole = describe(folder).parameters
    for part in parts:
        file = weights_of(folder / part)
        half = {name: value.half() if value.is_floating_point() else value for name, value in load_file(file).items()}
        save_file(half, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")), metadata={"format": "pt"})
        file.unlink()
    assert describe(folder).parameters == whole
    loaded = opened(folder)
    assert {weight.dtype for part in parts for weight in loaded.pipeline.components[part].parameters()} == {torch.float32}
    assert torch.isfinite(answer(loaded)).all()


def test_of_two_precisions_side_by_side_the_full_one_is_opened_and_counted(copy_of, tiny_of):
    folder = copy_of("audioldm")
    file = weights_of(folder / "unet")
    save_file(
        {name: torch.zeros_like(value).half() for name, value in load_file(file).items()},
        file.with_name("diffusion_pytorch_model.fp16.safetensors"),
        metadata={"format": "pt"},
    )
    assert describe(folder).parameters == describe(tiny_of("audioldm")).parameters
    assert torch.equal(answer(opened(folder)), answer(opened(tiny_of("audioldm"))))


def test_weights_in_shards_are_opened_and_counted_and_a_missing_shard_is_named(copy_of, tiny_of):
    folder = copy_of("audioldm2")
    loaded = opened(folder)
    for part, size in (("unet", "100KB"), ("text_encoder", "100KB")):
        weights_of(folder / part).unlink()
        loaded.pipeline.components[part].save_pretrained(folder / part, max_shard_size=size)
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1
    assert describe(folder).parameters == describe(tiny_of("audioldm2")).parameters
    assert torch.equal(answer(opened(folder)), answer(loaded))

    shard = sorted((folder / "unet").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(Fault, match=shard.name) as caught:
        describe(folder)
    assert caught.value.code == "checkpoint.incomplete"


@pytest.mark.parametrize("part", ["vae", "audio_encoder"])
def test_a_part_with_a_pickle_alone_is_refused(copy_of, part):
    folder = copy_of("audioldm")
    weights_of(folder / part).unlink()
    (folder / part / "pytorch_model.bin").write_bytes(b"anything")
    assert code_of(lambda: describe(folder)) == "checkpoint.pickled"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "audio_encoder", "vocoder"])
def test_a_weight_that_a_file_lacks_is_never_filled_with_random_numbers(copy_of, part):
    folder = copy_of("audioldm")
    file = weights_of(folder / part)
    tensors = load_file(file)
    name = sorted(name for name in tensors if name.endswith("weight"))[0]
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(Fault, match=part) as caught:
        opened(folder)
    assert caught.value.code == "checkpoint.incomplete"


def test_a_weight_of_another_shape_is_refused(copy_of):
    folder = copy_of("audioldm2")
    file = weights_of(folder / "text_encoder_2")
    tensors = load_file(file)
    name = max(tensors, key=lambda name: tensors[name].numel())
    save_file({**tensors, name: tensors[name][:-1].clone()}, file, metadata={"format": "pt"})
    assert code_of(lambda: opened(folder)) == "checkpoint.incomplete"


def test_a_tokenizer_that_names_no_limit_still_cuts_what_its_encoder_cannot_read(copy_of):
    folder = copy_of("audioldm_t5")
    change(folder / "tokenizer/tokenizer_config.json", model_max_length=10**30)
    embeds = encode(opened(folder), ["rain " * 2000])
    assert embeds.prompt_embeds.shape[1] == 512


def test_the_configuration_of_another_sampler_does_not_cut_latents_off_at_one(copy_of):
    folder = copy_of("audioldm")
    solver = DPMSolverMultistepScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", prediction_type="v_prediction")
    solver.save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    ddim = make_scheduler(opened(folder).pipeline.scheduler, GenerateConfig(prompt="x", sampler="ddim", num_inference_steps=20))
    assert not ddim.config.clip_sample
    assert (ddim.config.prediction_type, ddim.config.beta_end) == ("v_prediction", 0.0195)


def test_a_moving_average_starts_with_the_run_and_inherits_no_count(make_run, tiny_of):
    run = make_run(model=tiny_of("audioldm"), method="full", use_ema=True, max_train_steps=1)
    assert main([str(run)]) == 0
    base = load_file(weights_of(tiny_of("audioldm") / "unet"))
    state = torch.load(run / "checkpoints/global_step=000001/resume.pt", weights_only=True)
    # After the first step the decay is 2 / 11, not the 0.9999 that an inherited count would make of it.
    for name in ("conv_in.weight", "class_embedding.weight"):
        torch.testing.assert_close(state["ema"][name], base[name] * 2 / 11 + state["weights"][name] * 9 / 11)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_machine_lacks_is_refused_in_words(precision):
    with pytest.raises(Fault, match=rf"mixed_precision \({precision}\) needs a GPU.*cpu") as caught:
        require_precision(FinetuneConfig(mixed_precision=precision), torch.device("cpu"))
    assert caught.value.code == "config.precision_needs_gpu"


def test_full_precision_needs_nothing():
    assert [require_precision(FinetuneConfig(mixed_precision=word), torch.device("cpu")) for word in ("no", "auto")] == ["32-true"] * 2
