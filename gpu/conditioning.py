"""From prompts to what the UNet attends to.

An AudioLDM 2 prompt takes two roads: the T5 states go to the UNet as they are, and CLAP's one vector plus the T5 states are
projected and continued by GPT-2 for eight more "tokens". An AudioLDM 1 prompt is CLAP's one vector, given as a class label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
        longest = max(item.prompt_embeds.shape[1] for item in items)
        spare = [longest - item.prompt_embeds.shape[1] for item in items]
        return PromptEmbeds(
            prompt_embeds=torch.cat([F.pad(i.prompt_embeds, (0, 0, 0, n)) for i, n in zip(items, spare, strict=True)]),
            attention_mask=torch.cat([F.pad(i.attention_mask, (0, n)) for i, n in zip(items, spare, strict=True)]),
            generated_prompt_embeds=torch.cat([item.generated_prompt_embeds for item in items]),
        )


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


def _tokenize(tokenizer: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt")
    return {"input_ids": tokens.input_ids.to(device), "attention_mask": tokens.attention_mask.to(device)}
