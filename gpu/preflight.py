"""What a fine-tune will need before it has begun: memory, disk and time, counted from sizes and calibrated on measured runs. No torch.

Memory is a sum of parts that are known exactly (weights, gradients, moments, moving average) and one that is counted from the
UNet's configuration (what backward keeps, `gpu.unet_cost`). Time is counted alike: calls of kernels, multiplications and attention
weights, at what each cost in the runs of measurements.json. An earlier run of the same kind on the same machine is better than both, and is taken
instead where there is one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gpu.config import FinetuneConfig
from gpu.errors import Fault
from gpu.models import ModelFacts, is_non_commercial
from gpu.unet_cost import UNetCost, unet_cost

MEASUREMENTS = Path(__file__).parent / "measurements.json"
FITS, TIGHT, TOO_LARGE = "fits", "tight", "does not fit"
STOP, WARN, NOTE = "stop", "warn", "note"
MEASURED, NEAR = "measured on this machine", "scaled from another run on this machine"
COUNTED, SCALED, UNKNOWN = "counted from the model", "scaled from another machine", "unknown"

ACTIVATIONS_OVER_SAVED = 1.25
"""Peak over what backward keeps: gradients on their way and the workspace of the largest layer. Fitted to measurements.json."""
RUNTIME_BYTES = {"cpu": 500 * 2**20, "cuda": 900 * 2**20}
"""Python and its libraries; on a GPU its context and the allocator's rounding, which nobody measured here."""
SOUND_BYTES_PER_VALUE = 256 * 4 * 4
"""Decoding: bytes for each place of the mel picture. Fitted to measurements.json."""
BF16_ACTIVATIONS = 0.6
"""Products are kept in half the bytes; norms and the loss are not. Not measured: no GPU was at hand."""
UNCERTAINTY = {MEASURED: 0.05, COUNTED: 0.15}
GPU_UNCERTAINTY = 0.3
KEEP_PARTS_BYTES = 512 * 2**20
"""As gpu.finetune.validation: larger text encoders, VAE and vocoder leave the memory between sounds."""
DISK_MARGIN_BYTES = 200 * 2**20
TEXT_ENTRY_BYTES = 64 * 2**10
BACKWARD = {"full": 3.0, "lora": 2.0}
"""Passes of a step in units of a forward pass: backward is two, one for the inputs and one for the weights."""
MAX_WINDOWS = 32


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What the cost of a model follows from, beside its `ModelFacts`.

    Attributes:
        unet: its config.json.
        hop_length: samples for each mel frame.
        latent_channels: of the VAE.
    """

    unet: Mapping[str, Any]
    hop_length: int
    latent_channels: int

    @classmethod
    def read(cls, folder: Path) -> ModelSize:
        """From the small files of a whole model.

        Raises:
            Fault: `checkpoint.incomplete`, one of them is missing or says something else.
        """
        try:
            unet, vae, vocoder = (
                json.loads((Path(folder) / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", "vae", "vocoder")
            )
            size = cls(unet=unet, hop_length=math.prod(vocoder["upsample_rates"]), latent_channels=int(vae["latent_channels"]))
            unet_cost(size.unet, height=8, width=8)
        except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
            raise Fault("checkpoint.incomplete", f"{Path(folder).name}: its size cannot be told: {type(error).__name__} {error}") from error
        return size


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run would find.

    Attributes:
        device: `cuda` or `cpu`.
        name: of the GPU or the processor, as a `started` event says it.
        memory_bytes, free_bytes: of the GPU, else the machine's memory (or what its container may have).
        disk_free_bytes: under DATA_DIR.
        cores: that torch computes on.
    """

    device: str
    name: str
    memory_bytes: int
    free_bytes: int
    disk_free_bytes: int
    cores: int


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What an earlier run of the same model needed on this machine.

    Attributes:
        config: its own, where that run was of another kind (batch, duration …): its time is then scaled, its memory not used.
    """

    memory_bytes: int | None
    step_s: float | None
    config: FinetuneConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that the user should know. `stop` refuses the run (unless forced where `can_force`)."""

    level: str
    about: str
    message: str
    can_force: bool = False


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run needs.

    Attributes:
        memory: bytes by part, at the largest moment.
        memory_basis, time_basis: what the sums rest on.
        disk: bytes by part, at the largest moment.
        step_s, total_s: None where nothing is known.
        verdict: of the memory.
        suggestion: smaller values that fit, by parameter; empty where there are none or none are needed.
    """

    memory: dict[str, int]
    memory_bytes: int
    memory_basis: str
    uncertainty: float
    disk: dict[str, int]
    step_s: float | None
    total_s: float | None
    time_basis: str
    verdict: str
    machine: Machine
    findings: tuple[Finding, ...] = ()
    suggestion: dict[str, Any] = field(default_factory=dict)

    @property
    def disk_bytes(self) -> int:
        return sum(self.disk.values())

    @property
    def stops(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == STOP]

    def as_dict(self) -> dict[str, Any]:
        return {
            "memory": self.memory, "memory_bytes": self.memory_bytes, "memory_basis": self.memory_basis, "uncertainty": self.uncertainty,
            "disk": self.disk, "disk_bytes": self.disk_bytes, "step_s": self.step_s, "total_s": self.total_s, "time_basis": self.time_basis,
            "verdict": self.verdict, "machine": vars(self.machine), "findings": [vars(finding) for finding in self.findings],
            "suggestion": self.suggestion,
        }  # fmt: skip


def estimate(
    facts: ModelFacts,
    size: ModelSize,
    config: FinetuneConfig,
    machine: Machine,
    *,
    clip_seconds: Iterable[float],
    clip_rates_hz: Iterable[int] = (),
    earlier: Earlier | None = None,
) -> Estimate:
    """What a run of `config` on this model needs, and whether this machine has it.

    Args:
        clip_seconds: the duration of each clip that is trained or validated on.
        clip_rates_hz: their sample rates.
        earlier: an earlier run of the same model here, if there was one.
    """
    memory = memory_parts(facts, size, config, machine.device)
    needed, basis, uncertainty = sum(memory.values()), COUNTED, GPU_UNCERTAINTY if machine.device == "cuda" else UNCERTAINTY[COUNTED]
    if earlier and earlier.memory_bytes and earlier.config is None:
        needed, basis, uncertainty = earlier.memory_bytes, MEASURED, UNCERTAINTY[MEASURED]
    step_s, time_basis = seconds_per_step(facts, size, config, machine), SCALED
    if earlier and earlier.step_s and earlier.config is None:
        step_s, time_basis = earlier.step_s, MEASURED
    elif earlier and earlier.step_s and earlier.config is not None:
        ratio = step_cpu_s(facts, size, config) / step_cpu_s(facts, size, earlier.config)
        step_s, time_basis = earlier.step_s * ratio, NEAR
    clip_seconds, clip_rates_hz = list(clip_seconds), list(clip_rates_hz)
    disk = disk_parts(facts, size, config, clip_seconds)
    verdict = _verdict(needed, uncertainty, machine)
    found = [
        *_memory_findings(verdict, needed, machine, memory),
        *_disk_findings(disk, machine),
        *_model_findings(facts, config, machine, clip_rates_hz),
    ]
    suggestion: dict[str, Any] = {}
    if verdict != FITS or any(finding.about == "disk" for finding in found):
        suggestion = smaller(facts, size, config, machine, clip_seconds=clip_seconds)
    if any(finding.about == "precision" for finding in found):
        suggestion["mixed_precision"] = "auto"
    return Estimate(
        memory=memory, memory_bytes=needed, memory_basis=basis, uncertainty=uncertainty, disk=disk,
        step_s=step_s, total_s=None if step_s is None else step_s * config.max_train_steps,
        time_basis=time_basis if step_s is not None else UNKNOWN, verdict=verdict, machine=machine, findings=tuple(found), suggestion=suggestion,
    )  # fmt: skip


def memory_parts(facts: ModelFacts, size: ModelSize, config: FinetuneConfig, device: str) -> dict[str, int]:
    """Bytes by part at the largest moment: in the middle of a step, or while the run makes its sounds."""
    unet = facts.parameters["unet"]
    others = 4 * sum(count for part, count in facts.parameters.items() if part != "unet")
    cost = _cost(facts, size, config.audio_length_in_s)
    trained = trained_parameters(facts, cost, config)
    lora = config.method == "lora"
    half = device == "cuda" and config.mixed_precision != "no"

    saved = getattr(cost, f"{'checkpointed' if config.gradient_checkpointing else 'saved'}_{config.method}")
    activations = int(config.train_batch_size * saved * ACTIVATIONS_OVER_SAVED * (BF16_ACTIVATIONS if half else 1))
    # Autocast keeps a half copy of every trained weight through a pass.
    activations += 2 * trained if half else 0
    at_once = config.num_waveforms_per_prompt if device == "cuda" else 1
    sounds = at_once * SOUND_BYTES_PER_VALUE * mel_frames(facts, size, config.audio_length_in_s) * facts.n_mels
    sounds += others if others > KEEP_PARTS_BYTES else 0
    # A sound is made with the moving average or the merged LoRA: what they take the place of is put aside.
    sounds += 4 * trained if config.use_ema else 0
    sounds += 4 * cost.attention_parameters if lora else 0
    parts = {
        "runtime": RUNTIME_BYTES[device],
        "weights": 4 * (unet + (trained if lora else 0)) + (others if others <= KEEP_PARTS_BYTES else 0),
        "optimizer": 8 * trained,
        "moving average": 4 * trained if config.use_ema else 0,
    }
    # Gradients are gone while sounds are made.
    training = 4 * trained + activations
    return {**parts, **({"gradients": 4 * trained, "activations": activations} if training >= sounds else {"making sounds": sounds})}


def trained_parameters(facts: ModelFacts, cost: UNetCost, config: FinetuneConfig) -> int:
    return config.lora_rank * cost.lora_parameters if config.method == "lora" else facts.parameters["unet"]


def disk_parts(facts: ModelFacts, size: ModelSize, config: FinetuneConfig, clip_seconds: Iterable[float]) -> dict[str, int]:
    """Bytes by part when the run is over and the last checkpoint is being written."""
    cost = _cost(facts, size, config.audio_length_in_s)
    trained = trained_parameters(facts, cost, config)
    one = 4 * (trained + trained * (4 if config.use_ema else 3))
    saves = math.ceil(config.max_train_steps / config.checkpointing_steps)
    kept = min(saves, config.checkpoints_total_limit + 1) + (1 if saves > 1 else 0)  # the best, and the one that is being written
    high, wide = latent_size(facts, size, config.audio_length_in_s)
    windows = sum(min(MAX_WINDOWS, max(1, math.ceil((seconds / config.audio_length_in_s - 1) * 2) + 1)) for seconds in clip_seconds)
    samples = max(1, math.ceil(config.audio_length_in_s * facts.sample_rate_hz)) * 2 * 3
    return {
        "checkpoints": one * kept,
        "cache": windows * (2 * 4 * size.latent_channels * high * wide + TEXT_ENTRY_BYTES),
        "sounds": samples * (saves + 2),
    }


def seconds_per_step(facts: ModelFacts, size: ModelSize, config: FinetuneConfig, machine: Machine) -> float | None:
    """Seconds of a step by the measured runs; None on a GPU, where nothing was measured."""
    return step_cpu_s(facts, size, config, cores=machine.cores) if machine.device == "cpu" else None


def step_cpu_s(facts: ModelFacts, size: ModelSize, config: FinetuneConfig, *, cores: int = 1) -> float:
    """Seconds of a step on so many cores of the measured processor. Cores share what is computed, not the calling of kernels."""
    cost = _cost(facts, size, config.audio_length_in_s)
    passes = BACKWARD[config.method] + (1 / 3 if config.gradient_checkpointing else 0)
    # A LoRA saves products, not calls: backward goes through every layer, and its own come on top.
    calls = 3 + (1 if config.gradient_checkpointing else 0)
    called = OPERATION_S * calls * config.gradient_accumulation_steps * cost.operations
    sounds = config.train_batch_size * config.gradient_accumulation_steps
    computed = sounds * passes * (MULTIPLICATION_S * cost.multiplications + SCORE_S * cost.scores)
    return called + (computed + UPDATE_S * trained_parameters(facts, cost, config)) / max(1, cores)


OPERATION_S, MULTIPLICATION_S, SCORE_S, UPDATE_S = 4.09e-5, 2.94e-11, 2.29e-9, 3.13e-9
"""CPU seconds of a kernel's call, of a multiply-add, of an attention's weight and of AdamW's update of one trained weight: the
non-negative least squares of the relative errors over all rows of measurements.json."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row of measurements.json: a published model at its full size, and what a step and the whole run took."""

    model: str
    facts: ModelFacts
    size: ModelSize
    config: FinetuneConfig
    cpu_s: float
    resident_bytes: int | None
    device: str


def published() -> dict[str, tuple[ModelFacts, ModelSize]]:
    """The published models' sizes, by name."""
    return {name: _of_published(name, raw) for name, raw in _read_measurements()["models"].items()}


@lru_cache
def measurements() -> list[Measured]:
    """The full-size runs that were measured (`benchmarks.full_size`)."""
    return _rows(_read_measurements())


@lru_cache
def small_measurements() -> list[Measured]:
    """Steps of models so small that calling kernels costs more than what they compute (the way of `benchmarks.training_step`)."""
    return _rows(_read_measurements()["small"])


BENCHMARKED = {"num_waveforms_per_prompt": 1, "max_train_steps": 3, "lora_rank": 16}
"""What benchmarks.full_size chooses, beside what stands in each row."""


def _rows(measured: Mapping[str, Any]) -> list[Measured]:
    models = {name: _of_published(name, raw) for name, raw in measured["models"].items()}
    return [
        Measured(
            model=row["model"], facts=models[row["model"]][0], size=models[row["model"]][1], config=FinetuneConfig.parse({**BENCHMARKED, **row["config"]}),
            cpu_s=row["cpu_s"], resident_bytes=row.get("resident_bytes"), device=row["device"],
        )
        for row in measured["rows"]
    ]  # fmt: skip


def smaller(facts: ModelFacts, size: ModelSize, config: FinetuneConfig, machine: Machine, *, clip_seconds: Iterable[float] = ()) -> dict[str, Any]:
    """The first change with which memory and disk suffice, in the order of what is given up; {} where none does."""
    sounds = config.train_batch_size * config.gradient_accumulation_steps
    one = {"train_batch_size": 1, "gradient_accumulation_steps": min(1024, sounds)} if config.train_batch_size > 1 else {}
    recomputed = {} if config.gradient_checkpointing else {"gradient_checkpointing": True}
    without_ema = {"use_ema": False} if config.use_ema else {}
    lora = {} if config.method == "lora" else {"method": "lora"}
    keep_one = {"checkpoints_total_limit": 1} if config.checkpoints_total_limit > 1 else {}
    ten_saves = {"checkpointing_steps": config.max_train_steps // 10} if config.max_train_steps // 10 > config.checkpointing_steps else {}
    few = {**keep_one, **ten_saves}
    shorter = [{"audio_length_in_s": seconds} for seconds in (5.12, 2.56) if seconds < config.audio_length_in_s]
    steps: list[dict[str, Any]] = [{}, recomputed, one, {**one, **recomputed}, {**one, **recomputed, **without_ema}, {**one, **lora}, {**one, **recomputed, **lora}]
    steps += [{**one, **recomputed, **without_ema, **lora, **duration} for duration in shorter]
    clip_seconds = list(clip_seconds)
    memory_fits = _memory_fits(facts, size, config, machine)
    for values in steps:
        # Where memory is what is short, only what saves memory leads on.
        for kept in ({}, keep_one) if values else ({}, keep_one, ten_saves, few, {**few, **without_ema}, {**few, **lora}) if memory_fits else ():
            changed = replace(config, **values, **{name: value for name, value in kept.items() if name not in values})
            if changed != config and _suffices(facts, size, changed, machine, clip_seconds):
                return {**values, **kept}
    return {}


def less(config: FinetuneConfig) -> dict[str, Any]:
    """What to change in a run that ran out of memory: all that leaves its method as it is, then the method, then the duration."""
    sounds = config.train_batch_size * config.gradient_accumulation_steps
    changes: dict[str, Any] = {}
    if config.train_batch_size > 1:
        changes |= {"train_batch_size": 1, "gradient_accumulation_steps": min(1024, sounds)}
    if not config.gradient_checkpointing:
        changes |= {"gradient_checkpointing": True}
    if changes:
        return changes
    if config.method == "full":
        return {"method": "lora"}
    return {"audio_length_in_s": max(0.1, round(config.audio_length_in_s / 2, 2))} if config.audio_length_in_s > 1 else {}


def in_words(values: Mapping[str, Any]) -> str:
    """`train_batch_size 1, gradient_checkpointing on`, as people set it."""
    return ", ".join(f"{name} {'on' if value is True else 'off' if value is False else value}" for name, value in values.items())


def latent_size(facts: ModelFacts, size: ModelSize, duration_s: float) -> tuple[int, int]:
    """[T, M] of one sound's latents, as `LoadedPipeline.latent_shape`."""
    return mel_frames(facts, size, duration_s) // facts.latent_scale, facts.n_mels // facts.latent_scale


def mel_frames(facts: ModelFacts, size: ModelSize, duration_s: float) -> int:
    """Frames for a sound, rounded up to whole latent frames, as `LoadedPipeline.num_frames`."""
    per_latent = size.hop_length * facts.latent_scale
    return max(1, math.ceil(int(duration_s * facts.sample_rate_hz) / per_latent)) * facts.latent_scale


@lru_cache
def _read_measurements() -> dict[str, Any]:
    return json.loads(MEASUREMENTS.read_text(encoding="utf-8"))


def _of_published(name: str, raw: Mapping[str, Any]) -> tuple[ModelFacts, ModelSize]:
    family = "audioldm2" if name.startswith("audioldm2") else "audioldm_t5" if name == "audioldm-t5" else "audioldm"
    facts = ModelFacts(
        name=name, family=family, pipeline_class="", sample_rate_hz=raw["sample_rate_hz"], n_mels=raw["n_mels"], latent_scale=raw["latent_scale"],
        prediction_type="epsilon", parameters=raw["parameters"], size_bytes=4 * sum(raw["parameters"].values()), ranks_by_clap=False,
    )  # fmt: skip
    return facts, ModelSize(unet=raw["unet"], hop_length=raw["hop_length"], latent_channels=raw["latent_channels"])


def _cost(facts: ModelFacts, size: ModelSize, duration_s: float) -> UNetCost:
    high, wide = latent_size(facts, size, duration_s)
    return unet_cost(size.unet, height=high, width=wide)


def _suffices(facts: ModelFacts, size: ModelSize, config: FinetuneConfig, machine: Machine, clip_seconds: list[float]) -> bool:
    return _memory_fits(facts, size, config, machine) and not _disk_findings(disk_parts(facts, size, config, clip_seconds), machine)


def _memory_fits(facts: ModelFacts, size: ModelSize, config: FinetuneConfig, machine: Machine) -> bool:
    needed = sum(memory_parts(facts, size, config, machine.device).values())
    uncertainty = GPU_UNCERTAINTY if machine.device == "cuda" else UNCERTAINTY[COUNTED]
    return _verdict(needed, uncertainty, machine) == FITS


def _verdict(needed: int, uncertainty: float, machine: Machine) -> str:
    """Too large is what cannot be even if the estimate is too high; what other programs hold now may be free by then."""
    if needed * (1 - uncertainty) > machine.memory_bytes:
        return TOO_LARGE
    return FITS if needed * (1 + uncertainty) <= machine.free_bytes else TIGHT


def _memory_findings(verdict: str, needed: int, machine: Machine, parts: Mapping[str, int]) -> list[Finding]:
    where = f"{machine.name} has {gib(machine.memory_bytes)}, of which {gib(machine.free_bytes)} are free now"
    if verdict == TOO_LARGE:
        largest = max(parts, key=lambda part: parts[part])
        return [
            Finding(level=STOP, about="memory", can_force=True,
                    message=f"it needs about {gib(needed)} of memory, most of it for {largest} ({gib(parts[largest])}); {where}")
        ]  # fmt: skip
    if verdict == TIGHT:
        return [Finding(level=WARN, about="memory", message=f"it needs about {gib(needed)} of memory; {where}")]
    return []


def _disk_findings(parts: Mapping[str, int], machine: Machine) -> list[Finding]:
    needed = sum(parts.values())
    if needed + DISK_MARGIN_BYTES <= machine.disk_free_bytes:
        return []
    words = f"it will write about {gib(needed)} ({gib(parts['checkpoints'])} of checkpoints, {gib(parts['cache'])} of cache, {gib(parts['sounds'])} of sounds); {gib(machine.disk_free_bytes)} are free"
    return [Finding(level=STOP, about="disk", message=words, can_force=True)]


def _model_findings(facts: ModelFacts, config: FinetuneConfig, machine: Machine, rates_hz: list[int]) -> list[Finding]:
    found = []
    if not facts.can_finetune:
        found.append(Finding(level=STOP, about="model", message=facts.why_not or f"{facts.name} cannot be trained"))
    if config.mixed_precision in ("bf16", "fp16") and machine.device == "cpu":
        words = f"mixed_precision ({config.mixed_precision}) needs a GPU, and this machine trains on its processor: choose auto or no"
        found.append(Finding(level=STOP, about="precision", message=words))
    if is_non_commercial(facts.licence):
        found.append(Finding(level=NOTE, about="licence", message=f"the model's licence ({facts.licence}) forbids commercial use, of the result too"))
    lower = [rate for rate in rates_hz if rate < facts.sample_rate_hz]
    if lower:
        words = f"{len(lower)} of {len(rates_hz)} clips have fewer than the model's {facts.sample_rate_hz} samples a second: from them it learns nothing above {min(lower) // 2} Hz"
        found.append(Finding(level=WARN, about="rate", message=words))
    if rates_hz and max(rates_hz) > facts.sample_rate_hz:
        words = f"the model works at {facts.sample_rate_hz} Hz: what the clips hold above {facts.sample_rate_hz // 2} Hz is lost"
        found.append(Finding(level=NOTE, about="rate", message=words))
    return found


def gib(size_bytes: float) -> str:
    """`3.4 GB`, as the pages count: thousands."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"
