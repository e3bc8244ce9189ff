"""Builds a complete AudioLDM 2 from a description: every network, both tokenizers, random weights.

The description holds the libraries' own words for each part. Widths that two parts must agree on are written once and
filled in here, so that no description can contradict itself.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from string import printable
from typing import Any

import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    DDIMScheduler,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from gpu.mel import MelConfig

NUM_GENERATED_TOKENS = 8
# Swin takes a square of spec_size: 64 bins are folded to 256 x 256, room for the 1001 frames of ten seconds.
CLAP_AUDIO_FRAME = {"spec_size": 256, "num_mel_bins": 64, "window_size": 8, "patch_size": 4, "patch_stride": [4, 4]}
CLAP_FEATURES = {
    "feature_size": 64, "sampling_rate": 48_000, "hop_length": 480, "max_length_s": 10, "fft_window_size": 1024,
    "frequency_min": 50, "frequency_max": 14_000, "padding": "repeatpad", "truncation": "rand_trunc",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes of one AudioLDM 2, in the words of diffusers and transformers.

    Attributes:
        mel: the front end, which the vocoder inverts and records.
        vae, unet, clap_text, clap_audio, t5, gpt2, vocoder: keyword arguments of each part's configuration.
        scheduler: overrides of the published noise schedule.
        clap_dim: width of CLAP's joint embedding.
        vocabulary_size: upper bound for both tokenizers.
    """

    mel: MelConfig
    vae: Mapping[str, Any]
    unet: Mapping[str, Any]
    clap_text: Mapping[str, Any]
    clap_audio: Mapping[str, Any]
    t5: Mapping[str, Any]
    gpt2: Mapping[str, Any]
    vocoder: Mapping[str, Any]
    clap_dim: int
    vocabulary_size: int
    scheduler: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Architecture:
        """Raises TypeError for a missing or an unknown name."""
        return cls(**{**raw, "mel": MelConfig(**raw["mel"])})


def build_audioldm2(architecture: Architecture, *, captions: Iterable[str], seed: int = 0) -> AudioLDM2Pipeline:
    """A whole pipeline with random weights in eval mode; the same arguments give the same weights.

    Args:
        captions: what the two tokenizers learn their pieces from; other text is spelt out in shorter pieces.
    """
    captions = list(captions)
    tokenizer = roberta_tokenizer(captions, vocabulary_size=architecture.vocabulary_size)
    tokenizer_2 = t5_tokenizer(captions, vocabulary_size=architecture.vocabulary_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = AudioLDM2Pipeline(
            vae=build_vae(architecture),
            text_encoder=build_clap(architecture, tokenizer),
            text_encoder_2=build_t5(architecture, tokenizer_2),
            projection_model=AudioLDM2ProjectionModel(
                text_encoder_dim=architecture.clap_dim,
                text_encoder_1_dim=architecture.t5["d_model"],
                langauge_model_dim=architecture.gpt2["n_embd"],
            ),
            language_model=build_gpt2(architecture),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            feature_extractor=ClapFeatureExtractor(**CLAP_FEATURES),
            unet=build_unet(architecture),
            scheduler=build_scheduler(architecture),
            vocoder=build_vocoder(architecture),
        )
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()  # built from configurations, parts are in train mode, and the pipeline leaves them there
    return pipeline


def build_vae(architecture: Architecture) -> AutoencoderKL:
    levels = len(architecture.vae["block_out_channels"])
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        **architecture.vae,
    )


def build_unet(architecture: Architecture) -> AudioLDM2UNet2DConditionModel:
    levels = len(architecture.unet["block_out_channels"])
    # The leading None is self-attention. Without it index 1, the T5 states, would silently be ignored: the UNet sends
    # position 0 and 1 of this list to GPT-2's states and only positions from 2 on to T5's.
    attends_to = [None, architecture.gpt2["n_embd"], architecture.t5["d_model"]]
    types = {
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (levels - 1),
        "up_block_types": ["CrossAttnUpBlock2D"] * (levels - 1) + ["UpBlock2D"],
    }
    return AudioLDM2UNet2DConditionModel(
        in_channels=architecture.vae["latent_channels"],
        out_channels=architecture.vae["latent_channels"],
        cross_attention_dim=[attends_to] * levels,
        **{**types, **architecture.unet},
    )


def build_clap(architecture: Architecture, tokenizer: RobertaTokenizer) -> ClapModel:
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length + 2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "projection_dim": architecture.clap_dim,
        **architecture.clap_text,
    }
    audio = {**CLAP_AUDIO_FRAME, "projection_dim": architecture.clap_dim, "enable_fusion": False, **architecture.clap_audio}
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=architecture.clap_dim))


def build_t5(architecture: Architecture, tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **architecture.t5,
        )
    )


def build_gpt2(architecture: Architecture) -> GPT2LMHeadModel:
    # GPT-2 reads embeddings, never words: two words satisfy the class, which the pipeline needs to be GPT2LMHeadModel.
    config = GPT2Config(vocab_size=2, bos_token_id=0, eos_token_id=1, **architecture.gpt2)
    config.max_new_tokens = NUM_GENERATED_TOKENS
    return GPT2LMHeadModel(config)


def build_vocoder(architecture: Architecture) -> SpeechT5HifiGan:
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=architecture.mel.n_mels,
            sampling_rate=architecture.mel.sample_rate_hz,
            normalize_before=False,
            **architecture.mel.as_vocoder_keys(),
            **architecture.vocoder,
        )
    )
    for module in vocoder.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            # Its own start, N(0, 0.01), is silence that never learns.
            nn.init.kaiming_normal_(module.weight, a=vocoder.config.leaky_relu_slope)
    return vocoder


def build_scheduler(architecture: Architecture) -> DDIMScheduler:
    published = {
        "num_train_timesteps": 1000, "beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear",
        "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "epsilon",
    }  # fmt: skip
    return DDIMScheduler(**{**published, **architecture.scheduler})


def roberta_tokenizer(captions: list[str], *, vocabulary_size: int) -> RobertaTokenizer:
    """CLAP's tokenizer: byte-level pieces, so that any text can be spelt."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learnt = _model_of(learner)
    return RobertaTokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        add_prefix_space=True,
        model_max_length=512,
    )


def t5_tokenizer(captions: list[str], *, vocabulary_size: int) -> T5Tokenizer:
    """T5's tokenizer: whole words where captions use them, else single printable characters; any other is unknown.

    A unigram model takes the likeliest cut of a text. Words score as often as they occur and a character far below, so a
    known word is never cut. (Learnt from a few thousand captions, pieces such as "umpe" come out instead.)
    """
    special = ["<pad>", "</s>", "<unk>"]
    characters = ["▁", *(character for character in printable if not character.isspace())]
    counts = Counter(f"▁{word.strip('.,')}" for caption in captions for word in caption.split())
    words = [word for word in counts if len(word) > 1]
    words = sorted(words, key=lambda word: (-counts[word], word))[: vocabulary_size - len(special) - len(characters)]
    total = sum(counts.values())
    pieces = [(piece, 0.0) for piece in special]
    pieces += [(piece, -20.0) for piece in characters]
    pieces += [(word, math.log(counts[word] / total)) for word in words]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=128)


def _model_of(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())["model"]
