"""Opens models: a whole one in diffusers' layout, and what a run has trained on top of it. Safetensors only, never a pickle.

The two families differ in how a prompt reaches the UNet. That difference is here, in `encode` and `unet_inputs`; what trains
and what samples handles an `Embeds` without looking inside.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AudioLDM2Pipeline, AudioLDMPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from gpu.cache import model_digest
from gpu.conditioning import PromptEmbeds, clap_text_embeds, encode_prompts
from gpu.config import ModelRef
from gpu.errors import Fault
from gpu.lora import inject_lora, load_lora, lora_rank, merge_lora
from gpu.mel import MelConfig
from gpu.models import INDEX_FILE, LORA_FILE, UNET_FILE, CheckpointFacts, ModelFacts, describe, verify_checkpoint

PIPELINES = {"audioldm2": AudioLDM2Pipeline, "audioldm": AudioLDMPipeline}


@dataclass(frozen=True)
class ClassEmbeds:
    """A batch of prompts of AudioLDM 1: CLAP's one vector each, which the UNet takes as a class label.

    Attributes:
        class_labels: [B, D], of length 1.
    """

    class_labels: Tensor

    def __len__(self) -> int:
        return len(self.class_labels)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ClassEmbeds:
        return ClassEmbeds(self.class_labels.to(device, dtype))

    @staticmethod
    def collate(items: Sequence[ClassEmbeds]) -> ClassEmbeds:
        return ClassEmbeds(torch.cat([item.class_labels for item in items]))


Embeds = PromptEmbeds | ClassEmbeds


@dataclass(frozen=True, kw_only=True)
class LoadedPipeline:
    """A model in memory, every part in eval mode.

    Attributes:
        pipeline: diffusers' pipeline, for its parts; its `__call__` is never used here.
        mel: the front end that its vocoder inverts.
        facts: of the whole model.
        checkpoint: of the trained part on top, or None.
        base_sha256: digest of the whole model's folder.
    """

    pipeline: Any
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
        Fault: the folder is no model that we know or not whole (see `gpu.models.describe`), its content is not what the job was
            made for (`checkpoint.changed`), or the trained weights are damaged or belong to another model.
    """
    folder = Path(ref.base)
    facts = describe(folder)
    base_sha256 = _require_unchanged(ref, memo)
    try:
        mel = MelConfig.for_vocoder(json.loads((folder / "vocoder" / "config.json").read_text(encoding="utf-8")))
    except ValueError as error:
        raise Fault("checkpoint.unrecognised", f"{folder.name}: {error}") from error
    given = {"unet": unet} if unet is not None else {}
    with _quiet_libraries():
        pipeline = PIPELINES[facts.family].from_pretrained(
            folder,
            # Without it transformers takes the file's own dtype and diffusers fp32, and the two halves do not fit together.
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **_language_model(folder, dtype),
            **given,
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module) and part is not unet:
            part.eval()
            part.requires_grad_(False)
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
    """What the UNet attends to for each prompt."""
    parts = loaded.pipeline
    with torch.inference_mode(False), torch.no_grad():
        if loaded.family == "audioldm":
            return ClassEmbeds(clap_text_embeds(parts.tokenizer, parts.text_encoder, prompts))
        return encode_prompts(parts, prompts)


def encode_guided(loaded: LoadedPipeline, prompt: str, negative_prompt: str) -> tuple[Embeds, Embeds]:
    """A prompt, and what guidance leads away from: (conditional, unconditional), equal in length.

    As diffusers' pipeline does, the negative one is padded to the prompt's length before GPT-2 continues it. A longer one is
    encoded by itself; the pipeline would cut it.
    """
    both = encode(loaded, [prompt, negative_prompt])
    if isinstance(both, PromptEmbeds):
        lengths = both.attention_mask.sum(1)
        if lengths[1] > lengths[0]:
            both = PromptEmbeds.collate([encode(loaded, [prompt]), encode(loaded, [negative_prompt])])
    return _take(both, 0), _take(both, 1)


def collate(items: Sequence[Embeds]) -> Embeds:
    return type(items[0]).collate(items)  # type: ignore[arg-type]


def unet_inputs(embeds: Embeds) -> dict[str, Tensor | None]:
    """The embeddings as the UNet's keyword arguments."""
    if isinstance(embeds, ClassEmbeds):
        return {"encoder_hidden_states": None, "class_labels": embeds.class_labels}
    return {
        "encoder_hidden_states": embeds.generated_prompt_embeds,
        "encoder_hidden_states_1": embeds.prompt_embeds,
        "encoder_attention_mask_1": embeds.attention_mask,
    }


def embeds_to_tensors(embeds: Embeds) -> dict[str, Tensor]:
    return {item.name: getattr(embeds, item.name) for item in fields(embeds)}


def embeds_from_tensors(tensors: Mapping[str, Tensor]) -> Embeds:
    return ClassEmbeds(**tensors) if "class_labels" in tensors else PromptEmbeds(**tensors)


def _take(embeds: Embeds, index: int) -> Embeds:
    return type(embeds)(*(tensor[index : index + 1] for tensor in embeds_to_tensors(embeds).values()))


def _language_model(folder: Path, dtype: torch.dtype) -> dict[str, nn.Module]:
    """GPT-2 with the class that the pipeline needs.

    The published indexes name GPT2Model (haoheliu/AudioLDM2 issue 92), which transformers 5 cannot continue from. The file
    fits both classes.
    """
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    if index.get("language_model", [None, None])[1] != "GPT2Model":
        return {}
    return {
        "language_model": GPT2LMHeadModel.from_pretrained(
            folder / "language_model", dtype=dtype, use_safetensors=True, local_files_only=True
        )
    }


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
