"""Opens models: a whole one in diffusers' layout, and what a run has trained on top of it. Safetensors only, never a pickle.

The parts are opened one by one, with the classes that the family needs and not those that the folder's index names: published
indexes name classes that no longer exist or no longer fit, some parts are in no index, and one family has no pipeline.

The families differ in how a prompt reaches the UNet. That difference is here, in `encode` and `unet_inputs`; what trains
and what samples handles an `Embeds` without looking inside.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextModelWithProjection,
    GPT2LMHeadModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    T5EncoderModel,
    T5Tokenizer,
)

from gpu.cache import model_digest
from gpu.conditioning import Clap, ClassEmbeds, Embeds, PromptEmbeds, TextEmbeds, clap_text_embeds, encode_prompts, encode_text
from gpu.config import ModelRef
from gpu.convolutions import channels_last_1d
from gpu.device import fault_of
from gpu.errors import Fault
from gpu.lora import inject_lora, load_lora, lora_rank, merge_lora
from gpu.mel import MelConfig
from gpu.models import (
    EXTRAS,
    HALF,
    INDEX_FILE,
    LORA_FILE,
    PARTS,
    UNET_FILE,
    CheckpointFacts,
    ModelFacts,
    context_slots,
    describe,
    require_usable,
    verify_checkpoint,
    weight_files,
)
from gpu.originals.contents import kept_files

UNETS = {"UNet2DConditionModel": UNet2DConditionModel, "AudioLDM2UNet2DConditionModel": AudioLDM2UNet2DConditionModel}
SHARED_CLASSES = {
    "vae": AutoencoderKL, "vocoder": SpeechT5HifiGan, "feature_extractor": ClapFeatureExtractor, "ranker": ClapModel,
    "ranker_tokenizer": RobertaTokenizer,
}  # fmt: skip
CLASSES: dict[str, dict[str, Any]] = {
    # The published indexes name GPT2Model (haoheliu/AudioLDM2 issue 92), which transformers 5 cannot continue from; the file fits both.
    "audioldm2": {"text_encoder": ClapModel, "tokenizer": RobertaTokenizer, "text_encoder_2": T5EncoderModel, "tokenizer_2": T5Tokenizer,
                  "projection_model": AudioLDM2ProjectionModel, "language_model": GPT2LMHeadModel},
    "audioldm": {"text_encoder": ClapTextModelWithProjection, "tokenizer": RobertaTokenizer, "audio_encoder": ClapAudioModelWithProjection},
    "audioldm_t5": {"text_encoder": T5EncoderModel, "tokenizer": T5Tokenizer},
}  # fmt: skip
# Missing in files that are whole: tied to another weight, or counted anew.
NOT_IN_FILES = ("lm_head.weight", "position_ids", "relative_position_index")


class Parts:
    """The parts of a model as attributes, by the names of diffusers' pipelines.

    Attributes:
        components: the same by name.
        name_or_path: the model's folder.
    """

    def __init__(self, components: Mapping[str, Any], *, name_or_path: str) -> None:
        self.components = dict(components)
        self.name_or_path = name_or_path

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["components"][name]
        except KeyError:
            raise AttributeError(f"this model has no part {name}") from None

    def modules(self) -> Iterator[nn.Module]:
        return (part for part in self.components.values() if isinstance(part, nn.Module))


@dataclass(frozen=True, kw_only=True)
class LoadedPipeline:
    """A model in memory, every part in eval mode.

    Attributes:
        pipeline: its parts.
        mel: the front end that its vocoder inverts.
        facts: of the whole model.
        checkpoint: of the trained part on top, or None.
        base_sha256: digest of the whole model's folder.
    """

    pipeline: Parts
    family: str
    mel: MelConfig
    facts: ModelFacts
    checkpoint: CheckpointFacts | None
    base_sha256: str

    @property
    def unet(self) -> nn.Module:
        return self.pipeline.unet

    @property
    def device(self) -> torch.device:
        return self.pipeline.unet.device

    @property
    def listener(self) -> Clap | None:
        """The CLAP whose vector is the condition, with its ears, or None."""
        parts = self.pipeline
        if not self.facts.conditions_on_audio:
            return None
        return Clap(tokenizer=parts.tokenizer, text=parts.text_encoder, audio=parts.audio_encoder, extractor=parts.feature_extractor)

    @property
    def ranker(self) -> Clap | None:
        """The CLAP that candidates are ranked by, or None. A model that has one for ranking alone is ranked by that one."""
        parts = self.pipeline
        if not self.facts.ranks_by_clap:
            return None
        if self.family == "audioldm2":
            return Clap(tokenizer=parts.tokenizer, text=parts.text_encoder, audio=parts.text_encoder, extractor=parts.feature_extractor)
        if "ranker" not in parts.components:
            return self.listener
        tokenizer = parts.components.get("ranker_tokenizer", parts.tokenizer)
        return Clap(tokenizer=tokenizer, text=parts.ranker, audio=parts.ranker, extractor=parts.feature_extractor)

    def num_frames(self, duration_s: float) -> int:
        """Mel frames for a sound of `duration_s`, rounded up to whole latent frames.

        diffusers' pipeline rounds down to whole mel frames first, and then gives a sound that is up to one frame too short.
        """
        per_latent_frame = self.mel.hop_length * self.facts.latent_scale
        return max(1, math.ceil(int(duration_s * self.mel.sample_rate_hz) / per_latent_frame)) * self.facts.latent_scale

    def latent_shape(self, duration_s: float) -> tuple[int, int, int]:
        """[C, T/scale, M/scale] of one sound's latents."""
        scale = self.facts.latent_scale
        return (self.unet.config.in_channels, self.num_frames(duration_s) // scale, self.mel.n_mels // scale)


def load_pipeline(
    ref: ModelRef,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    unet: nn.Module | None = None,
    memo: Path | None = None,
) -> LoadedPipeline:
    """Open a model and lay the trained weights of `ref.weights` on its UNet; a LoRA is merged.

    Args:
        unet: a UNet that is in memory already, taken as it is instead of the one on disk.
        memo: folder where the digests of model folders are remembered.
    Raises:
        Fault: the folder is no model that we know or not whole (see `gpu.models.describe`), text alone does not drive it
            (`checkpoint.unsupported`), its content is not what the job was made for (`checkpoint.changed`), or the trained weights
            are damaged or belong to another model.
    """
    folder = Path(ref.base)
    facts = describe(folder)
    require_usable(facts)
    base_sha256 = _require_unchanged(ref, memo)
    try:
        mel = MelConfig.for_vocoder(json.loads((folder / "vocoder" / "config.json").read_text(encoding="utf-8")))
    except ValueError as error:
        raise Fault("checkpoint.unrecognised", f"{folder.name}: {error}") from error
    names = [*PARTS[facts.family], *(part for part in EXTRAS[facts.family] if (folder / part).is_dir())]
    with _quiet_libraries():
        components = {
            name: _open_part(folder, name, facts.family, dtype) if name != "unet" or unet is None else unet for name in names
        }  # fmt: skip
    pipeline = Parts(components, name_or_path=str(folder))
    for part in pipeline.modules():
        part.to(device)
        if part is not unet:
            part.eval()
            part.requires_grad_(False)
    if torch.device(device).type == "cpu":
        channels_last_1d(pipeline.vocoder)
    checkpoint = None
    if ref.weights and unet is None:
        checkpoint = apply_weights(pipeline.unet, Path(ref.weights), base_sha256=base_sha256)
    return LoadedPipeline(pipeline=pipeline, family=facts.family, mel=mel, facts=facts, checkpoint=checkpoint, base_sha256=base_sha256)


def apply_weights(unet: nn.Module, folder: Path, *, base_sha256: str = "") -> CheckpointFacts:
    """Lay what a run has trained on the UNet of its base: all its weights, a LoRA (merged), or one upon the other.

    Raises:
        Fault: `checkpoint.corrupt`, `checkpoint.incomplete`; `checkpoint.mismatch`, it was trained on another base model.
    """
    facts = verify_checkpoint(folder, only=(UNET_FILE, LORA_FILE))
    require_base(facts, base_sha256, folder)
    try:
        if UNET_FILE in facts.files:
            unet.load_state_dict(load_file(folder / UNET_FILE))
        if LORA_FILE in facts.files:
            state = load_file(folder / LORA_FILE)
            inject_lora(unet, rank=lora_rank(state))
            load_lora(unet, state)
            merge_lora(unet)
    except (RuntimeError, ValueError) as error:
        raise Fault("checkpoint.mismatch", f"{folder} does not fit the model below it: {str(error).splitlines()[0]}") from error
    unet.eval().requires_grad_(False)
    return facts


def require_base(facts: CheckpointFacts, base_sha256: str, folder: Path) -> None:
    """Raises Fault `checkpoint.mismatch` when `folder` was trained on another whole model than the one with this digest."""
    if base_sha256 and facts.base_sha256 and facts.base_sha256 != base_sha256:
        raise Fault(
            "checkpoint.mismatch",
            f"{folder} was trained on a model with SHA-256 {facts.base_sha256[:12]}…, not on this one ({base_sha256[:12]}…)",
        )


def encode(loaded: LoadedPipeline, prompts: list[str]) -> Embeds:
    """What the UNet is conditioned on for each prompt."""
    parts = loaded.pipeline
    with torch.inference_mode(False), torch.no_grad():
        if loaded.family == "audioldm":
            return ClassEmbeds(clap_text_embeds(parts.tokenizer, parts.text_encoder, prompts))
        if loaded.family == "audioldm_t5":
            return encode_text(parts.tokenizer, parts.text_encoder, prompts)
        return encode_prompts(parts, prompts)


def encode_sound(loaded: LoadedPipeline, samples: np.ndarray) -> ClassEmbeds:
    """The condition that a sound [S] at the model's rate is by itself: CLAP's vector of its first ten seconds.

    Raises:
        ValueError: the model has no ears for it; ask `facts.conditions_on_audio` first.
    """
    if loaded.listener is None:
        raise ValueError(f"{loaded.facts.name} does not take a sound as its condition")
    with torch.inference_mode(False), torch.no_grad():
        return ClassEmbeds(loaded.listener.audio_embeds(samples, sample_rate_hz=loaded.mel.sample_rate_hz))


def encode_unconditional(loaded: LoadedPipeline) -> Embeds:
    """What stands for no prompt at all, in training (a dropped caption) and in sampling (what guidance leads away from) alike.

    The encoded "", alone: a lone token for T5. Where `facts.unconditional` is `zeros`, the states that GPT-2 would write are zeros
    instead, as in AudioLDM 2's own training and sampling.
    """
    nothing = encode(loaded, [""])
    if loaded.facts.unconditional == "zeros" and isinstance(nothing, PromptEmbeds):
        return PromptEmbeds(nothing.prompt_embeds, nothing.attention_mask, torch.zeros_like(nothing.generated_prompt_embeds))
    return nothing


def encode_guided(loaded: LoadedPipeline, prompt: str, negative_prompt: str) -> tuple[Embeds, Embeds]:
    """A prompt, and what guidance leads away from: (conditional, unconditional).

    Each is encoded by itself, as captions are for training. (diffusers' pipeline pads the negative one to the prompt's length first.
    GPT-2 counts that padding in its positions, so there the unconditional states depend on how long the prompt is, and are never the
    ones that a dropped caption had in training.)
    """
    negative = encode(loaded, [negative_prompt]) if negative_prompt.strip() else encode_unconditional(loaded)
    return encode(loaded, [prompt]), negative


def collate(items: Sequence[Embeds]) -> Embeds:
    return type(items[0]).collate(items)  # type: ignore[arg-type]


def unet_inputs(embeds: Embeds, unet: nn.Module) -> dict[str, Tensor | None]:
    """The embeddings as this UNet's keyword arguments; which stream goes where is read from its configuration."""
    if isinstance(embeds, ClassEmbeds):
        return {"encoder_hidden_states": None, "class_labels": embeds.class_labels}
    streams: list[tuple[Tensor, Tensor | None]] = [(embeds.prompt_embeds, embeds.attention_mask)]
    if isinstance(embeds, PromptEmbeds):
        streams.insert(0, (embeds.generated_prompt_embeds, None))
    slots = _context_slots(_frozen(unet.config.cross_attention_dim), tuple(states.shape[-1] for states, _ in streams))
    inputs: dict[str, Tensor | None] = {"encoder_hidden_states": None}
    for slot, (states, mask) in zip(slots, streams, strict=True):
        if slot is not None:
            suffix = "_1" if slot else ""
            inputs[f"encoder_hidden_states{suffix}"] = states
            if mask is not None:
                inputs[f"encoder_attention_mask{suffix}"] = mask
    return inputs


def embeds_to_tensors(embeds: Embeds) -> dict[str, Tensor]:
    return {item.name: getattr(embeds, item.name) for item in fields(embeds)}


def embeds_from_tensors(tensors: Mapping[str, Tensor]) -> Embeds:
    if "class_labels" in tensors:
        return ClassEmbeds(**tensors)
    return PromptEmbeds(**tensors) if "generated_prompt_embeds" in tensors else TextEmbeds(**tensors)


@lru_cache
def _context_slots(cross_attention_dim: Any, widths: tuple[int, ...]) -> tuple[int | None, ...]:
    return context_slots(cross_attention_dim, widths)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _open_part(folder: Path, name: str, family: str, dtype: torch.dtype) -> Any:
    """One part from its folder, by the class that the family needs.

    Raises:
        Fault: `checkpoint.unrecognised`, `checkpoint.incomplete`.
    """
    try:
        kind = _class_for(folder, name, family)
        if not issubclass(kind, nn.Module):
            with _own_files(folder, name) as own:
                return kind.from_pretrained(own, local_files_only=True)
        only_half = all(HALF.search(file.name) for file in weight_files(folder / name))
        with _own_files(folder, name) as own:
            part, loading = kind.from_pretrained(
                own,
                # Without it transformers takes the file's own dtype and diffusers fp32, and the two halves do not fit together.
                dtype=dtype,
                variant="fp16" if only_half else None,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError) as error:
        if fault_of(error).code != "internal":
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise Fault("checkpoint.incomplete", f"{folder.name}: {name} cannot be opened: {reason}") from error
    # A library fills what a file lacks with random numbers, and only logs it.
    absent = sorted(key for key in loading.get("missing_keys", ()) if not key.endswith(NOT_IN_FILES))
    if absent:
        raise Fault("checkpoint.incomplete", f"{folder.name}: {name} lacks {len(absent)} of its weights, for example {absent[0]}")
    return part


@contextmanager
def _own_files(folder: Path, name: str) -> Iterator[Path]:
    """A folder with links to those files of a part that belong to the model.

    The libraries look for more: beside an `adapter_config.json` transformers opens an adapter, and the model that its text names.
    """
    with tempfile.TemporaryDirectory(prefix="part-") as place:
        own = Path(place) / name
        own.mkdir()
        for path in kept_files(folder):
            if path.parent.name == name:
                (own / path.name).symlink_to((folder / path).resolve())
        yield own


def _class_for(folder: Path, name: str, family: str) -> Any:
    if name == "unet":
        return UNETS[_json(folder / "unet" / "config.json")["_class_name"]]
    if name != "scheduler":
        return (SHARED_CLASSES | CLASSES[family])[name]
    named = str(_json(folder / INDEX_FILE)["scheduler"][1])
    kind = getattr(diffusers, named, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise Fault("checkpoint.unrecognised", f"{folder.name}: {named!r} is no scheduler of diffusers")
    return kind


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _require_unchanged(ref: ModelRef, memo: Path | None) -> str:
    digest = model_digest(Path(ref.base), memo=memo)
    if ref.base_sha256 and digest != ref.base_sha256:
        raise Fault(
            "checkpoint.changed",
            f"{ref.base} has changed since the job was made: its SHA-256 was {ref.base_sha256[:12]}… and is {digest[:12]}…",
        )
    return digest


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Loading bars and notes of the libraries belong into nobody's log."""
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
