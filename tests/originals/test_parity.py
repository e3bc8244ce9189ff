"""What the original code computes, a converted model computes: every part of every family, and back again through an export.

Largest absolute error anywhere: 1e-4, where values are of the order of one. With the wrong number of attention heads, diffusers'
default, the same weights are off by a thousand times that.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    DDIMScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextModelWithProjection,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    T5EncoderModel,
    VitsModel,
)

from gpu.conditioning import PromptEmbeds
from gpu.config import ConvertJob, ExportJob, GenerateConfig, ModelRef
from gpu.errors import Fault
from gpu.lora import inject_lora, lora_state
from gpu.manifest import sha256_of
from gpu.models import LORA_FILE, UNET_FILE, CheckpointFacts, describe
from gpu.originals.convert import convert
from gpu.originals.export import export
from gpu.pipelines import apply_weights, encode_guided, load_pipeline
from gpu.sampling import sample_sounds
from tests.originals.fixtures import FAMILIES, ROOT, Original, OriginalCode

TOLERANCE, WRONG = 1e-4, 1e-2
SINGLE = ("audioldm-s", "audioldm-m", "audioldm-l", "audioldm-ft")
HEARS = (*SINGLE, "audioldm-48k")
D = ("audioldm2", "audioldm2-large", "audioldm2-speech")
SPEECH = "audioldm2-speech"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A family's model folders, from the moving average and from the raw weights."""

    original: Original
    ema: Path
    raw: Path

    @property
    def family(self) -> str:
        return self.original.family

    @property
    def state(self) -> dict[str, Tensor]:
        """The original file's own tensors."""
        return torch.load(self.original.path, weights_only=True, mmap=True)["state_dict"]

    def reference(self, name: str) -> Tensor:
        return torch.from_numpy(self.original.references[name])

    def given(self, name: str) -> Tensor:
        return self.reference(f"in_{name}")

    def folder(self, weights: str) -> Path:
        return {"ema": self.ema, "raw": self.raw}[weights]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, original: Callable[[str], Original]) -> Iterator[Converted]:
    """Converted twice: as nobody says which weights, which must be those that the original sampler takes, and with the others."""
    source = original(request.param)
    # AudioLDM 1 and the training repository sample with the moving average, AudioLDM 2 with the raw weights.
    first, second = ("ema", "raw") if request.param in SINGLE else ("raw", "ema")
    with tempfile.TemporaryDirectory(prefix="converted-") as home:
        folders = {weights: Path(home) / weights for weights in (first, second)}
        for weights, folder in folders.items():
            job = ConvertJob(
                source=str(source.path), destination=str(folder), weights="auto" if weights == first else weights, tokenizers=str(source.tokenizers)
            )
            convert(job, lambda *_: None)
        yield Converted(original=source, **folders)


def only(model: Converted, *families: str) -> None:
    if model.family not in families:
        pytest.skip(f"{model.family} has none")


def close(found: Tensor, expected: Tensor, *, within: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    error = (found - expected).abs().max().item()
    assert error < within, f"off by {error:.3g}"


@torch.no_grad()
def eps(unet: nn.Module, model: Converted) -> Tensor:
    """The noise prediction as diffusers' pipelines ask for it."""
    latents, timesteps = model.given("latents"), model.given("timesteps")
    texts, mask = model.given("t5_hidden"), model.given("t5_mask")
    if model.family in HEARS:
        return unet(latents, timesteps, encoder_hidden_states=None, class_labels=model.given("film")[:, 0]).sample
    if model.family == "audioldm-t5":
        return unet(latents, timesteps, encoder_hidden_states=texts, encoder_attention_mask=mask).sample
    if model.family == SPEECH:
        return unet(latents, timesteps, encoder_hidden_states=model.given("generated")).sample
    return unet(
        latents, timesteps, encoder_hidden_states=model.given("generated"), encoder_hidden_states_1=texts, encoder_attention_mask_1=mask
    ).sample


def load_unet(model: Converted, folder: Path, **changes: Any) -> nn.Module:
    kind = UNet2DConditionModel if model.family in SINGLE else AudioLDM2UNet2DConditionModel
    return kind.from_pretrained(folder / "unet", **changes).eval()


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_unet_predicts_the_same_noise(model: Converted, weights: str) -> None:
    close(eps(load_unet(model, model.folder(weights)), model), model.reference(f"eps_{weights}"))


def test_the_moving_average_and_the_raw_weights_are_told_apart(model: Converted) -> None:
    assert (model.reference("eps_ema") - model.reference("eps_raw")).abs().max() > WRONG


def test_with_diffusers_default_of_eight_heads_the_noise_is_another(model: Converted) -> None:
    unet = load_unet(model, model.raw, attention_head_dim=8)

    assert (eps(unet, model) - model.reference("eps_raw")).abs().max() > WRONG


@torch.no_grad()
def test_the_vae_encodes_and_decodes_the_same(model: Converted) -> None:
    vae = AutoencoderKL.from_pretrained(model.raw / "vae").eval()

    close(vae.encode(model.given("mel")).latent_dist.parameters, model.reference("moments"))
    close(vae.decode(model.given("z")).sample, model.reference("decoded"))
    assert vae.config.scaling_factor == pytest.approx(0.4321, abs=1e-7)


@torch.no_grad()
def test_the_vocoder_makes_the_same_wave(model: Converted) -> None:
    vocoder = SpeechT5HifiGan.from_pretrained(model.raw / "vocoder").eval()
    mel = model.given("mel")[:, 0]
    rate = 48_000 if model.family == "audioldm-48k" else 16_000

    wave = vocoder(mel)

    close(wave[:, None], model.reference("wave"))
    assert vocoder.config.sampling_rate == rate
    assert 0 < wave.shape[1] - mel.shape[1] * rate // 100 <= 32  # a hundred frames a second, and a tail


@torch.no_grad()
def test_clap_reads_the_same(model: Converted) -> None:
    only(model, *HEARS, *D)
    ids, mask = model.given("clap_ids"), model.given("clap_mask")
    if model.family in D:
        found = ClapModel.from_pretrained(model.raw / "text_encoder").eval().get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    else:
        clap = ClapTextModelWithProjection.from_pretrained(model.raw / "text_encoder").eval()
        found = normalize(clap(input_ids=ids, attention_mask=mask).text_embeds, dim=-1)

    close(found, model.reference("clap_text"), within=1e-5)


@torch.no_grad()
def test_clap_hears_the_same(model: Converted) -> None:
    only(model, *HEARS, *D)
    mel = model.reference("clap_log_mel")
    if model.family in D:
        found = ClapModel.from_pretrained(model.raw / "text_encoder").eval().get_audio_features(input_features=mel).pooler_output
    else:
        clap = ClapAudioModelWithProjection.from_pretrained(model.raw / "audio_encoder").eval()
        found = normalize(clap(input_features=mel).audio_embeds, dim=-1)

    close(found, model.reference("clap_audio"), within=1e-5)


@torch.no_grad()
def test_the_ranker_reads_and_hears_the_same(model: Converted) -> None:
    only(model, "audioldm-ft", "audioldm-48k", "audioldm-t5")
    clap = ClapModel.from_pretrained(model.raw / "ranker").eval()
    text = clap.get_text_features(input_ids=model.given("clap_ids"), attention_mask=model.given("clap_mask")).pooler_output

    close(text, model.reference("ranker_text"), within=1e-5)
    close(clap.get_audio_features(input_features=model.reference("ranker_log_mel")).pooler_output, model.reference("ranker_audio"), within=1e-5)


def test_the_feature_extractor_hears_as_the_original_front_end(model: Converted) -> None:
    extractor = ClapFeatureExtractor.from_pretrained(model.raw / "feature_extractor")
    mel = extractor(model.original.references["in_waveform"][0], sampling_rate=48_000, return_tensors="pt")["input_features"]
    name = "clap_log_mel" if "clap_log_mel" in model.original.references else "ranker_log_mel"

    close(mel, model.reference(name), within=1e-3)  # decibels


@torch.no_grad()
def test_t5_reads_the_same(model: Converted) -> None:
    only(model, "audioldm-t5", "audioldm2", "audioldm2-large")
    t5 = T5EncoderModel.from_pretrained(model.raw / ("text_encoder" if model.family == "audioldm-t5" else "text_encoder_2")).eval()

    close(t5(input_ids=model.given("t5_ids"), attention_mask=model.given("t5_mask"))[0], model.reference("t5"))


@torch.no_grad()
def test_the_phoneme_encoder_reads_the_same(model: Converted) -> None:
    only(model, SPEECH)
    vits = VitsModel.from_pretrained(model.raw / "text_encoder_2", attn_implementation="eager").eval()
    projection = AudioLDM2ProjectionModel.from_pretrained(model.raw / "projection_model")
    phonemes, mask = model.given("phonemes"), model.reference("phoneme_mask")
    hidden = vits.text_encoder(input_ids=phonemes, padding_mask=mask[:, :, None], attention_mask=mask).last_hidden_state

    close(hidden + projection.learnable_positional_embedding.transpose(1, 2), model.reference("phoneme_hidden"))


@torch.no_grad()
def test_the_language_model_continues_the_same(model: Converted) -> None:
    only(model, *D)
    projection = AudioLDM2ProjectionModel.from_pretrained(model.raw / "projection_model").eval()
    second = "phoneme_hidden" if model.family == SPEECH else "t5"
    mask = model.reference("phoneme_mask") if model.family == SPEECH else model.given("t5_mask").float()
    states = model.reference(second)
    if model.family == SPEECH:  # the module adds the learnt positions itself
        states = states - projection.learnable_positional_embedding.transpose(1, 2)
    clap = model.reference("clap_text")[:, None]
    joined = projection(
        hidden_states=clap, hidden_states_1=states, attention_mask=torch.ones(clap.shape[:2]), attention_mask_1=mask
    )
    close(joined.hidden_states, model.reference("projected"))
    close(joined.attention_mask, model.reference("projected_mask"))

    language_model = GPT2LMHeadModel.from_pretrained(model.raw / "language_model").eval()
    embeds, seen = joined.hidden_states, joined.attention_mask
    for _ in range(8):
        hidden = language_model.transformer(inputs_embeds=embeds, attention_mask=seen).last_hidden_state
        embeds, seen = torch.cat([embeds, hidden[:, -1:]], 1), torch.cat([seen, torch.ones(len(seen), 1)], 1)
    close(embeds[:, -8:], model.reference("tokens"))
    assert language_model.config.max_new_tokens == (512 if model.family == SPEECH else 8)


def test_ddim_walks_as_the_original_sampler(model: Converted) -> None:
    scheduler = DDIMScheduler.from_pretrained(model.raw / "scheduler")
    scheduler.set_timesteps(20)
    latents = model.given("latents")
    for timestep in scheduler.timesteps:
        latents = scheduler.step(0.3 * latents, timestep, latents).prev_sample
    expected = model.reference("ddim")

    assert ((latents - expected).abs().max() / expected.abs().max()).item() < 1e-6


def test_the_folder_says_what_it_is(model: Converted) -> None:
    facts = describe(model.ema)
    studio = json.loads((model.ema / "studio.json").read_text())

    assert facts.family == {"audioldm-t5": "audioldm_t5", **dict.fromkeys(D, "audioldm2")}.get(model.family, "audioldm")
    assert (facts.can_generate, facts.can_finetune) == (model.family != SPEECH,) * 2
    assert facts.licence == "cc-by-nc-sa-4.0"
    assert studio["original"]["weights"] == "ema"  # of the folder that it describes
    assert studio["original"]["heads"] == list(load_unet(model, model.ema).config.attention_head_dim)


def test_a_slim_import_leaves_out_what_only_an_export_needs(model: Converted, tmp_path: Path) -> None:
    only(model, "audioldm-s")
    folder = tmp_path / "slim"
    job = ConvertJob(source=str(model.original.path), destination=str(folder), keep_original=False, tokenizers=str(model.original.tokenizers))
    convert(job, lambda *_: None)

    assert not (folder / "original.safetensors").exists()
    close(eps(load_unet(model, folder), model), model.reference("eps_ema"))
    shutil.rmtree(folder)


def test_the_command_line_does_the_same(model: Converted, tmp_path: Path) -> None:
    only(model, "audioldm-s")
    target = tmp_path / "model"
    command = [sys.executable, "-m", "gpu", "convert", str(model.original.path), str(target), "--raw", "--tokenizers", str(model.original.tokenizers)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    for path in model.raw.rglob("*.safetensors"):
        assert (target / path.relative_to(model.raw)).read_bytes() == path.read_bytes()
    shutil.rmtree(target)


def test_every_tensor_of_the_file_is_kept_once(model: Converted) -> None:
    """Sizes: the folder's weights and the side file hold no more than the file's own values, twins counted once."""
    values = sum(tensor.numel() * tensor.element_size() for tensor in model.state.values())
    written = sum(path.stat().st_size for path in model.raw.rglob("*.safetensors"))

    assert written < values * 1.01 + 2**20


def test_the_folder_holds_finite_numbers(model: Converted) -> None:
    assert all(np.isfinite(value).all() for value in model.original.references.values() if value.dtype.kind == "f")


# --- and back ---


def write_out(folder: Path, destination: Path, **options: Any) -> dict[str, Tensor]:
    weights = options.pop("weights", None)
    job = ExportJob(model=ModelRef(base=str(folder), weights=weights and str(weights)), format="ckpt", destination=str(destination), **options)
    export(job, lambda *_: None)
    return torch.load(destination, weights_only=True, mmap=True)["state_dict"]


def read_back(original_code: OriginalCode, model: Converted, file: Path) -> dict[str, Tensor]:
    """What the original code computes once it has loaded the file, strictly."""
    answer = file.with_suffix(".npz")
    original_code.ask(do="read", family=model.family, file=file, references=model.original.path.parent / "references.npz", to=answer)
    with np.load(answer) as found:
        return {name: torch.from_numpy(value) for name, value in found.items()}


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_an_export_holds_the_original_bits(model: Converted, weights: str, tmp_path: Path) -> None:
    if weights == "raw":
        only(model, "audioldm-s", "audioldm2")
    exported = write_out(model.folder(weights), tmp_path / "exported.ckpt")
    state = model.state

    assert exported.keys() == state.keys()
    for name, tensor in state.items():
        assert exported[name].dtype == tensor.dtype, name
        assert torch.equal(exported[name], tensor), name
    (tmp_path / "exported.ckpt").unlink()


def test_the_original_code_loads_an_export_strictly(model: Converted, original_code: OriginalCode, tmp_path: Path) -> None:
    only(model, "audioldm-s", "audioldm-ft", "audioldm-48k", "audioldm-t5", "audioldm2", SPEECH)
    write_out(model.ema, tmp_path / "exported.ckpt")

    found = read_back(original_code, model, tmp_path / "exported.ckpt")

    for name, value in model.original.references.items():
        close(found[name].double(), torch.from_numpy(value).double(), within=1e-6)
    (tmp_path / "exported.ckpt").unlink()


def test_an_export_in_half_precision_is_the_original_rounded(model: Converted, tmp_path: Path) -> None:
    only(model, "audioldm-s", "audioldm-ft", "audioldm2")
    exported = write_out(model.raw, tmp_path / "exported.ckpt", dtype="fp16")
    state = model.state

    assert exported.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(exported[name], tensor.to(exported[name].dtype)), name
    assert exported["model.diffusion_model.out.2.weight"].dtype == torch.float16
    assert exported["model_ema.num_updates"].dtype == torch.int32
    (tmp_path / "exported.ckpt").unlink()


def run_checkpoint(folder: Path, model: Converted, base: Path, method: str) -> Path:
    """What a run leaves behind: its trained part, a tenth away from the base, and the words about it."""
    folder.mkdir()
    unet = load_unet(model, base)
    generator = torch.Generator().manual_seed(5)
    if method == "lora":
        inject_lora(unet, rank=4)
        state = {name: weight + 0.1 * torch.randn(weight.shape, generator=generator) for name, weight in lora_state(unet).items()}
    else:
        state = {name: weight + 0.1 * weight.std() * torch.randn(weight.shape, generator=generator) for name, weight in unet.state_dict().items()}
    name = LORA_FILE if method == "lora" else UNET_FILE
    save_file({key: weight.contiguous() for key, weight in state.items()}, folder / name, metadata={"rank": "4", "alpha": "4"})
    facts = CheckpointFacts(
        step=7, method=method, weights="raw", base=str(base), base_sha256="", files={name: sha256_of(folder / name)}, config={}, metrics={}, model={}
    )
    (folder / "checkpoint.json").write_text(json.dumps(facts.as_dict()))
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_original_code_hears_what_was_trained_however_it_samples(
    model: Converted, original_code: OriginalCode, method: str, tmp_path: Path
) -> None:
    only(model, *(("audioldm-s", "audioldm2") if method == "lora" else ("audioldm-s", "audioldm-ft")))
    base = model.raw if model.family == "audioldm2" else model.ema
    trained = run_checkpoint(tmp_path / "checkpoint", model, base, method)
    unet = load_unet(model, base)
    apply_weights(unet, trained)
    expected = eps(unet, model)

    exported = write_out(base, tmp_path / "tuned.ckpt", weights=trained)
    found = read_back(original_code, model, tmp_path / "tuned.ckpt")

    close(found["eps_raw"], expected)
    close(found["eps_ema"], expected)
    assert (expected - model.reference("eps_raw")).abs().max() > WRONG
    assert (expected - model.reference("eps_ema")).abs().max() > WRONG
    untouched = [name for name in exported if not name.startswith(("model.", "model_ema.diffusion_model"))]
    state = model.state
    assert all(torch.equal(exported[name], state[name]) for name in untouched)
    shutil.rmtree(trained)
    (tmp_path / "tuned.ckpt").unlink()


def test_a_model_with_other_heads_is_not_written_as_an_original(model: Converted, tmp_path: Path) -> None:
    only(model, "audioldm-s", "audioldm2")
    config = model.ema / "unet" / "config.json"
    plain = config.read_text()
    config.write_text(json.dumps({**json.loads(plain), "attention_head_dim": 8}))
    try:
        with pytest.raises(Fault, match="head") as refusal:
            write_out(model.ema, tmp_path / "exported.ckpt")
    finally:
        config.write_text(plain)

    assert refusal.value.code == "checkpoint.heads"
    assert not list(tmp_path.iterdir())


def test_diffusers_opens_its_export_and_makes_the_same_sound(model: Converted, tmp_path: Path) -> None:
    only(model, "audioldm-s", "audioldm-l", "audioldm2")
    folder = tmp_path / "exported"
    export(ExportJob(model=ModelRef(base=str(model.raw)), format="diffusers", destination=str(folder)), lambda *_: None)
    values = {"num_inference_steps": 2, "guidance_scale": 2.5, "audio_length_in_s": 0.32}
    config = GenerateConfig.parse({"prompt": "A dog barking", "seed": 7, "num_waveforms_per_prompt": 1, "sampler": "ddim", **values})
    loaded = load_pipeline(ModelRef(base=str(model.raw)), device="cpu")
    ours = sample_sounds(loaded, config)[0]
    theirs = (AudioLDMPipeline if model.family in SINGLE else AudioLDM2Pipeline).from_pretrained(folder, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    for part in theirs.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    prompt: dict[str, Any] = {"prompt": "A dog barking"}
    if model.family not in SINGLE:
        # The pipeline encodes the empty prompt together with the other, and so otherwise for each other prompt.
        with torch.no_grad():
            wanted, empty = encode_guided(loaded, "A dog barking", "")
        both = PromptEmbeds.collate([empty, wanted])
        prompt = {
            "prompt_embeds": wanted.prompt_embeds, "attention_mask": wanted.attention_mask, "generated_prompt_embeds": wanted.generated_prompt_embeds,
            "negative_prompt_embeds": both.prompt_embeds[:1], "negative_attention_mask": both.attention_mask[:1],
            "negative_generated_prompt_embeds": empty.generated_prompt_embeds,
        }  # fmt: skip

    sound = theirs(**prompt, generator=torch.Generator().manual_seed(7), **values).audios[0] * ours.gain

    assert np.abs(ours.samples).max() > 1e-3
    assert np.abs(ours.samples - sound[: len(ours.samples)]).max() < TOLERANCE
    shutil.rmtree(folder)
