"""The original code at work, in a process of its own: `python -m tests.originals.writer PACKAGES`.

Reads one JSON request a line and answers each with one line:

    {"do": "write", "family": NAME, "folder": FOLDER}   the checkpoint as published, and references.npz beside it
    {"do": "read", "family": NAME, "file": FILE, "references": FILE, "to": FILE}   load a file strictly, compute the references again
    {"do": "layout", "family": NAME, "to": FILE}        names, shapes and dtypes (JSON); full size when started with --full-size
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.originals import families, standins

FILE_NAMES = {1: "{}.ckpt", 2: "{}.pth"}
FINE_TUNED_NAME = "checkpoint-fad-133.00-global_step=4999.ckpt"
REFERENCES = "references.npz"
PROMPTS = ["A dog barking", "Rain falling on a tin roof, and a high beep"]
LATENT_FRAMES, GENERATED_TOKENS, DDIM_STEPS = 16, 8, 20


def main(packages: Path, *, full_size: bool) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the packages print
    standins.install(packages, full_size=full_size)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = obey(request, full_size=full_size)
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")


def obey(request: Mapping[str, Any], *, full_size: bool) -> dict[str, Any]:
    name = request["family"]
    if request["do"] == "layout":
        tensors = built_without_values(name, full_size=full_size).state_dict()
        layout = {key: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in tensors.items()}
        Path(request["to"]).write_text(json.dumps(layout))
        return {"keys": len(layout)}
    torch.manual_seed(0)
    model = families.build(name)
    if request["do"] == "write":
        families.randomise(model)
        folder = Path(request["folder"])
        path = write(name, model, folder)
        np.savez(folder / REFERENCES, **references(name, model, inputs(name)))
        clap_words, t5_words = standins.tokenizers()
        clap_words.save_pretrained(folder / "tokenizers" / "roberta-base")
        t5_words.save_pretrained(folder / "tokenizers" / "flan-t5-large")
        return {"path": str(path)}
    file = torch.load(request["file"], map_location="cpu", weights_only=True)
    model.load_state_dict(file["state_dict"], strict=True)
    given = dict(np.load(request["references"]))
    np.savez(request["to"], **references(name, model, {key: value for key, value in given.items() if key.startswith("in_")}))
    return {"top_level": sorted(file)}


def write(name: str, model: nn.Module, folder: Path) -> Path:
    """The file as it is published: `state_dict` alone, or all that Lightning writes."""
    family = families.FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    if family.fine_tuned:
        state = {key: tensor.clone() for key, tensor in state.items()}  # taken before the step that fills the optimizer
        path = folder / FINE_TUNED_NAME
        torch.save({**families.lightning_extras(model), "state_dict": state}, path)
        model.load_state_dict(state)
        return path
    path = folder / FILE_NAMES[family.generation].format(family.published)
    torch.save({"state_dict": state}, path)
    return path


def inputs(name: str) -> dict[str, np.ndarray]:
    """What both sides compute with; every name begins with `in_`."""
    generator = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    channels, bins, factor = (16, 256, 8) if name == "audioldm-48k" else (8, 64, 4)
    clap_words, t5_words = standins.tokenizers()
    clap_ids = clap_words(PROMPTS, padding="max_length", truncation=True, max_length=512, return_tensors="np")
    t5_ids = t5_words(PROMPTS, padding=True, truncation=True, max_length=128, return_tensors="np")
    seconds = torch.arange(480_000) / 48_000
    phonemes = torch.randint(1, 183, (2, 310), generator=generator)
    phonemes[0, 40:], phonemes[1, 200:] = 0, 0
    found = {
        "latents": noise(2, channels, LATENT_FRAMES, bins // factor), "timesteps": torch.tensor([3, 871]),
        "film": nn.functional.normalize(noise(2, 1, 512), dim=-1),
        "generated": noise(2, GENERATED_TOKENS, 768), "t5_hidden": noise(2, t5_ids["input_ids"].shape[1], 1024),
        "mel": noise(1, 1, LATENT_FRAMES * factor, bins), "z": noise(1, channels, LATENT_FRAMES, bins // factor),
        "clap_ids": clap_ids["input_ids"], "clap_mask": clap_ids["attention_mask"],
        "t5_ids": t5_ids["input_ids"], "t5_mask": t5_ids["attention_mask"], "phonemes": phonemes,
        "waveform": (0.4 * torch.sin(2 * torch.pi * 440 * seconds) + 0.05 * noise(480_000))[None],
    }  # fmt: skip
    return {f"in_{key}": np.asarray(value) for key, value in found.items()}


@torch.no_grad()
def references(name: str, model: nn.Module, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs, and what the original code makes of them."""
    family = families.FAMILIES[name]
    x = {key.removeprefix("in_"): torch.from_numpy(value) for key, value in given.items()}
    found = {"eps_raw": eps(name, model, x)}
    with model.ema_scope():
        found["eps_ema"] = eps(name, model, x)
    vae = model.first_stage_model
    found["moments"] = vae.encode(x["mel"]).parameters
    found["decoded"] = vae.decode(x["z"])
    found["wave"] = vae.vocoder(x["mel"][:, 0].transpose(1, 2))
    found["ddim"] = ddim(family, model, x)

    claps = {"clap": conditioning_clap(name, model)}
    if family.generation == 2:
        claps["ranker"] = model.clap.model
    for label, clap in claps.items():
        if clap is None:
            continue
        text = {"input_ids": x["clap_ids"], "attention_mask": x["clap_mask"]}
        found[f"{label}_text"] = clap.get_text_embedding(dict(text))
        sound = {"waveform": x["waveform"], "longer": torch.tensor([False])}
        found[f"{label}_audio"] = clap.get_audio_embedding([{key: value[0] for key, value in sound.items()}] if family.generation == 1 else sound)
        found[f"{label}_log_mel"] = clap.audio_branch.logmel_extractor(clap.audio_branch.spectrogram_extractor(x["waveform"]))
    for label, module in text_models(name, model).items():
        if label == "phonemes":
            hidden, mask = module(x["phonemes"])
            found["phoneme_hidden"], found["phoneme_mask"] = hidden, mask
        else:
            found["t5"] = module(input_ids=x["t5_ids"], attention_mask=x["t5_mask"])[0]
    if name.startswith("audioldm2"):
        second = [found["phoneme_hidden"], found["phoneme_mask"]] if "speech" in name else [found["t5"], x["t5_mask"].float()]
        key = "crossattn_vits_phoneme" if "speech" in name else "crossattn_flan_t5"
        generator = model.cond_stage_models[0]
        generator.mae_token_num = GENERATED_TOKENS  # speech makes 512, one by one
        conditions = {"film_clap_cond1": found["clap_text"][:, None], key: second}
        found["projected"], found["projected_mask"], _ = generator.get_input_sequence_and_mask(conditions)
        found["tokens"], _ = generator.generate(None, conditions)
    return {**given, **{key: value.numpy() for key, value in found.items()}}


def eps(name: str, model: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
    """The UNet's noise prediction, through the original wrapper that sorts the conditions."""
    mask = x["t5_mask"].float()
    tokens = [x["generated"], torch.ones(x["generated"].shape[:2])]
    if families.FAMILIES[name].generation == 1:
        return model.model(x["latents"], x["timesteps"], c_film=[x["film"]])
    conditions = {
        "audioldm-ft": {"film_clap_cond1": x["film"]},
        "audioldm-48k": {"film_clap_cond1": x["film"]},
        "audioldm-t5": {"crossattn_flan_t5": [x["t5_hidden"], mask]},
        "audioldm2-speech": {"crossattn_audiomae_generated": tokens},
    }.get(name, {"crossattn_audiomae_generated": tokens, "crossattn_flan_t5": [x["t5_hidden"], mask]})
    return model.model(x["latents"], x["timesteps"], conditions)


def ddim(family: families.Family, model: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
    """The original sampler, 20 steps at eta 0, around a noise prediction that both sides can compute exactly alike."""
    if family.generation == 1:
        from audioldm.latent_diffusion.ddim import DDIMSampler

        sampler = DDIMSampler(model)
        sampler.register_buffer = lambda name, value: setattr(sampler, name, value)  # the original moves everything to a GPU
    else:
        from audioldm2.latent_diffusion.models.ddim import DDIMSampler

        sampler = DDIMSampler(model, device=torch.device("cpu"))
    real, model.apply_model = model.apply_model, lambda latents, t, cond: 0.3 * latents
    try:
        return sampler.sample(DDIM_STEPS, 2, x["latents"].shape[1:], conditioning=None, eta=0.0, verbose=False, x_T=x["latents"])[0]
    finally:
        model.apply_model = real


def conditioning_clap(name: str, model: nn.Module) -> nn.Module | None:
    if families.FAMILIES[name].generation == 1:
        return model.cond_stage_model.model
    if name.startswith("audioldm2"):
        return model.cond_stage_models[0].cond_stage_models[0].model
    return None if name == "audioldm-t5" else model.cond_stage_models[0].model


def text_models(name: str, model: nn.Module) -> dict[str, nn.Module]:
    if name == "audioldm-t5":
        return {"t5": model.cond_stage_models[0].model}
    if name == "audioldm2-speech":
        return {"phonemes": model.cond_stage_models[0].cond_stage_models[1]}
    return {"t5": model.cond_stage_models[1].model} if name.startswith("audioldm2") else {}


class _WithoutValues(TorchFunctionMode):
    """Weights are made on the meta device: every layer asks `torch.empty` for them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs["device"] = "meta"
        if function == Tensor.data.__set__ and args[0].is_meta:  # computed by the constructor, such as a window
            return None
        return function(*args, **kwargs)


def built_without_values(name: str, *, full_size: bool) -> nn.Module:
    to, nn.Module.to = nn.Module.to, lambda module, *args, **kwargs: module
    try:
        with _WithoutValues():
            return families.build(name, full_size=full_size)
    finally:
        nn.Module.to = to


if __name__ == "__main__":
    main(Path(sys.argv[1]), full_size="--full-size" in sys.argv)
