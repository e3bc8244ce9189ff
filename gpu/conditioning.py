"""From prompts (and sounds) to what the UNet is conditioned on.

An AudioLDM 2 prompt takes two roads: the T5 states go to the UNet as they are, and CLAP's one vector plus the T5 states are
projected and continued by GPT-2 for eight more "tokens". An AudioLDM 1 prompt is CLAP's one vector, given as a class label; a
sound has such a vector too. The T5 model's prompt is its T5 states alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

# No text encoder of these families reads further; a tokenizer that names no limit of its own (1e30) cannot truncate at all.
MAX_TOKENS = 512


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


@dataclass(frozen=True)
class TextEmbeds:
    """A batch of prompts of the T5 model.

    Attributes:
        prompt_embeds: T5 states, [B, L, D].
        attention_mask: 1 on tokens, 0 on padding, [B, L].
    """

    prompt_embeds: Tensor
    attention_mask: Tensor

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextEmbeds:
        return TextEmbeds(self.prompt_embeds.to(device, dtype), self.attention_mask.to(device))

    @staticmethod
    def collate(items: Sequence[TextEmbeds]) -> TextEmbeds:
        """One batch from several, padded with zeros to the longest; the UNet never sees what the mask hides."""
        return TextEmbeds(*_pad_to_longest(items))


@dataclass(frozen=True)
class PromptEmbeds:
    """A batch of encoded prompts, named as the arguments of `AudioLDM2Pipeline`.

    Attributes:
        prompt_embeds: T5 states, [B, L, Dt5].
        attention_mask: 1 on tokens, 0 on padding, [B, L].
        generated_prompt_embeds: GPT-2's continuation, [B, 8, Dgpt].
    """

    prompt_embeds: Tensor
    attention_mask: Tensor
    generated_prompt_embeds: Tensor

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PromptEmbeds:
        """On another device, the embeddings (not the mask) in another dtype."""
        return PromptEmbeds(
            prompt_embeds=self.prompt_embeds.to(device, dtype),
            attention_mask=self.attention_mask.to(device),
            generated_prompt_embeds=self.generated_prompt_embeds.to(device, dtype),
        )

    def unpadded(self) -> list[PromptEmbeds]:
        """Each prompt by itself ([1, its own length, ...]), to be kept in a cache and brought together by `collate`.

        The T5 states are those of the prompt alone. The eight generated ones are not: GPT-2 counts padding in its positions,
        so encode a prompt alone to cache exactly what the pipeline gives for that prompt alone.
        """
        lengths = self.attention_mask.sum(1).tolist()
        return [
            PromptEmbeds(
                prompt_embeds=self.prompt_embeds[i : i + 1, :length],
                attention_mask=self.attention_mask[i : i + 1, :length],
                generated_prompt_embeds=self.generated_prompt_embeds[i : i + 1],
            )
            for i, length in enumerate(lengths)
        ]

    @staticmethod
    def collate(items: Sequence[PromptEmbeds]) -> PromptEmbeds:
        """One batch from several, padded with zeros to the longest; the UNet never sees what the mask hides."""
        return PromptEmbeds(*_pad_to_longest(items), torch.cat([item.generated_prompt_embeds for item in items]))


Embeds = PromptEmbeds | ClassEmbeds | TextEmbeds


@dataclass(frozen=True, kw_only=True)
class Clap:
    """A CLAP with both halves: words and sounds in one space, where a cosine says how well they fit.

    Attributes:
        text: `ClapModel`, or `ClapTextModelWithProjection`.
        audio: `ClapModel`, or `ClapAudioModelWithProjection` of the same CLAP.
        extractor: the sound's front end, with the parameters of the model's folder.
    """

    tokenizer: Any
    text: Any
    audio: Any
    extractor: Any

    def text_embeds(self, prompts: list[str]) -> Tensor:
        """[B, D], of length 1."""
        return clap_text_embeds(self.tokenizer, self.text, prompts)

    def audio_embeds(self, samples: np.ndarray, *, sample_rate_hz: int) -> Tensor:
        """Of one sound [S]: [1, D], of length 1."""
        features = self.features(samples, sample_rate_hz=sample_rate_hz).to(self.audio.device, self.audio.dtype)
        if hasattr(self.audio, "get_audio_features"):
            return F.normalize(self.audio.get_audio_features(features).pooler_output, dim=-1)
        return F.normalize(self.audio(input_features=features).audio_embeds, dim=-1)

    def features(self, samples: np.ndarray, *, sample_rate_hz: int) -> Tensor:
        """The log-mel picture that CLAP hears of one sound [S], as the folder's own extractor makes it: [1, 1, 1001, 64]."""
        heard = soxr.resample(np.nan_to_num(samples), sample_rate_hz, self.extractor.sampling_rate)
        # Cut here: of a longer sound the extractor takes a piece at random, and the same sound would be heard in many ways.
        heard = heard[: self.extractor.nb_max_samples]
        # An extractor's own default, "fusion", is for another kind of CLAP; none of these was trained with it.
        return self.extractor(
            [heard], sampling_rate=self.extractor.sampling_rate, truncation="rand_trunc", return_tensors="pt"
        ).input_features


def encode_text(tokenizer: Any, text_encoder: Any, prompts: list[str]) -> TextEmbeds:
    """T5's states of each prompt, padded to the longest of the batch."""
    tokens = _tokenize(tokenizer, prompts, text_encoder.device)
    return TextEmbeds(text_encoder(**tokens)[0], tokens["attention_mask"])


def encode_prompts(pipeline_or_components: Any, prompts: list[str], *, requires_grad: bool = False) -> PromptEmbeds:
    """Encodes prompts as `AudioLDM2Pipeline.encode_prompt` does, padded to the longest of the batch.

    Equal to the pipeline within float rounding, but CLAP's text is not padded to 512 tokens: its padding is masked in the
    attention and skipped by the positions, so leaving it out changes nothing but the time (five times less).

    Args:
        pipeline_or_components: an `AudioLDM2Pipeline`, or the mapping of its `components`.
        requires_grad: keep the graph, to train the text side.
    """
    parts = _parts(pipeline_or_components)
    device = parts.language_model.device
    with torch.set_grad_enabled(requires_grad):
        clap_embeds = clap_text_embeds(parts.tokenizer, parts.text_encoder, prompts)[:, None]  # [B, 1, Dclap]
        tokens = _tokenize(parts.tokenizer_2, prompts, device)
        prompt_embeds = parts.text_encoder_2(**tokens)[0]  # [B, L, Dt5]
        projected = parts.projection_model(
            hidden_states=clap_embeds,
            hidden_states_1=prompt_embeds,
            attention_mask=tokens["attention_mask"].new_ones(len(prompts), 1),
            attention_mask_1=tokens["attention_mask"],
        )  # [B, L+5, Dgpt]: CLAP and T5, each between a start and an end
        generated = continue_embeds(
            parts.language_model,
            projected.hidden_states,
            projected.attention_mask,
            max_new_tokens=parts.language_model.config.max_new_tokens,
        )
    return PromptEmbeds(prompt_embeds, tokens["attention_mask"], generated)


def clap_text_embeds(tokenizer: Any, text_encoder: Any, prompts: list[str]) -> Tensor:
    """CLAP's joint embedding of each prompt, of length 1: [B, D].

    Takes the whole `ClapModel` of AudioLDM 2 or the `ClapTextModelWithProjection` of AudioLDM 1, for which this is the
    class label. Only the first normalises by itself.
    """
    tokens = _tokenize(tokenizer, prompts, text_encoder.device)
    if hasattr(text_encoder, "get_text_features"):
        return F.normalize(text_encoder.get_text_features(**tokens).pooler_output, dim=-1)
    return F.normalize(text_encoder(**tokens).text_embeds, dim=-1)


def continue_embeds(language_model: Any, embeds: Tensor, attention_mask: Tensor, *, max_new_tokens: int) -> Tensor:
    """GPT-2's own continuation: each last hidden state is the next input. [B, L, D] -> [B, max_new_tokens, D]"""
    generated: list[Tensor] = []
    next_input, past = embeds, None
    for _ in range(max_new_tokens):
        # The base model: the pipeline also computes the word logits, and throws them away.
        output = language_model.base_model(inputs_embeds=next_input, attention_mask=attention_mask, past_key_values=past, use_cache=True)
        next_input, past = output.last_hidden_state[:, -1:], output.past_key_values
        generated.append(next_input)
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
    return torch.cat(generated, dim=1)


def _parts(pipeline_or_components: Any) -> Any:
    if isinstance(pipeline_or_components, Mapping):
        return SimpleNamespace(**pipeline_or_components)
    return pipeline_or_components


def _pad_to_longest(items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The T5 states and masks of several batches as one."""
    longest = max(item.prompt_embeds.shape[1] for item in items)
    spare = [longest - item.prompt_embeds.shape[1] for item in items]
    return (
        torch.cat([F.pad(item.prompt_embeds, (0, 0, 0, n)) for item, n in zip(items, spare, strict=True)]),
        torch.cat([F.pad(item.attention_mask, (0, n)) for item, n in zip(items, spare, strict=True)]),
    )


def _tokenize(tokenizer: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    longest = min(tokenizer.model_max_length, MAX_TOKENS)
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return {"input_ids": tokens.input_ids.to(device), "attention_mask": tokens.attention_mask.to(device)}
