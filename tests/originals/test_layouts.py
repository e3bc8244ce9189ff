"""The full-size models, as the original code builds them: every name has a meaning here, and none is lost. No weights, no memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AudioLDM2UNet2DConditionModel, AutoencoderKL, UNet2DConditionModel

from gpu.originals.layouts import OriginalFacts, recognise
from gpu.originals.names import part_links
from gpu.originals.tensors import Entry
from tests.originals.fixtures import FAMILIES, MISSING, PACKAGES, OriginalCode

KEYS = {
    "audioldm-s": (2212, 690), "audioldm-m": (2299, 690), "audioldm-l": (2212, 690), "audioldm-ft": (2864, 690), "audioldm-48k": (3748, 1106),
    "audioldm-t5": (3349, 1104), "audioldm2": (5316, 1520), "audioldm2-large": (8708, 3216), "audioldm2-speech": (4156, 1104),
}  # fmt: skip
"""Tensors of the whole file, and of its UNet."""
FACTS = {
    "audioldm-s": ("A", "audioldm", (128, 256, 384, 640), (4, 8, 12, 20), (None,), 1),
    "audioldm-m": ("A", "audioldm", (192, 384, 576, 960), (6, 12, 18, 30), (None,), 1),
    "audioldm-l": ("A", "audioldm", (256, 512, 768, 1280), (4, 8, 12, 20), (None,), 1),
    "audioldm-ft": ("B", "audioldm", (192, 384, 576, 960), (6, 12, 18, 30), (None,), 1),
    "audioldm-48k": ("B", "audioldm", (128, 256, 384, 640), (4, 8, 12, 20), (None, None), 1),
    "audioldm-t5": ("C", "audioldm_t5", (128, 256, 384, 640), (4, 8, 12, 20), (None, 1024), 1),
    "audioldm2": ("D", "audioldm2", (128, 256, 384, 640), (4, 8, 12, 20), (None, 768, 1024), 1),
    "audioldm2-large": ("D", "audioldm2", (128, 256, 384, 640), (4, 8, 12, 20), (None, 768, 1024, None), 2),
    "audioldm2-speech": ("D", "audioldm2", (128, 256, 384, 640), (4, 8, 12, 20), (None, 768), 1),
}
MILLIONS = {"audioldm-s": 185.04, "audioldm-m": 415.95, "audioldm-l": 739.14, "audioldm-ft": 415.95, "audioldm-48k": 262.70, "audioldm-t5": 265.53,
            "audioldm2": 346.94, "audioldm2-large": 718.01, "audioldm2-speech": 261.93}  # fmt: skip
UNMAPPED = re.compile(
    r"logvar|scale_factor|betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_\w+"
    r"|model_ema\.(decay|num_updates)|first_stage_model\.loss\..+"
    r"|.*\.text_branch\.embeddings\.position_ids|.*\.(spectrogram_extractor|logmel_extractor|tscam_conv|head|text_transform|audio_transform)\..+"
    r"|.*\.attn_mask|.*mel_transform\.(spectrogram\.window|mel_scale\.fb)|.*\.logit_scale_[at]|.*\.encoder\.embed_tokens\.weight"
    r"|cond_stage_models\.0\.cond_stage_models\.\d\.audiomae\..+"
)
"""What no part of a diffusers model holds."""
DTYPES = {"float32": "F32", "int64": "I64", "int32": "I32"}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Entry]]]:
    """Names, shapes and types of every family at full size."""
    if not (PACKAGES / "audioldm2").is_dir():
        pytest.skip(MISSING)
    code, found = OriginalCode("--full-size"), {}
    for family in FAMILIES:
        file = tmp_path_factory.mktemp("layouts") / f"{family}.json"
        code.ask(do="layout", family=family, to=file)
        found[family] = {name: Entry(tuple(shape), DTYPES[dtype]) for name, (shape, dtype) in json.loads(Path(file).read_text()).items()}
    code.close()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_size_file_is_recognised_by_its_shapes(layouts, family: str) -> None:
    names = layouts[family]
    facts = recognise(names)
    layout, kind, channels, heads, contexts, depth = FACTS[family]
    unet = sum(entry.numel for name, entry in names.items() if name.startswith("model.diffusion_model."))

    assert (len(names), sum(name.startswith("model.diffusion_model.") for name in names)) == KEYS[family]
    assert round(unet / 1e6, 2) == MILLIONS[family]
    assert facts.parameters["unet"] == unet
    assert (facts.layout, facts.family, facts.block_out_channels, facts.heads) == (layout, kind, channels, heads)
    assert (facts.contexts, facts.depth) == (contexts, depth)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_every_name_of_a_full_size_file_has_a_place_or_a_known_reason(layouts, family: str, weights: str) -> None:
    names = layouts[family]
    facts = recognise(names)
    links = [link for part in part_links(facts, names, weights=weights).values() for link in part]
    mapped = [link.original for link in links]
    twin = "model.diffusion_model." if weights == "ema" else "model_ema.diffusion_model"
    homeless = [name for name in names.keys() - set(mapped) if not UNMAPPED.fullmatch(name) and not name.startswith(twin)]
    if facts.layout == "D":  # the second T5, and the re-ranking CLAP
        homeless = [name for name in homeless if not name.startswith(("cond_stage_models.0.cond_stage_models.1.model.", "clap."))]

    assert not homeless
    assert len(mapped) == len(set(mapped))
    assert set(mapped) <= names.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_fill_diffusers_own_modules_exactly(layouts, family: str) -> None:
    names = layouts[family]
    facts = recognise(names)
    parts = part_links(facts, names, weights="raw")
    for part, module in {"unet": _unet(facts), "vae": _vae(facts)}.items():
        filled = {link.targets[0]: names[link.original] for link in parts[part]}
        wanted = module.state_dict()

        assert filled.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert filled[name].numel == tensor.numel()
            if part == "unet":
                assert filled[name].shape == tuple(tensor.shape)


def _unet(facts: OriginalFacts) -> torch.nn.Module:
    """diffusers' UNet by the published table of architectures, on no device."""
    single = facts.contexts == (None,)
    film = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 512, "class_embeddings_concat": True}
    with torch.device("meta"):
        return (UNet2DConditionModel if single else AudioLDM2UNet2DConditionModel)(
            in_channels=facts.latent_channels, out_channels=facts.latent_channels, block_out_channels=facts.block_out_channels,
            down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3, up_block_types=["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
            cross_attention_dim=facts.block_out_channels if single else [list(facts.contexts)] * 4, attention_head_dim=facts.heads,
            transformer_layers_per_block=facts.depth, **(film if facts.film_dim else {}),
        )  # fmt: skip


def _vae(facts: OriginalFacts) -> torch.nn.Module:
    levels = 4 if facts.n_mels == 256 else 3
    with torch.device("meta"):
        return AutoencoderKL(
            in_channels=1, out_channels=1, down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=[128, 256, 512, 1024][:levels], layers_per_block=2, latent_channels=facts.latent_channels,
        )  # fmt: skip
