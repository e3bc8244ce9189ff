"""The parts of a model folder that a file in an original layout becomes: class, configuration, and which weights each expects.

A part is built without memory for its weights, only to ask it for their names and shapes: what is written is then known to fill it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from accelerate import init_empty_weights
from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import (
    ClapAudioConfig,
    ClapAudioModelWithProjection,
    ClapConfig,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    VitsConfig,
    VitsModel,
)

from gpu.architectures import CLAP_AUDIO_FRAME, NUM_GENERATED_TOKENS
from gpu.errors import Fault
from gpu.originals.layouts import PHONEMES, SEQUENCE, T5_C, T5_D, Clap, OriginalFacts
from gpu.originals.tensors import Entry

MEL_FRAMES = 1024  # of the 10.24 s that every original was trained on
SPEECH_TOKENS = 512
GPT2_HEAD_WIDTH = ROBERTA_HEAD_WIDTH = 64
PIPELINES = {"audioldm": "AudioLDMPipeline", "audioldm2": "AudioLDM2Pipeline", "audioldm_t5": "AudioLDMT5Pipeline"}
UNLISTED = frozenset({"audio_encoder", "ranker"})
DIFFUSERS_FILE, TRANSFORMERS_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Part:
    """One network of the folder.

    Attributes:
        expects: names and shapes of its weights.
        tied: weights that the library fills from others.
        partial: True when only what is given is needed, as of a VITS the text encoder alone.
    """

    name: str
    module: nn.Module
    expects: Mapping[str, tuple[int, ...]]
    tied: frozenset[str] = frozenset()
    partial: bool = False

    @property
    def library(self) -> str:
        return type(self.module).__module__.partition(".")[0]

    @property
    def class_name(self) -> str:
        return type(self.module).__name__

    @property
    def weights_file(self) -> str:
        return DIFFUSERS_FILE if self.library == "diffusers" else TRANSFORMERS_FILE

    def save_config(self, folder: Path, *, dtype: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.library == "diffusers":
            self.module.save_config(folder)  # type: ignore[operator]
            return
        config: Any = self.module.config
        config.architectures = [self.class_name]
        config.dtype = dtype
        config.save_pretrained(folder)


def build_parts(facts: OriginalFacts, names: Mapping[str, Entry], *, scale_factor: float) -> dict[str, Part]:
    """Every network of the folder, without weights.

    Raises:
        Fault: `checkpoint.unrecognised`, the libraries have no such network.
    """
    builders: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: _unet(facts),
        "vae": lambda: _vae(facts, scale_factor),
        "vocoder": lambda: SpeechT5HifiGan(SpeechT5HifiGanConfig(**facts.vocoder, normalize_before=False)),
    }
    if facts.layout == "D":
        builders |= {
            "text_encoder": lambda: _clap(facts.clap),
            "projection_model": lambda: _projection(names),
            "language_model": lambda: _gpt2(names, tokens=NUM_GENERATED_TOKENS if facts.can_generate else SPEECH_TOKENS),
            "text_encoder_2": lambda: _t5(names, T5_D) if "t5" in facts.vocabularies else _phonemes(names),
        }
    elif facts.layout == "C":
        builders |= {"text_encoder": lambda: _t5(names, T5_C), "ranker": lambda: _clap(facts.clap)}
    else:
        builders |= {
            "text_encoder": lambda: ClapTextModelWithProjection(_clap_text(facts.clap)),
            "audio_encoder": lambda: ClapAudioModelWithProjection(_clap_audio(facts.clap)),
        }
        if facts.ranker:
            ranker = facts.ranker
            builders["ranker"] = lambda: _clap(ranker)
    return {name: _empty(name, build) for name, build in builders.items()}


def _empty(name: str, build: Callable[[], nn.Module]) -> Part:
    try:
        with _quiet(), init_empty_weights(include_buffers=False):
            module = build()
    except (ValueError, TypeError, RuntimeError, NotImplementedError, ZeroDivisionError) as error:
        raise Fault("checkpoint.unrecognised", f"the libraries have no {name} of these sizes: {str(error).splitlines()[0][:200]}") from error
    expects = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    tied = frozenset(key for key in expects if key in ("lm_head.weight", "encoder.embed_tokens.weight"))
    return Part(name, module, expects, tied, partial=isinstance(module, VitsModel))


def _unet(facts: OriginalFacts) -> nn.Module:
    levels = len(facts.block_out_channels)
    film = {} if facts.film_dim is None else {
        "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": facts.film_dim, "class_embeddings_concat": True,
    }  # fmt: skip
    common: dict[str, Any] = {
        "sample_size": MEL_FRAMES // 2 ** (len(facts.vae_channels) - 1),
        "in_channels": facts.latent_channels,
        "out_channels": facts.latent_channels,
        "block_out_channels": facts.block_out_channels,
        "layers_per_block": facts.layers_per_block,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        "up_block_types": ("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        "transformer_layers_per_block": facts.depth,
        # Named wrongly in diffusers: it is the number of heads of each level. Its default, 8, is wrong for every original.
        "attention_head_dim": facts.heads,
        **film,
    }
    if facts.contexts == (None,):
        # Called without context: each level's cross-attention attends to itself, as wide as the level.
        return UNet2DConditionModel(cross_attention_dim=facts.block_out_channels, **common)
    return AudioLDM2UNet2DConditionModel(cross_attention_dim=[list(facts.contexts)] * levels, **common)


def _vae(facts: OriginalFacts, scale_factor: float) -> nn.Module:
    levels = len(facts.vae_channels)
    return AutoencoderKL(
        sample_size=MEL_FRAMES,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=facts.vae_channels,
        layers_per_block=facts.vae_layers,
        latent_channels=facts.latent_channels,
        scaling_factor=scale_factor,
    )


def _clap_text(clap: Clap) -> ClapTextConfig:
    return ClapTextConfig(
        vocab_size=clap.vocabulary,
        hidden_size=clap.text_hidden,
        num_hidden_layers=clap.text_layers,
        num_attention_heads=max(1, clap.text_hidden // ROBERTA_HEAD_WIDTH),
        intermediate_size=clap.text_intermediate,
        max_position_embeddings=clap.positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,  # RoBERTa's; the class's own default is BERT's
        projection_dim=clap.projection,
        projection_hidden_act="relu",
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )


def _clap_audio(clap: Clap) -> ClapAudioConfig:
    return ClapAudioConfig(
        **{**CLAP_AUDIO_FRAME, "window_size": clap.window},
        patch_embeds_hidden_size=clap.embed_dim,
        hidden_size=clap.audio_hidden,
        depths=list(clap.depths),
        num_attention_heads=list(clap.heads),
        num_hidden_layers=len(clap.depths),
        num_classes=clap.classes,
        projection_dim=clap.projection,
        projection_hidden_act="relu",
        enable_fusion=False,
    )


def _clap(clap: Clap) -> ClapModel:
    return ClapModel(
        ClapConfig(text_config=_clap_text(clap).to_dict(), audio_config=_clap_audio(clap).to_dict(), projection_dim=clap.projection)
    )


def _projection(names: Mapping[str, Entry]) -> nn.Module:
    first, second = (names[f"{SEQUENCE}input_sequence_embed_linear.{number}.weight"].shape for number in (0, 1))
    positions = names.get(f"{PHONEMES}learnable_positional_embedding")
    learned = {"use_learned_position_embedding": True, "max_seq_length": positions.shape[2]} if positions else {}
    return AudioLDM2ProjectionModel(text_encoder_dim=first[1], text_encoder_1_dim=second[1], langauge_model_dim=first[0], **learned)


def _gpt2(names: Mapping[str, Entry], *, tokens: int) -> GPT2LMHeadModel:
    prefix = f"{SEQUENCE}model."
    words, width = names[f"{prefix}wte.weight"].shape
    config = GPT2Config(
        vocab_size=words,
        n_positions=names[f"{prefix}wpe.weight"].shape[0],
        n_embd=width,
        n_layer=_layers(names, f"{prefix}h."),
        n_head=max(1, width // GPT2_HEAD_WIDTH),
        bos_token_id=words - 1,
        eos_token_id=words - 1,
    )
    config.max_new_tokens = tokens
    return GPT2LMHeadModel(config)


def _t5(names: Mapping[str, Entry], prefix: str) -> T5EncoderModel:
    words, width = names[f"{prefix}shared.weight"].shape
    attention, dense = f"{prefix}encoder.block.0.layer.0.SelfAttention.", f"{prefix}encoder.block.0.layer.1.DenseReluDense."
    gated = f"{dense}wi_0.weight" in names
    buckets, heads = names[f"{attention}relative_attention_bias.weight"].shape
    return T5EncoderModel(
        T5Config(
            vocab_size=words,
            d_model=width,
            d_kv=names[f"{attention}q.weight"].shape[0] // heads,
            d_ff=names[f"{dense}{'wi_0' if gated else 'wi'}.weight"].shape[0],
            num_layers=_layers(names, f"{prefix}encoder.block."),
            num_heads=heads,
            relative_attention_num_buckets=buckets,
            feed_forward_proj="gated-gelu" if gated else "relu",
            is_encoder_decoder=False,
            use_cache=False,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def _phonemes(names: Mapping[str, Entry]) -> VitsModel:
    prefix = f"{PHONEMES}text_encoder."
    words, width = names[f"{prefix}emb.weight"].shape
    relative = names[f"{prefix}encoder.attn_layers.0.emb_rel_k"].shape
    forward = names[f"{prefix}encoder.ffn_layers.0.conv_1.weight"].shape
    return VitsModel(
        VitsConfig(
            vocab_size=words,
            hidden_size=width,
            num_hidden_layers=_layers(names, f"{prefix}encoder.attn_layers."),
            num_attention_heads=width // relative[2],
            window_size=(relative[1] - 1) // 2,
            ffn_dim=forward[0],
            ffn_kernel_size=forward[2],
            flow_size=names[f"{prefix}proj.weight"].shape[0] // 2,
            # transformers' other attention adds a mask of true and false to the scores.
            attn_implementation="eager",
        )
    )


def _layers(names: Mapping[str, Entry], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
