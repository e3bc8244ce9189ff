"""The same weight's name in the original code and in diffusers or transformers.

Every rule is a bijection, so that what is brought in can be written out again bit for bit. Four ways of holding the same values:

    same    one tensor there is one tensor here
    flat    1x1 convolutions there are matrices here: [C, C, 1, 1] and [d, d, 1] without their ones
    thirds  one [3d, ...] there is query, key and value here, in rows
    rows    the first rows of a table there are a tensor each here; the other rows have no home

A name that no rule knows stays what it is, in the side file (`original.safetensors`) that a conversion keeps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpu.originals.layouts import (
    CLAP_A,
    CLAP_B,
    CLAP_D,
    EMA,
    LOSS,
    PHONEMES,
    RANKER,
    SEQUENCE,
    STAGE,
    T5_C,
    T5_D,
    T5_INNER,
    UNET,
    VOCODER,
    OriginalFacts,
)

SAME, FLAT, THIRDS, ROWS = "same", "flat", "thirds", "rows"
TEXT, AUDIO = "text", "audio"

_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2", "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}  # fmt: skip
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "film_emb": "class_embedding",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_CLAP_BLOCK = {
    "attn.proj": "attention.output.dense", "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "attn.relative_position_index": "attention.self.relative_position_index", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    "norm1": "layernorm_before", "norm2": "layernorm_after",
}  # fmt: skip
_PROJECTION = {
    "input_sequence_embed_linear.0.weight": "projection.weight", "input_sequence_embed_linear.0.bias": "projection.bias",
    "input_sequence_embed_linear.1.weight": "projection_1.weight", "input_sequence_embed_linear.1.bias": "projection_1.bias",
}  # fmt: skip
_TOKENS = {
    "start_of_sequence_tokens.weight": ("sos_embed", "sos_embed_1"), "end_of_sequence_tokens.weight": ("eos_embed", "eos_embed_1"),
}  # fmt: skip
# Older transformers wrote GPT-2's causal mask into the file; `c_attn.bias` is a weight.
_GPT2_MASK = re.compile(r"\.attn\.(masked_)?bias$")


@dataclass(frozen=True)
class Link:
    """One tensor of the original, and the tensors of a part that hold the same values in the way of `how`."""

    original: str
    targets: tuple[str, ...]
    how: str = SAME


def part_links(facts: OriginalFacts, names: Iterable[str], *, weights: str) -> dict[str, list[Link]]:
    """For each part of the model folder, where its tensors come from.

    Args:
        names: of the original file.
        weights: which copy of the UNet the folder holds, `ema` or `raw`.
    """
    names = list(names)
    parts: dict[str, list[Link]] = {
        "unet": unet_links(names, layers=facts.layers_per_block, per_site=len(facts.contexts), weights=weights),
        "vae": vae_links(names, levels=len(facts.vae_channels)),
        "vocoder": _stripped(names, VOCODER, _vocoder_name),
    }
    if facts.layout == "D":
        parts["text_encoder"] = clap_links(names, CLAP_D)
        parts["projection_model"] = projection_links(names)
        parts["language_model"] = _stripped(names, f"{SEQUENCE}model.", lambda name: None if _GPT2_MASK.search(name) else f"transformer.{name}")
        phonemes = phoneme_links(names)
        parts["text_encoder_2"] = phonemes or t5_links(names, T5_D)
    elif facts.layout == "C":
        parts["text_encoder"] = t5_links(names, T5_C)
        parts["ranker"] = clap_links(names, RANKER)
    else:
        prefix = CLAP_A if facts.layout == "A" else CLAP_B
        parts["text_encoder"] = clap_links(names, prefix, only=TEXT)
        parts["audio_encoder"] = clap_links(names, prefix, only=AUDIO)
        if facts.ranker:
            parts["ranker"] = clap_links(names, RANKER)
    return parts


def twins(facts: OriginalFacts, names: Iterable[str], *, weights: str) -> list[tuple[str, str]]:
    """Pairs (copy, kept) that a file may hold twice: whether they are the same bits, only their values tell.

    Args:
        weights: the copy of the UNet that the folder holds; the other one is the copy here.
    """
    known = set(names)
    pairs = []
    for name in known:
        other = ""
        if name.endswith("encoder.embed_tokens.weight"):
            other = name.replace("encoder.embed_tokens.weight", "shared.weight")
        if name.startswith(T5_INNER) and not name.endswith("encoder.embed_tokens.weight"):
            other = T5_D + name.removeprefix(T5_INNER)
        if name.startswith(RANKER) and facts.layout == "D":
            other = CLAP_D + name.removeprefix(RANKER)
        if name.startswith(UNET):
            other = ema_name(name.removeprefix(UNET))
        if other and other in known:
            pairs.append((other, name) if name.startswith(UNET) and weights == "raw" else (name, other))
    return sorted(pairs)


def ema_name(name: str) -> str:
    """Where the moving average of a UNet weight lies. The dots are gone, so this cannot be turned around."""
    return EMA + "diffusion_model" + name.replace(".", "")


def unet_links(names: Iterable[str], *, layers: int, per_site: int, weights: str) -> list[Link]:
    raw = [name.removeprefix(UNET) for name in names if name.startswith(UNET)]
    last_middle = max((int(name.split(".")[1]) for name in raw if name.startswith("middle_block.")), default=0)
    links = []
    for name in raw:
        target = unet_name(name, layers=layers, per_site=per_site, last_middle=last_middle)
        if target:
            links.append(Link(ema_name(name) if weights == "ema" else UNET + name, (target,)))
    return links


def unet_name(name: str, *, layers: int, per_site: int, last_middle: int) -> str | None:
    """diffusers' name of an original UNet weight; None for one that no rule knows.

    Args:
        layers: residual blocks per level; an output level has one more.
        per_site: transformers at each attention site.
        last_middle: number of the middle's second residual block.
    """
    for there, here in _UNET_ENDS.items():
        if name.startswith(f"{there}."):
            return f"{here}.{name.removeprefix(f'{there}.')}"
    segments = name.split(".")
    try:
        block, numbers = segments[0], [int(segment) for segment in segments[1 : 2 if segments[0] == "middle_block" else 3]]
    except ValueError:
        return None
    rest = ".".join(segments[1 + len(numbers) :])
    if block == "middle_block":
        if numbers[0] in (0, last_middle):
            return _joined(f"mid_block.resnets.{int(numbers[0] > 0)}", _resnet_name(rest))
        return f"mid_block.attentions.{numbers[0] - 1}.{rest}"
    if len(numbers) != 2 or block not in ("input_blocks", "output_blocks"):
        return None
    index, place = numbers
    level, layer = divmod(index - 1 if block == "input_blocks" else index, layers + 1)
    side = "down_blocks" if block == "input_blocks" else "up_blocks"
    if rest.startswith("op.") and side == "down_blocks":
        return f"down_blocks.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv.") and side == "up_blocks" and place > 0:
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    if place == 0:
        return _joined(f"{side}.{level}.resnets.{layer}", _resnet_name(rest))
    return f"{side}.{level}.attentions.{layer * per_site + place - 1}.{rest}"


def vae_links(names: Iterable[str], *, levels: int) -> list[Link]:
    links = []
    for name in names:
        if not name.startswith(STAGE) or name.startswith((VOCODER, LOSS)):
            continue
        target = vae_name(name.removeprefix(STAGE), levels=levels)
        if target:
            matrix = ".attentions.0." in target and target.endswith(".weight") and "group_norm" not in target
            links.append(Link(name, (target,), FLAT if matrix else SAME))
    return links


def vae_name(name: str, *, levels: int) -> str | None:
    """diffusers' name of an original VAE weight. The decoder's levels are counted from the other end."""
    side, _, rest = name.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return name
    if side not in ("encoder", "decoder"):
        return None
    if rest.startswith(("conv_in.", "conv_out.")):
        return name
    if rest.startswith("norm_out."):
        return f"{side}.conv_norm_out.{rest.removeprefix('norm_out.')}"
    if match := re.fullmatch(r"mid\.block_([12])\.(.+)", rest):
        return f"{side}.mid_block.resnets.{int(match[1]) - 1}.{match[2].replace('nin_shortcut', 'conv_shortcut')}"
    if (match := re.fullmatch(r"mid\.attn_1\.(\w+)\.(weight|bias)", rest)) and match[1] in _VAE_ATTENTION:
        return f"{side}.mid_block.attentions.0.{_VAE_ATTENTION[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"(down|up)\.(\d+)\.block\.(\d+)\.(.+)", rest):
        level = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        return f"{side}.{match[1]}_blocks.{level}.resnets.{match[3]}.{match[4].replace('nin_shortcut', 'conv_shortcut')}"
    if match := re.fullmatch(r"(down|up)\.(\d+)\.(?:down|up)sample\.conv\.(.+)", rest):
        level = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        return f"{side}.{match[1]}_blocks.{level}.{match[1]}samplers.0.conv.{match[3]}"
    return None


def clap_links(names: Iterable[str], prefix: str, *, only: str = "") -> list[Link]:
    """transformers' `ClapModel`, or its text or audio half alone."""
    links = []
    for name in names:
        if not name.startswith(prefix):
            continue
        found = clap_name(name.removeprefix(prefix))
        if found and (not only or found[0][0].startswith(f"{only}_")):
            links.append(Link(name, *found))
    return links


def clap_name(name: str) -> tuple[tuple[str, ...], str] | None:
    if name in ("logit_scale_a", "logit_scale_t"):
        return (name,), SAME
    top, _, rest = name.partition(".")
    if top in ("text_projection", "audio_projection"):
        number, _, kind = rest.partition(".")
        linear = {"0": "linear1", "2": "linear2"}.get(number)
        return ((f"{top}.{linear}.{kind}",), SAME) if linear else None
    if top == "text_branch":
        return (f"text_model.{rest}",), SAME
    if top != "audio_branch":
        return None
    here = "audio_model.audio_encoder."
    if rest.startswith("bn0."):
        return (f"{here}batch_norm.{rest.removeprefix('bn0.')}",), SAME
    if rest.startswith(("patch_embed.", "norm.")):
        return (here + rest,), SAME
    if match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+)\.attn\.qkv\.(weight|bias)", rest):
        return tuple(f"{here}{match[1]}.attention.self.{part}.{match[2]}" for part in ("query", "key", "value")), THIRDS
    if match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+)\.(.+)", rest):
        for there, block_name in _CLAP_BLOCK.items():
            if match[2] == there or match[2].startswith(f"{there}."):
                return (f"{here}{match[1]}.{block_name}{match[2].removeprefix(there)}",), SAME
        return None
    if re.fullmatch(r"layers\.\d+\.downsample\..+", rest):
        return (here + rest,), SAME
    return None


def t5_links(names: Iterable[str], prefix: str) -> list[Link]:
    """transformers' `T5EncoderModel`; the encoder's own copy of the embeddings is tied to `shared`."""
    return _stripped(names, prefix, lambda name: None if name == "encoder.embed_tokens.weight" else name)


def projection_links(names: Iterable[str]) -> list[Link]:
    """diffusers' `AudioLDM2ProjectionModel`. Rows 2 and on of both token tables have no home there."""
    links = []
    for name in names:
        rest = name.removeprefix(SEQUENCE) if name.startswith(SEQUENCE) else ""
        if rest in _PROJECTION:
            links.append(Link(name, (_PROJECTION[rest],)))
        elif rest in _TOKENS:
            links.append(Link(name, _TOKENS[rest], ROWS))
        elif name == f"{PHONEMES}learnable_positional_embedding":
            links.append(Link(name, ("learnable_positional_embedding",)))
    return links


def phoneme_links(names: Iterable[str]) -> list[Link]:
    """The text encoder inside transformers' `VitsModel`."""
    links = []
    prefix = f"{PHONEMES}text_encoder."
    for name in names:
        if not name.startswith(prefix):
            continue
        rest = name.removeprefix(prefix)
        target, how = None, SAME
        if rest == "emb.weight":
            target = "embed_tokens.weight"
        elif rest.startswith("proj."):
            target = f"project.{rest.removeprefix('proj.')}"
        elif match := re.fullmatch(r"encoder\.attn_layers\.(\d+)\.conv_([qkvo])\.(weight|bias)", rest):
            target = f"encoder.layers.{match[1]}.attention.{'out' if match[2] == 'o' else match[2]}_proj.{match[3]}"
            how = FLAT if match[3] == "weight" else SAME
        elif match := re.fullmatch(r"encoder\.attn_layers\.(\d+)\.(emb_rel_[kv])", rest):
            target = f"encoder.layers.{match[1]}.attention.{match[2]}"
        elif match := re.fullmatch(r"encoder\.norm_layers_([12])\.(\d+)\.(gamma|beta)", rest):
            norm = {"1": "layer_norm", "2": "final_layer_norm"}[match[1]]
            target = f"encoder.layers.{match[2]}.{norm}.{'weight' if match[3] == 'gamma' else 'bias'}"
        elif match := re.fullmatch(r"encoder\.ffn_layers\.(\d+)\.(.+)", rest):
            target = f"encoder.layers.{match[1]}.feed_forward.{match[2]}"
        if target:
            links.append(Link(name, (f"text_encoder.{target}",), how))
    return links


def _vocoder_name(name: str) -> str:
    return f"upsampler.{name.removeprefix('ups.')}" if name.startswith("ups.") else name


def _stripped(names: Iterable[str], prefix: str, rename: Callable[[str], str | None]) -> list[Link]:
    found = ((name, rename(name.removeprefix(prefix))) for name in names if name.startswith(prefix))
    return [Link(name, (target,)) for name, target in found if target]


def _resnet_name(rest: str) -> str | None:
    for there, here in _RESNET.items():
        if rest.startswith(f"{there}."):
            return f"{here}.{rest.removeprefix(f'{there}.')}"
    return None


def _joined(path: str, rest: str | None) -> str | None:
    return f"{path}.{rest}" if rest else None
