"""The published models at their full size, with random weights: `python -m benchmarks.published NAME FOLDER`.

What a step costs depends on shapes alone, so these stand in for the real ones wherever time and memory are measured. They make
noise. Each part is built, written and forgotten before the next, so that no more than the largest is ever in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
)

from gpu.architectures import CLAP_AUDIO_FRAME, CLAP_FEATURES, NUM_GENERATED_TOKENS, roberta_tokenizer, t5_tokenizer
from gpu.tiny import CAPTIONS

WIDTHS = {"s": (128, 256, 384, 640), "m": (192, 384, 576, 960), "l": (256, 512, 768, 1280)}
CLAP_TEXT = {
    "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "projection_dim": 512,
}  # fmt: skip
CLAP_AUDIO = {
    **CLAP_AUDIO_FRAME, "num_classes": 527, "patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2],
    "num_attention_heads": [4, 8, 16, 32], "num_hidden_layers": 4, "enable_fusion": False, "projection_dim": 512,
}  # fmt: skip
T5_LARGE = {
    "vocab_size": 32128, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False,
}  # fmt: skip
BLOCKS = {
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    "layers_per_block": 2,
}  # fmt: skip
FILM = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 512, "class_embeddings_concat": True}


def unet_config(name: str) -> dict[str, Any]:
    """Keyword arguments of the UNet of a published model."""
    if name in ("audioldm-s", "audioldm-m", "audioldm-l"):
        widths = WIDTHS[name[-1]]
        per_head = 64 if name == "audioldm-l" else 32
        return {**BLOCKS, **FILM, "sample_size": 128, "in_channels": 8, "out_channels": 8, "block_out_channels": widths,
                "cross_attention_dim": widths, "attention_head_dim": tuple(width // per_head for width in widths)}  # fmt: skip
    attends_to, extra = {
        "audioldm2": ([None, 768, 1024], {}),
        "audioldm2-large": ([None, 768, 1024, None], {"transformer_layers_per_block": 2}),
        "audioldm-t5": ([None, 1024], {}),
        "audioldm-48k": ([None, None], FILM),
    }[name]
    channels = 16 if name == "audioldm-48k" else 8
    widths = WIDTHS["s"]
    return {**BLOCKS, **extra, "sample_size": 256, "in_channels": channels, "out_channels": channels, "block_out_channels": widths,
            "cross_attention_dim": [attends_to] * 4, "attention_head_dim": tuple(width // 32 for width in widths)}  # fmt: skip


PIPELINES = {"audioldm2": "AudioLDM2Pipeline", "audioldm2-large": "AudioLDM2Pipeline", "audioldm-t5": "AudioLDMT5Pipeline"}
MODELS = ("audioldm-s", "audioldm-m", "audioldm-l", "audioldm-t5", "audioldm-48k", "audioldm2", "audioldm2-large")


def build_unet(name: str) -> nn.Module:
    v1 = name in ("audioldm-s", "audioldm-m", "audioldm-l")
    return (UNet2DConditionModel if v1 else AudioLDM2UNet2DConditionModel)(**unet_config(name))


def build_vae(name: str) -> AutoencoderKL:
    widths = (128, 256, 512, 1024) if name == "audioldm-48k" else (128, 256, 512)
    return AutoencoderKL(
        sample_size=1024, in_channels=1, out_channels=1, down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths), block_out_channels=widths, layers_per_block=2,
        latent_channels=16 if name == "audioldm-48k" else 8, scaling_factor=0.4,
    )  # fmt: skip


def build_vocoder(name: str) -> SpeechT5HifiGan:
    at_48k = {
        "model_in_dim": 256, "sampling_rate": 48_000, "upsample_initial_channel": 1536, "upsample_rates": [6, 5, 4, 2, 2],
        "upsample_kernel_sizes": [12, 10, 8, 4, 4], "resblock_kernel_sizes": [3, 7, 11, 15], "resblock_dilation_sizes": [[1, 3, 5]] * 4,
    }  # fmt: skip
    at_16k = {
        "model_in_dim": 64, "sampling_rate": 16_000, "upsample_initial_channel": 1024, "upsample_rates": [5, 4, 2, 2, 2],
        "upsample_kernel_sizes": [16, 16, 8, 4, 4], "resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    }  # fmt: skip
    return SpeechT5HifiGan(SpeechT5HifiGanConfig(normalize_before=False, **(at_48k if name == "audioldm-48k" else at_16k)))


def build_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config()
    config.max_new_tokens = NUM_GENERATED_TOKENS
    return GPT2LMHeadModel(config)


def parts(name: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(part, library and class, how to build it) of everything that a pipeline of this model has."""
    v2 = name.startswith("audioldm2")
    yield "scheduler", "diffusers DDIMScheduler", lambda: DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    if name == "audioldm-t5":
        yield "tokenizer", "transformers T5Tokenizer", lambda: t5_tokenizer(list(CAPTIONS), vocabulary_size=300)
    else:
        yield "tokenizer", "transformers RobertaTokenizer", lambda: roberta_tokenizer(list(CAPTIONS), vocabulary_size=300)
    yield "unet", f"diffusers {type_name(name)}", lambda: build_unet(name)
    yield "vae", "diffusers AutoencoderKL", lambda: build_vae(name)
    yield "vocoder", "transformers SpeechT5HifiGan", lambda: build_vocoder(name)
    if name == "audioldm-t5":
        yield "text_encoder", "transformers T5EncoderModel", lambda: T5EncoderModel(T5Config(**T5_LARGE))
        return
    if not v2:
        yield "text_encoder", "transformers ClapTextModelWithProjection", lambda: ClapTextModelWithProjection(ClapTextConfig(**CLAP_TEXT))
        return
    yield "feature_extractor", "transformers ClapFeatureExtractor", lambda: ClapFeatureExtractor(**CLAP_FEATURES)
    yield "text_encoder", "transformers ClapModel", lambda: ClapModel(
        ClapConfig(text_config=CLAP_TEXT, audio_config=CLAP_AUDIO, projection_dim=512)
    )
    yield "tokenizer_2", "transformers T5Tokenizer", lambda: t5_tokenizer(list(CAPTIONS), vocabulary_size=300)
    yield "text_encoder_2", "transformers T5EncoderModel", lambda: T5EncoderModel(T5Config(**T5_LARGE))
    yield "projection_model", "audioldm2 AudioLDM2ProjectionModel", lambda: AudioLDM2ProjectionModel(512, 1024, 768)
    yield "language_model", "transformers GPT2LMHeadModel", build_gpt2


def type_name(name: str) -> str:
    return "UNet2DConditionModel" if name in ("audioldm-s", "audioldm-m", "audioldm-l") else "AudioLDM2UNet2DConditionModel"


def write_published(name: str, folder: Path) -> Path:
    """Write the model as a diffusers folder, part by part."""
    torch.manual_seed(0)
    index: dict[str, Any] = {"_class_name": PIPELINES.get(name, "AudioLDMPipeline"), "_diffusers_version": "0.42.1"}
    for part, kind, build in parts(name):
        built = build()
        if part == "vocoder":
            # Its own start, N(0, 0.01), is silence.
            for module in built.modules():
                if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                    nn.init.kaiming_normal_(module.weight, a=built.config.leaky_relu_slope)
        built.save_pretrained(folder / part)
        index[part] = kind.split()
        del built
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


if __name__ == "__main__":
    print(write_published(sys.argv[1], Path(sys.argv[2])))
