"""Which model a file of weights is, from its names and shapes alone.

The original code wrote four layouts, which differ in how the conditioning is stored:

    A  cond_stage_model.*                        AudioLDM 1: s, m, l, and their -v2 and text-ft versions
    B  cond_stage_models.0.model.text_branch.*   fine-tunes of s and m by the training repository, and AudioLDM 48 kHz
    C  cond_stage_models.0.model.shared.weight   Flan-T5 through cross-attention
    D  cond_stage_models.0.start_of_sequence_…   AudioLDM 2: full, music, large, speech

Sizes are probed, never taken from the file's name. What no file holds: the number of attention heads (the original counts one per
32 channels, per 64 in its large model), the vocoder's strides (known by its kernels), and the vocabularies.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu.errors import Fault
from gpu.originals.tensors import SAFETENSORS, Entry, TensorFile, open_tensors

UNET, EMA, STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
VOCODER, LOSS = f"{STAGE}vocoder.", f"{STAGE}loss."
CLAP_A, CLAP_B, CLAP_D, RANKER = "cond_stage_model.model.", "cond_stage_models.0.model.", "cond_stage_models.0.cond_stage_models.0.model.", "clap.model."
SEQUENCE, T5_INNER = "cond_stage_models.0.", "cond_stage_models.0.cond_stage_models.1.model."
T5_D, T5_C, PHONEMES = "cond_stage_models.1.model.", "cond_stage_models.0.model.", "cond_stage_models.0.cond_stage_models.1."
WHOLE_KEY = "audioldm_studio"
LICENCE = "cc-by-nc-sa-4.0"
LICENCE_NOTE = (
    "The authors' repositories for AudioLDM and AudioLDM 2 are CC BY-NC-SA 4.0, and they call the pretrained checkpoints non-commercial. "
    "That holds for a copy in another format and for a fine-tune as well."
)

# Kernels of the upsampling layers -> (strides, sample rate). Strides leave no trace in the weights.
VOCODERS = {(16, 16, 8, 4, 4): ((5, 4, 2, 2, 2), 16_000), (12, 10, 8, 4, 4): ((6, 5, 4, 2, 2), 48_000)}
HEAD_WIDTH, HEAD_WIDTH_LARGE, LARGE_CHANNELS = 32, 64, 256
EMA_DECAY = 0.9999
EMA_STILL_BASE = 0.3
LORA = re.compile(r"^(?P<module>.+?)\.(?:lora_(?P<half>[AB])(?:\.[^.]+)?|lora\.(?P<updown>up|down)|(?P<processor>lora_(?:up|down)))\.weight$")
LORA_PREFIXES = ("base_model.model.", "unet.", "transformer.")


@dataclass(frozen=True, kw_only=True)
class Clap:
    """One CLAP of a file. Sizes are those of HTSAT (audio) and RoBERTa (text)."""

    prefix: str
    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    classes: int
    audio_hidden: int
    text_hidden: int
    text_layers: int
    text_intermediate: int
    vocabulary: int
    positions: int
    projection: int

    @property
    def size(self) -> str:
        return {96: "HTSAT-tiny", 128: "HTSAT-base"}.get(self.embed_dim, f"HTSAT of width {self.embed_dim}")


@dataclass(frozen=True, kw_only=True)
class OriginalFacts:
    """What a file in an original layout is.

    Args:
        layout: `A`, `B`, `C` or `D`.
        family: of `gpu.models`: `audioldm`, `audioldm2` or `audioldm_t5`.
        contexts: what each transformer of an attention site attends to: None itself, else the width of a context.
        depth: blocks in each transformer.
        heads: attention heads per level; not in the file but known from the layout.
        default_weights: which copy of the UNet the code that wrote the file samples with, `ema` or `raw`.
        weights: the copies that the file holds.
        vocabularies: rows of the embedding table that a tokenizer has to fit, by tokenizer (`roberta`, `t5`).
        parameters: number of weights of each part.
        why_not: what cannot be done with it, and why; "" where everything can.
    """

    kind: str = "original"
    layout: str
    family: str
    variant: str
    written_by: str
    unet_class: str
    model_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    contexts: tuple[int | None, ...]
    depth: int
    heads: tuple[int, ...]
    film_dim: int | None
    latent_channels: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    n_mels: int
    sample_rate_hz: int
    vocoder: dict[str, Any]
    clap: Clap
    ranker: Clap | None
    vocabularies: dict[str, int]
    weights: tuple[str, ...]
    default_weights: str
    has_vae_loss: bool
    parameters: dict[str, int]
    size_bytes: int = 0
    dtype: str = "F32"
    global_step: int | None = None
    num_updates: int | None = None
    can_generate: bool = True
    can_finetune: bool = True
    can_export: bool = True
    why_not: str = ""
    warnings: tuple[str, ...] = ()
    licence: str = LICENCE
    name: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LoraFacts:
    """A low-rank addition to a UNet, which needs the model below it.

    Args:
        style: whose names it uses: `studio` (ours), `peft` or `diffusers`.
        targets: the layers that it adds to, by the last part of their name.
        alpha: what is added is B A * alpha / rank; None where the file does not say.
        width: channels of the widest layer it adds to.
    """

    kind: str = "lora"
    style: str
    rank: int
    alpha: float | None
    targets: tuple[str, ...]
    layers: int
    width: int
    parameters: dict[str, int]
    size_bytes: int = 0
    base_sha256: str = ""
    step: int | None = None
    licence: str = ""
    name: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class UnetFacts:
    """The weights of a UNet in diffusers' names, as a run writes them; they need the model below them."""

    kind: str = "unet"
    block_out_channels: tuple[int, ...]
    latent_channels: int
    parameters: dict[str, int]
    size_bytes: int = 0
    base_sha256: str = ""
    step: int | None = None
    licence: str = ""
    name: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class WholeFacts:
    """A whole model in one safetensors file, as `gpu.originals.export` writes it."""

    kind: str = "whole"
    family: str
    variant: str = ""
    parameters: dict[str, int]
    size_bytes: int = 0
    licence: str = ""
    name: str = ""
    can_generate: bool = True
    can_finetune: bool = True
    why_not: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


FileFacts = OriginalFacts | LoraFacts | UnetFacts | WholeFacts


def describe_file(path: Path) -> FileFacts:
    """What a file of weights is and what can be done with it. Reads names, shapes and three numbers.

    Raises:
        Fault: as `gpu.originals.tensors.open_tensors` and `recognise`.
    """
    with open_tensors(path) as file:
        return describe_tensors(file)


def describe_tensors(file: TensorFile) -> FileFacts:
    """`describe_file` for a file that is open already."""
    about = {"size_bytes": file.size_bytes, "name": file.path.stem}
    if file.format == SAFETENSORS and WHOLE_KEY in file.extras:
        return _whole(file, about)
    if file.names and all(LORA.match(name) or name.endswith(".alpha") for name in file.names):
        return _lora(file, about)
    if "conv_in.weight" in file.names and any(name.startswith("down_blocks.") for name in file.names):
        return _unet(file, about)
    facts = recognise(file.names, extras=file.extras, source=file.path.name)
    return _with_values(facts, file, about)


def recognise(names: Mapping[str, Entry], *, extras: Mapping[str, Any] | None = None, source: str = "the file") -> OriginalFacts:
    """Which original model has these tensors.

    Args:
        extras: what lies beside them in the file; the training repository leaves `global_step` there.
    Raises:
        Fault: `checkpoint.unrecognised`, none that we know, with what was found; `checkpoint.incomplete`, one of its parts is missing.
    """
    extras = extras or {}
    probe = _Probe(names, source)
    layout = _layout(probe)
    for prefix, what in ((UNET, "UNet"), (f"{STAGE}encoder.", "VAE encoder"), (f"{STAGE}decoder.", "VAE decoder"), (VOCODER, "vocoder")):
        if not probe.has(prefix):
            raise Fault("checkpoint.incomplete", f"{source} holds no {what} ({prefix}*); with the other parts of layout {layout} it should")

    unet = _probe_unet(probe)
    vae = _probe_vae(probe)
    vocoder = _probe_vocoder(probe)
    clap = _probe_clap(probe, {"A": CLAP_A, "B": CLAP_B, "C": RANKER, "D": CLAP_D}[layout])
    ranker = _probe_clap(probe, RANKER) if layout in "BC" and probe.has(RANKER) else None
    phonemes = layout == "D" and probe.has(f"{PHONEMES}text_encoder.")
    vocabularies = {"roberta": clap.vocabulary}
    if layout == "C":
        vocabularies["t5"] = probe.shape(f"{T5_C}shared.weight")[0]
    elif layout == "D" and not phonemes:
        vocabularies["t5"] = probe.shape(f"{T5_D}shared.weight")[0]

    trained = probe.has(LOSS) or "pytorch-lightning_version" in extras
    written_by = "AudioLDM training repository" if trained else {"A": "AudioLDM 1 code"}.get(layout, "AudioLDM 2 code")
    weights = ("raw", "ema") if probe.has(EMA) and f"{EMA}diffusion_model{_flat('input_blocks.0.0.weight')}" in names else ("raw",)
    # Their own samplers differ: AudioLDM 1 and the training repository draw with the average, AudioLDM 2 with the raw weights.
    default = "ema" if "ema" in weights and written_by != "AudioLDM 2 code" else "raw"
    return OriginalFacts(
        layout=layout,
        family={"A": "audioldm", "B": "audioldm", "C": "audioldm_t5", "D": "audioldm2"}[layout],
        variant=_variant(layout, unet, vocoder["sampling_rate"], phonemes=phonemes),
        written_by=written_by,
        unet_class="UNet2DConditionModel" if unet["contexts"] == (None,) else "AudioLDM2UNet2DConditionModel",
        **unet,
        **vae,
        n_mels=vocoder["model_in_dim"],
        sample_rate_hz=vocoder["sampling_rate"],
        vocoder=vocoder,
        clap=clap,
        ranker=ranker,
        vocabularies=vocabularies,
        weights=weights,
        default_weights=default,
        has_vae_loss=probe.has(LOSS),
        parameters=_count(names, layout, phonemes),
        dtype=names[f"{UNET}input_blocks.0.0.weight"].dtype,
        global_step=extras.get("global_step") if isinstance(extras.get("global_step"), int) else None,
        can_generate=not phonemes,
        can_finetune=not phonemes,
        why_not="it speaks from phonemes, which need a phonemizer that is not part of this studio; it can be imported and exported"
        if phonemes
        else "",
    )


def ema_share_of_base(*, steps: int, num_updates: int) -> float:
    """How much of the weights that a run of `steps` started from is still in its moving average, 0 to 1.

    The original's decay is min(0.9999, (1 + n) / (10 + n)) with n counted since the very first training, of which a fine-tune
    inherits the count.
    """
    start = max(0, num_updates - steps)
    share = 1.0
    for n in range(start, min(num_updates, start + 100_000)):
        share *= min(EMA_DECAY, (1 + n) / (10 + n))
    return share if num_updates - start <= 100_000 else 0.0


class _Probe:
    """Names and shapes, with faults that name what was expected."""

    def __init__(self, names: Mapping[str, Entry], source: str) -> None:
        self.names = names
        self.source = source
        self._prefixes: set[str] = set()
        for name in names:
            at = name.find(".")
            while at >= 0:
                self._prefixes.add(name[: at + 1])
                at = name.find(".", at + 1)

    def has(self, prefix: str) -> bool:
        """Whether a name begins with `prefix`, which ends in a dot: `input_blocks.1.` is not `input_blocks.11.`."""
        return prefix in self._prefixes

    def shape(self, name: str, dimensions: int | None = None) -> tuple[int, ...]:
        if name not in self.names:
            raise Fault("checkpoint.incomplete", f"{self.source} lacks {name}, without which its size cannot be told")
        shape = self.names[name].shape
        if not shape or (dimensions is not None and len(shape) != dimensions) or 0 in shape:
            raise Fault("checkpoint.unrecognised", f"{self.source}: {name} has the shape {list(shape)}, expected {dimensions or 'one or more'} dimensions")
        return shape

    def count(self, prefix: str, after: str = "") -> int:
        """How many of `prefix` + 0, 1, 2 … there are."""
        number = 0
        while self.has(f"{prefix}{number}.{after}"):
            number += 1
        return number


def _layout(probe: _Probe) -> str:
    if probe.has("cond_stage_model.model.text_branch."):
        return "A"
    if f"{SEQUENCE}start_of_sequence_tokens.weight" in probe.names:
        return "D"
    if f"{T5_C}shared.weight" in probe.names:
        return "C"
    if probe.has(f"{CLAP_B}text_branch."):
        return "B"
    raise Fault(
        "checkpoint.unrecognised",
        f"{probe.source} is {_what_else(probe)}; expected an AudioLDM or AudioLDM 2 checkpoint: {UNET}*, {STAGE}* and cond_stage_model(s).*",
    )


def _what_else(probe: _Probe) -> str:
    """What a file without our conditioning is, as far as its names tell."""
    known = (
        ("cond_stage_model.transformer.", "a Stable Diffusion checkpoint, which makes pictures"),
        ("conditioner.embedders.", "a Stable Diffusion XL checkpoint, which makes pictures"),
        ("pretransform.", "a Stable Audio checkpoint"),
        (UNET, "a latent diffusion checkpoint without AudioLDM's conditioning"),
        ("module.text_branch.", "a CLAP checkpoint alone"), ("text_branch.", "a CLAP checkpoint alone"),
        ("audio_branch.", "a CLAP checkpoint alone"), ("transformer.h.", "a GPT language model"), ("h.0.attn.", "a GPT language model"),
        ("model.layers.", "a language model"), ("bert.", "a BERT model"), ("roberta.", "a RoBERTa model"),
        ("encoder.block.", "a T5 model"), ("encoder.down.", "a VAE alone"), ("vocoder.", "a VAE or vocoder alone"), ("ups.", "a vocoder alone"),
        ("generator.ups.", "a vocoder alone"), ("layer1.0.", "a ResNet"), ("down_blocks.", "a part of a diffusers model"),
    )  # fmt: skip
    tops = list(dict.fromkeys(name.split(".")[0][:40] for name in probe.names))[:6]
    what = next((words for prefix, words in known if probe.has(prefix)), "no model that we know")
    return f"{what} ({len(probe.names)} tensors under {', '.join(tops) or 'no name'})"


def _probe_unet(probe: _Probe) -> dict[str, Any]:
    channels = probe.shape(f"{UNET}time_embed.0.weight", 2)[1]
    latents = probe.shape(f"{UNET}input_blocks.0.0.weight", 4)[1]
    blocks = probe.count(f"{UNET}input_blocks.")
    downsamplers = [i for i in range(blocks) if probe.has(f"{UNET}input_blocks.{i}.0.op.")]
    layers = (downsamplers[0] if downsamplers else blocks) - 1
    levels = len(downsamplers) + 1
    if layers < 1 or blocks != levels * (layers + 1) or downsamplers != [level * (layers + 1) for level in range(1, levels)]:
        raise Fault(
            "checkpoint.unrecognised",
            f"{probe.source}: its UNet has {blocks} input blocks with downsampling at {downsamplers}, which no AudioLDM has",
        )
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    widths = tuple(probe.shape(f"{UNET}input_blocks.{first}.0.in_layers.2.weight", 4)[0] for first in firsts)
    sites = {level: probe.count(f"{UNET}input_blocks.{first}.") - 1 for level, first in enumerate(firsts)}
    per_site = probe.count(f"{UNET}middle_block.") - 2
    if per_site < 1 or any(count not in (0, per_site) for count in sites.values()) or sites[0] or not all(list(sites.values())[1:]):
        raise Fault(
            "checkpoint.unrecognised",
            f"{probe.source}: its UNet has {list(sites.values())} transformers per level and {per_site} in the middle, which no AudioLDM has",
        )
    contexts = tuple(_context(probe, firsts, widths, number) for number in range(1, per_site + 1))
    head_width = HEAD_WIDTH_LARGE if channels == LARGE_CHANNELS else HEAD_WIDTH
    film = probe.shape(f"{UNET}film_emb.weight", 2)[1] if probe.has(f"{UNET}film_emb.") else None
    return {
        "model_channels": channels,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "contexts": contexts,
        "depth": probe.count(f"{UNET}middle_block.1.transformer_blocks."),
        "heads": tuple(max(1, width // head_width) for width in widths),
        "film_dim": film,
        "latent_channels": latents,
    }


def _context(probe: _Probe, firsts: list[int], widths: tuple[int, ...], number: int) -> int | None:
    """What the `number`-th transformer of each site attends to: None itself.

    Compared over all levels: AudioLDM-L has a level of 768 channels, which alone looks like a context of that width.
    """
    found = [
        probe.shape(f"{UNET}input_blocks.{first}.{number}.transformer_blocks.0.attn2.to_k.weight", 2)[1] for first in firsts[1:]
    ]
    if found == list(widths[1:]):
        return None
    if len(set(found)) == 1:
        return found[0]
    raise Fault("checkpoint.unrecognised", f"{probe.source}: its UNet attends to contexts of widths {found}, which no AudioLDM does")


def _probe_vae(probe: _Probe) -> dict[str, Any]:
    levels = probe.count(f"{STAGE}encoder.down.")
    latents = probe.shape(f"{STAGE}post_quant_conv.weight", 4)
    moments = probe.shape(f"{STAGE}quant_conv.weight", 4)
    if latents[0] != latents[1] or moments != (2 * latents[0], 2 * latents[0], *moments[2:]):
        raise Fault("checkpoint.unrecognised", f"{probe.source}: its VAE has {latents[1]} latent channels behind {latents[0]}, expected as many")
    return {
        "vae_channels": tuple(probe.shape(f"{STAGE}encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)),
        "vae_layers": probe.count(f"{STAGE}encoder.down.0.block."),
    }


def _probe_vocoder(probe: _Probe) -> dict[str, Any]:
    initial, mels, _ = probe.shape(f"{VOCODER}conv_pre.weight", 3)
    stages = probe.count(f"{VOCODER}ups.")
    if probe.has(VOCODER) and f"{VOCODER}conv_pre.weight_g" in probe.names:
        raise Fault("checkpoint.unrecognised", f"{probe.source}: its vocoder still has weight norm; published files have it folded in")
    kernels = tuple(probe.shape(f"{VOCODER}ups.{stage}.weight", 3)[2] for stage in range(stages))
    if kernels not in VOCODERS:
        known = " or ".join(str(list(kernels)) for kernels in VOCODERS)
        raise Fault("checkpoint.unrecognised", f"{probe.source}: its vocoder has kernels {list(kernels)}; strides are known for {known} only")
    strides, rate = VOCODERS[kernels]
    residual = probe.count(f"{VOCODER}resblocks.") // stages
    return {
        "model_in_dim": mels,
        "sampling_rate": rate,
        "upsample_initial_channel": initial,
        "upsample_rates": list(strides),
        "upsample_kernel_sizes": list(kernels),
        "resblock_kernel_sizes": [probe.shape(f"{VOCODER}resblocks.{number}.convs1.0.weight", 3)[2] for number in range(residual)],
        "resblock_dilation_sizes": [[1, 3, 5][: probe.count(f"{VOCODER}resblocks.{number}.convs1.")] for number in range(residual)],
    }


def _probe_clap(probe: _Probe, prefix: str) -> Clap:
    if not probe.has(f"{prefix}audio_branch.") or not probe.has(f"{prefix}text_branch."):
        raise Fault("checkpoint.incomplete", f"{probe.source} lacks {prefix}audio_branch.* or {prefix}text_branch.*, its CLAP")
    audio, text = f"{prefix}audio_branch.", f"{prefix}text_branch."
    layers = probe.count(f"{audio}layers.")
    tables = [probe.shape(f"{audio}layers.{layer}.blocks.0.attn.relative_position_bias_table", 2) for layer in range(layers)]
    vocabulary, hidden = probe.shape(f"{text}embeddings.word_embeddings.weight", 2)
    return Clap(
        prefix=prefix,
        embed_dim=probe.shape(f"{audio}patch_embed.proj.weight", 4)[0],
        depths=tuple(probe.count(f"{audio}layers.{layer}.blocks.") for layer in range(layers)),
        heads=tuple(table[1] for table in tables),
        window=(int(tables[0][0] ** 0.5) + 1) // 2 if tables else 0,
        classes=probe.shape(f"{audio}head.weight", 2)[0] if f"{audio}head.weight" in probe.names else 527,
        audio_hidden=probe.shape(f"{prefix}audio_projection.0.weight", 2)[1],
        text_hidden=hidden,
        text_layers=probe.count(f"{text}encoder.layer."),
        text_intermediate=probe.shape(f"{text}encoder.layer.0.intermediate.dense.weight", 2)[0],
        vocabulary=vocabulary,
        positions=probe.shape(f"{text}embeddings.position_embeddings.weight", 2)[0],
        projection=probe.shape(f"{prefix}text_projection.0.weight", 2)[0],
    )


def _variant(layout: str, unet: dict[str, Any], rate: int, *, phonemes: bool) -> str:
    if layout == "D":
        if phonemes:
            return "AudioLDM 2 speech"
        return "AudioLDM 2 large" if unet["depth"] > 1 or len(unet["contexts"]) > 3 else "AudioLDM 2"
    if layout == "C":
        return "AudioLDM Flan-T5"
    if rate == 48_000:
        return "AudioLDM 48 kHz"
    letter = {128: "S", 192: "M", 256: "L"}.get(unet["model_channels"])
    return f"AudioLDM-{letter}" if letter else f"AudioLDM of width {unet['model_channels']}"


def _count(names: Mapping[str, Entry], layout: str, phonemes: bool) -> dict[str, int]:
    """Weights of each part, by the names of the model folder's parts."""
    parts = {"unet": UNET, "vocoder": VOCODER, "vae": STAGE}
    if layout == "D":
        parts |= {"text_encoder": CLAP_D, "text_encoder_2": PHONEMES if phonemes else T5_D, "language_model": f"{SEQUENCE}model."}
    else:
        parts["text_encoder"] = CLAP_A if layout == "A" else CLAP_B
    if layout != "A":
        parts["ranker"] = RANKER
    counts = dict.fromkeys(parts, 0)
    for name, entry in names.items():
        if name.startswith(LOSS):
            continue
        for part, prefix in parts.items():
            if name.startswith(prefix):
                counts[part] += entry.numel
                break
    return {part: count for part, count in counts.items() if count}


def _flat(name: str) -> str:
    return name.replace(".", "")


def _with_values(facts: OriginalFacts, file: TensorFile, about: dict[str, Any]) -> OriginalFacts:
    """Add what the file's few small values and its own extras say."""
    updates = None
    counter = f"{EMA}num_updates"
    if counter in file.names and file.names[counter].numel == 1 and file.names[counter].dtype in ("I32", "I64"):
        updates = int(file.array(counter).reshape(-1)[0])
    warnings = list(file.wrapped)
    if facts.default_weights == "ema" and facts.global_step and updates:
        share = ema_share_of_base(steps=facts.global_step, num_updates=updates)
        if share > EMA_STILL_BASE:
            warnings.append(
                f"after {facts.global_step} steps the moving average still holds {share:.0%} of the weights that this fine-tune started from: "
                "it has barely moved. Import the raw weights (--raw) to hear what was learned"
            )
    if file.foreign:
        warnings.append(f"the file wanted to use {', '.join(file.foreign[:4])}: it was not run, and nothing of it was read")
    return OriginalFacts(**{**_shallow(facts), **about, "num_updates": updates, "warnings": tuple(warnings)})


def _shallow(facts: OriginalFacts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in facts.__dataclass_fields__}


def lora_half(name: str) -> tuple[str, str] | None:
    """The layer that a LoRA's tensor belongs to, and `A` (down) or `B` (up); None for no such name."""
    match = LORA.match(name)
    if not match:
        return None
    half = match["half"] or {"down": "A", "up": "B"}[(match["updown"] or match["processor"].removeprefix("lora_"))]
    return match["module"], half


def _lora(file: TensorFile, about: dict[str, Any]) -> LoraFacts:
    downs = {module: file.names[name] for name in file.names if (found := lora_half(name)) and found[1] == "A" for module in [found[0]]}
    ups = {module: file.names[name] for name in file.names if (found := lora_half(name)) and found[1] == "B" for module in [found[0]]}
    if downs.keys() != ups.keys() or any(len(entry.shape) < 2 for entry in (*downs.values(), *ups.values())):
        lonely = sorted(downs.keys() ^ ups.keys())
        raise Fault("checkpoint.incomplete", f"{file.path.name} is a LoRA of which {lonely[0] if lonely else 'a layer'} has only one half")
    if not downs:
        raise Fault("checkpoint.incomplete", f"{file.path.name} holds the alpha of a LoRA and none of its factors")
    ranks = {entry.shape[0] for entry in downs.values()}
    first = next(iter(file.names))
    style = "peft" if first.startswith("base_model.model.") else "diffusers" if first.startswith(LORA_PREFIXES) else "studio"
    modules = [module.rpartition(".to_out.0")[1].strip(".") or module.rpartition(".")[2] for module in downs]
    extras = file.extras
    return LoraFacts(
        style=style,
        rank=max(ranks),
        alpha=_number(extras.get("alpha")),
        targets=tuple(sorted(set(modules))),
        layers=len(downs),
        width=max(entry.shape[0] for entry in ups.values()),
        parameters={"lora": sum(entry.numel for entry in file.names.values())},
        base_sha256=extras.get("base_sha256", ""),
        step=int(step) if (step := _number(extras.get("step"))) is not None else None,
        licence=extras.get("licence", ""),
        **about,
    )


def _number(text: Any) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _unet(file: TensorFile, about: dict[str, Any]) -> UnetFacts:
    probe = _Probe(file.names, file.path.name)
    levels = probe.count("down_blocks.")
    return UnetFacts(
        block_out_channels=tuple(probe.shape(f"down_blocks.{level}.resnets.0.conv1.weight", 4)[0] for level in range(levels)),
        latent_channels=probe.shape("conv_in.weight", 4)[1],
        parameters={"unet": sum(entry.numel for entry in file.names.values())},
        base_sha256=file.extras.get("base_sha256", ""),
        step=int(step) if (step := _number(file.extras.get("step"))) is not None else None,
        licence=file.extras.get("licence", ""),
        **about,
    )


def _whole(file: TensorFile, about: dict[str, Any]) -> WholeFacts:
    try:
        told = json.loads(file.extras[WHOLE_KEY])
        parameters: dict[str, int] = {}
        for name, entry in file.names.items():
            part, _, rest = name.partition(".")
            if rest and not name.startswith("files/"):
                parameters[part] = parameters.get(part, 0) + entry.numel
        return WholeFacts(
            family=str(told["family"]), variant=str(told.get("variant", "")), parameters=parameters, licence=str(told.get("licence", "")),
            can_generate=bool(told.get("can_generate", True)), can_finetune=bool(told.get("can_finetune", True)),
            why_not=str(told.get("why_not", "")), **{**about, "name": str(told.get("name") or about["name"])},
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Fault("checkpoint.malformed", f"{file.path.name}: its own description cannot be read ({type(error).__name__})") from error


__all__ = ["FileFacts", "LoraFacts", "OriginalFacts", "UnetFacts", "WholeFacts", "describe_file", "describe_tensors", "ema_share_of_base", "recognise"]
