"""Whole models with random weights, small enough for every test: `python -m gpu.tiny FOLDER [VARIANT]`.

They have every part of the published models and their proportions, a thousandth of their size. They make noise, at once.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, UNet2DConditionModel
from torch import nn
from transformers import (
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextModelWithProjection,
    T5EncoderModel,
    VitsConfig,
    VitsModel,
)

from gpu.architectures import (
    CLAP_FEATURES,
    Architecture,
    build_audioldm2,
    build_clap,
    build_gpt2,
    build_scheduler,
    build_t5,
    build_vae,
    build_vocoder,
    roberta_tokenizer,
    t5_tokenizer,
)
from gpu.mel import PUBLISHED, MelConfig

CAPTIONS = (
    "A dog barking", "Rain falling on a tin roof", "A piano playing a single low note", "Glass breaking",
    "An engine starting and idling", "Footsteps on gravel", "A high beep and a low hum", "Wind howling",
)  # fmt: skip
VOCABULARY_SIZE = 300
# Transposed convolutions give exactly `rate` samples for each one only where kernel and rate are both even or both odd.
UPSAMPLING = {160: ([5, 4, 2, 2, 2], [15, 8, 4, 4, 4]), 256: ([8, 8, 2, 2], [16, 16, 4, 4]), 480: ([6, 5, 4, 2, 2], [12, 15, 8, 4, 4])}


def tiny_architecture(
    *,
    sample_rate_hz: int = 16_000,
    n_mels: int = 64,
    hop_length: int = 160,
    vae_levels: int = 3,
    prediction_type: str = "epsilon",
    sample_length_s: float = 10.24,
) -> Architecture:
    """The description of the tiny model; each argument is something that no code may take for granted.

    Args:
        vae_levels: latents are 2 ** (vae_levels - 1) times smaller than the mel picture.
        sample_length_s: how long a sound the model makes when it is not told.
    """
    n_fft, f_min_hz, f_max_hz = PUBLISHED.get((sample_rate_hz, n_mels), (1024, 0.0, min(8000.0, sample_rate_hz / 2)))
    upsample_rates, upsample_kernel_sizes = UPSAMPLING[hop_length]
    mel = MelConfig(
        sample_rate_hz=sample_rate_hz,
        n_fft=n_fft,
        win_length=n_fft,
        hop_length=hop_length,
        n_mels=n_mels,
        f_min_hz=f_min_hz,
        f_max_hz=f_max_hz,
    )
    factor = 2 ** (vae_levels - 1)
    return Architecture(
        mel=mel,
        vae={"block_out_channels": (8,) * vae_levels, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
             "sample_size": 64, "scaling_factor": 0.9},
        unet={"block_out_channels": (8, 16), "layers_per_block": 1, "attention_head_dim": 2, "norm_num_groups": 4,
              "sample_size": mel.num_frames(sample_length_s) // factor},
        clap_text={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        clap_audio={"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1],
                    "num_attention_heads": [1, 1, 2, 2], "num_hidden_layers": 4, "mlp_ratio": 1.0},
        t5={"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        gpt2={"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 160},
        vocoder={"upsample_initial_channel": 32, "upsample_rates": upsample_rates,
                 "upsample_kernel_sizes": upsample_kernel_sizes, "resblock_kernel_sizes": [3],
                 "resblock_dilation_sizes": [[1, 3]]},
        clap_dim=16,
        vocabulary_size=VOCABULARY_SIZE,
        scheduler={"prediction_type": prediction_type},
    )  # fmt: skip


def write_tiny_audioldm2(
    folder: Path,
    *,
    seed: int = 0,
    sample_rate_hz: int = 16_000,
    n_mels: int = 64,
    hop_length: int = 160,
    vae_levels: int = 3,
    prediction_type: str = "epsilon",
    sample_length_s: float = 10.24,
) -> Path:
    """Write the tiny model in diffusers' folder layout, as `AudioLDM2Pipeline.from_pretrained` opens it."""
    architecture = tiny_architecture(
        sample_rate_hz=sample_rate_hz,
        n_mels=n_mels,
        hop_length=hop_length,
        vae_levels=vae_levels,
        prediction_type=prediction_type,
        sample_length_s=sample_length_s,
    )
    build_audioldm2(architecture, captions=CAPTIONS, seed=seed).save_pretrained(folder)
    return Path(folder)


VARIANTS = (
    "audioldm",
    "audioldm_ranker",
    "audioldm_deaf",
    "audioldm_48k",
    "audioldm_t5",
    "audioldm2",
    "audioldm2_large",
    "audioldm2_speech",
)
"""What `write_tiny` can write. `_ranker` has a second CLAP for ranking alone; `_deaf` is as diffusers publishes AudioLDM 1."""
PUBLISHED_KERNELS = {160: [16, 16, 8, 4, 4], 480: [12, 10, 8, 4, 4]}


def write_tiny(folder: Path, variant: str = "audioldm2", *, seed: int = 0) -> Path:
    """Write a tiny model of any family in the folder layout that conversions write.

    Vocoders of all but `audioldm2` have the published kernel sizes, which give some samples too many.

    Raises:
        ValueError: the variant is unknown.
    """
    if variant == "audioldm2":
        return write_tiny_audioldm2(folder, seed=seed)
    if variant not in VARIANTS:
        raise ValueError(f"variant ({variant!r}) must be one of {', '.join(VARIANTS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        name, parts, unlisted = _parts_of(variant)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": "0.42.1"}
    for part, model in {**parts, **unlisted}.items():
        if isinstance(model, nn.Module):
            model.eval()
        model.save_pretrained(folder / part)
        if part in parts:
            index[part] = [type(model).__module__.partition(".")[0], type(model).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return folder


def _parts_of(variant: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The pipeline's class, its parts, and those that lie beside them unlisted."""
    architecture = _architecture_of(variant)
    tokenizer = roberta_tokenizer(list(CAPTIONS), vocabulary_size=VOCABULARY_SIZE)
    clap = build_clap(architecture, tokenizer).eval()
    extractor = ClapFeatureExtractor(**CLAP_FEATURES)
    parts = {"vae": build_vae(architecture), "vocoder": build_vocoder(architecture), "scheduler": build_scheduler(architecture)}
    if variant == "audioldm_t5":
        t5 = t5_tokenizer(list(CAPTIONS), vocabulary_size=VOCABULARY_SIZE)
        encoder = build_t5(architecture, t5)
        parts |= {"unet": _unet(architecture, [None, encoder.config.d_model]), "text_encoder": encoder, "tokenizer": t5}
        return "AudioLDMT5Pipeline", parts, {"ranker": clap, "ranker_tokenizer": tokenizer, "feature_extractor": extractor}
    if variant.startswith("audioldm2"):
        return "AudioLDM2Pipeline", parts | _audioldm2(variant, architecture, clap, tokenizer, extractor), {}

    film = _unet(architecture, [None, None]) if variant == "audioldm_48k" else _film_unet(architecture)
    parts |= {"unet": film, "text_encoder": _half(clap, ClapTextModelWithProjection), "tokenizer": tokenizer}
    ears = {"audio_encoder": _half(clap, ClapAudioModelWithProjection), "feature_extractor": extractor}
    if variant == "audioldm_ranker":
        ears["ranker"] = build_clap(architecture, tokenizer)
    return "AudioLDMPipeline", parts, {} if variant == "audioldm_deaf" else ears


def _architecture_of(variant: str) -> Architecture:
    if variant == "audioldm_48k":
        tiny = tiny_architecture(sample_rate_hz=48_000, n_mels=256, hop_length=480, vae_levels=4)
    else:
        tiny = tiny_architecture()
    kernels = PUBLISHED_KERNELS[tiny.mel.hop_length]
    # T5's width differs from GPT-2's, as it does in every published model.
    return replace(tiny, vocoder={**tiny.vocoder, "upsample_kernel_sizes": kernels}, t5={**tiny.t5, "d_model": 24})


def _audioldm2(variant: str, architecture: Architecture, clap: ClapModel, tokenizer: Any, extractor: Any) -> dict[str, Any]:
    t5 = t5_tokenizer(list(CAPTIONS), vocabulary_size=VOCABULARY_SIZE)
    text_encoder_2: T5EncoderModel | VitsModel = build_t5(architecture, t5)
    width, attends_to, depth = architecture.t5["d_model"], [None, architecture.gpt2["n_embd"], architecture.t5["d_model"], None], 2
    if variant == "audioldm2_speech":
        text_encoder_2 = VitsModel(VitsConfig(vocab_size=183, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
                                              flow_size=16, spectrogram_bins=17, upsample_initial_channel=32, speaker_embedding_size=0,
                                              duration_predictor_filter_channels=16, duration_predictor_num_flows=1,
                                              prior_encoder_num_flows=1, posterior_encoder_num_wavenet_layers=1,
                                              prior_encoder_num_wavenet_layers=1))  # fmt: skip
        width, attends_to, depth = 16, [None, architecture.gpt2["n_embd"]], 1
    found = {
        "unet": _unet(architecture, attends_to, transformer_layers_per_block=depth),
        "text_encoder": clap,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "projection_model": AudioLDM2ProjectionModel(
            text_encoder_dim=architecture.clap_dim, text_encoder_1_dim=width, langauge_model_dim=architecture.gpt2["n_embd"]
        ),
        "language_model": build_gpt2(architecture),
        "feature_extractor": extractor,
    }
    return found if variant == "audioldm2_speech" else {**found, "tokenizer_2": t5}


def _unet(architecture: Architecture, attends_to: list[int | None], **more: Any) -> AudioLDM2UNet2DConditionModel:
    """AudioLDM 2's, with a class embedding where it attends to no text."""
    film = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": architecture.clap_dim,
            "class_embeddings_concat": True}  # fmt: skip
    levels = len(architecture.unet["block_out_channels"])
    return AudioLDM2UNet2DConditionModel(
        cross_attention_dim=[attends_to] * levels, **_unet_common(architecture), **({} if any(attends_to) else film), **more
    )


def _film_unet(architecture: Architecture) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        cross_attention_dim=architecture.unet["block_out_channels"],
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=architecture.clap_dim,
        class_embeddings_concat=True,
        **_unet_common(architecture),
    )


def _unet_common(architecture: Architecture) -> dict[str, Any]:
    levels = len(architecture.unet["block_out_channels"])
    return {
        "in_channels": architecture.vae["latent_channels"],
        "out_channels": architecture.vae["latent_channels"],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (levels - 1),
        "up_block_types": ["CrossAttnUpBlock2D"] * (levels - 1) + ["UpBlock2D"],
        # Heads a level, as conversions write them; diffusers calls their number `attention_head_dim`.
        **{**architecture.unet, "attention_head_dim": [1, 2]},
    }


def _half(clap: ClapModel, kind: type) -> Any:
    """CLAP's text or audio half with its projection, the same weights."""
    text = kind is ClapTextModelWithProjection
    half = kind(clap.config.text_config if text else clap.config.audio_config)
    names = ("text_model.", "text_projection.") if text else ("audio_model.", "audio_projection.")
    half.load_state_dict({name: value for name, value in clap.state_dict().items() if name.startswith(names)})
    return half


if __name__ == "__main__":
    print(write_tiny(Path(sys.argv[1]), *sys.argv[2:3]))
