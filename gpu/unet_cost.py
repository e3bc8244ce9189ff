"""What one pass through a UNet costs, counted from its configuration: multiplications, and what backward has to keep. No torch.

The count follows the blocks of diffusers' UNet2DConditionModel and AudioLDM2UNet2DConditionModel, layer by layer. Kept values are
those that autograd saves: what goes into a convolution, a norm or a nonlinearity, the queries, keys and values of an attention,
and what goes into a linear layer whose weight is trained. (A frozen convolution keeps its input too, a frozen linear layer does not.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONTEXT_TOKENS = 16
"""Tokens of a caption: it hardly matters beside the thousands of places of a sound."""
BYTES = 4


@dataclass(frozen=True, kw_only=True)
class UNetCost:
    """Of one sound and one forward pass.

    Attributes:
        multiplications: multiply-adds.
        saved_full, saved_lora: bytes that backward needs, in fp32, where all weights or a LoRA is trained.
        checkpointed_full, checkpointed_lora: the same with gradient checkpointing.
        lora_parameters: weights of a LoRA, for each unit of its rank.
        attention_parameters: weights that a LoRA lies on.
        operations: calls of a kernel; in a small model they cost more than what they compute.
        scores: pairs of places that attentions weigh, in all heads; each costs an exponential, however narrow the head.
    """

    multiplications: int
    saved_full: int
    saved_lora: int
    checkpointed_full: int
    checkpointed_lora: int
    lora_parameters: int
    attention_parameters: int
    operations: int
    scores: int


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """`block` marks the transformer blocks, which gradient checkpointing computes again from `block` values each."""

    multiplications: int
    saved_full: int
    saved_lora: int
    operations: int
    lora_parameters: int = 0
    attention_parameters: int = 0
    block: int = 0
    scores: int = 0


def unet_cost(config: Mapping[str, Any], *, height: int, width: int) -> UNetCost:
    """The cost of a UNet.

    Args:
        config: its config.json.
        height, width: of the latents of one sound.
    Raises:
        KeyError, TypeError, ValueError: the configuration is not one of a UNet that we know.
    """
    layers = list(_layers(config, height, width))
    # Backward ends at the first trained weight: what lies before the first attention is never kept for a LoRA.
    first = next((number for number, layer in enumerate(layers) if layer.lora_parameters), len(layers))
    kept = layers[first:]
    blocks = [layer for layer in layers if layer.block]
    # While one block is computed again, what it keeps is there once.
    again_full = max((layer.saved_full for layer in blocks), default=0)
    again_lora = max((layer.saved_lora for layer in blocks), default=0)
    return UNetCost(
        multiplications=sum(layer.multiplications for layer in layers),
        saved_full=BYTES * sum(layer.saved_full for layer in layers),
        saved_lora=BYTES * sum(layer.saved_lora for layer in kept),
        checkpointed_full=BYTES * (again_full + sum(layer.block or layer.saved_full for layer in layers)),
        checkpointed_lora=BYTES * (again_lora + sum(layer.block or layer.saved_lora for layer in kept)),
        lora_parameters=sum(layer.lora_parameters for layer in layers),
        attention_parameters=sum(layer.attention_parameters for layer in layers),
        operations=sum(layer.operations for layer in layers),
        scores=sum(layer.scores for layer in layers),
    )


def _layers(config: Mapping[str, Any], height: int, width: int) -> Iterator[_Layer]:
    widths = [int(value) for value in config["block_out_channels"]]
    levels = len(widths)
    resnets = _per_level(config.get("layers_per_block", 2), levels)
    depths = _per_level(config.get("transformer_layers_per_block", 1), levels)
    # What diffusers' UNets of these kinds call the dimension of a head is their number.
    heads = _per_level(config.get("num_attention_heads") or config.get("attention_head_dim") or 8, levels)
    contexts = _contexts(config.get("cross_attention_dim"), levels)
    down = [str(kind).startswith("CrossAttn") for kind in config["down_block_types"]]
    up = [str(kind).startswith("CrossAttn") for kind in config["up_block_types"]]
    if not len(down) == len(up) == levels:
        raise ValueError("block types and block_out_channels differ in number")
    sizes = [(height, width)]
    for _ in widths[1:]:
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    places = [high * wide for high, wide in sizes]
    in_channels, out_channels = int(config["in_channels"]), int(config["out_channels"])

    yield _convolution(in_channels, widths[0], places[0])
    skips = [widths[0]]
    for level, channels in enumerate(widths):
        before = widths[max(0, level - 1)]
        for number in range(resnets[level]):
            yield from _resnet(before if number == 0 else channels, channels, places[level])
            yield from _transformers(channels, places[level], depths[level], heads[level], contexts[level] if down[level] else ())
            skips.append(channels)
        if level < levels - 1:
            yield _convolution(channels, channels, places[level + 1], inputs=places[level])
            skips.append(channels)

    yield from _resnet(widths[-1], widths[-1], places[-1])
    yield from _transformers(widths[-1], places[-1], depths[-1], heads[-1], contexts[-1])
    yield from _resnet(widths[-1], widths[-1], places[-1])

    before = widths[-1]
    for level in reversed(range(levels)):
        channels = widths[level]
        for _ in range(resnets[level] + 1):
            yield from _resnet(before + skips.pop(), channels, places[level])
            yield from _transformers(channels, places[level], depths[level], heads[level], contexts[level] if up[levels - 1 - level] else ())
            before = channels
        if level:
            yield _convolution(channels, channels, places[level - 1])
    # The last norm and nonlinearity.
    yield _Layer(multiplications=0, saved_full=2 * widths[0] * places[0], saved_lora=2 * widths[0] * places[0], operations=2)
    yield _convolution(widths[0], out_channels, places[0])


def _convolution(before: int, after: int, places: int, *, inputs: int | None = None) -> _Layer:
    """A 3x3 convolution."""
    saved = before * (inputs or places)
    return _Layer(multiplications=9 * before * after * places, saved_full=saved, saved_lora=saved, operations=1)


def _resnet(before: int, after: int, places: int) -> Iterator[_Layer]:
    """Twice: norm, nonlinearity, convolution; then the timestep and the shortcut are added."""
    shortcut = before * after * places if before != after else 0
    saved = 3 * (before + after) * places
    yield _Layer(multiplications=9 * (before + after) * after * places + shortcut, saved_full=saved, saved_lora=saved, operations=10)


def _transformers(channels: int, places: int, depth: int, heads: int, contexts: tuple[int | None, ...]) -> Iterator[_Layer]:
    """One transformer for each context; None attends to itself twice."""
    area = channels * places
    for context in contexts:
        # Norm, and the two projections around the blocks.
        yield _Layer(multiplications=2 * channels * area, saved_full=3 * area, saved_lora=3 * area, operations=6)
        for _ in range(depth):
            tokens, wide = (places, channels) if context is None else (CONTEXT_TOKENS, context)
            itself = 4 * channels * area + 2 * places * area
            other = 2 * channels * area + 2 * channels * wide * tokens + 2 * tokens * area
            # Of each attention: its norm's input and output, queries, result, keys and values. Of the feed-forward part: its norm,
            # the doubled and fourfold width, the gate's nonlinearity.
            attentions = 6 * area + 4 * area + 2 * channels * tokens
            yield _Layer(
                multiplications=itself + other + 12 * channels * area,
                saved_full=attentions + 18 * area,
                saved_lora=attentions + 13 * area,
                lora_parameters=8 * channels + (6 * channels + 2 * wide),
                attention_parameters=6 * channels * channels + 2 * channels * wide,
                block=area,
                # Norm, queries, keys, values, attention, result, sum, twice; norm, two products, gate, product with it, sum.
                operations=20,
                scores=heads * places * (places + tokens),
            )


def _per_level(value: Any, levels: int) -> list[int]:
    values = [int(item) for item in value] if isinstance(value, list | tuple) else [int(value)] * levels
    if len(values) != levels:
        raise ValueError(f"{len(values)} values for {levels} levels")
    return values


def _contexts(value: Any, levels: int) -> list[tuple[int | None, ...]]:
    """What the transformers of each level attend to. AudioLDM 1 names its own width there, which means itself."""
    values = list(value) if isinstance(value, list | tuple) else [value] * levels
    if len(values) != levels:
        raise ValueError(f"{len(values)} contexts for {levels} levels")
    return [
        tuple(None if item is None else int(item) for item in level) if isinstance(level, list | tuple) else (None,) for level in values
    ]
