"""Every parameter of a fine-tune and of a generation, each declared once: name, default, bounds, unit and plain words.

The form, the API, the command line's flags, the trainer and the documentation are generated from these classes or typed by them.
Names are diffusers' own. Defaults of the first seven are the ones that users of AudioLDM-training-finetuning know.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gpu.errors import Fault

CONFIG_FILE = "config.json"
MAX_SEED = 2**32 - 1
SAMPLERS = ("ddim", "dpmsolver++", "unipc")
MAX_PAIRS = 200


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One declared parameter as forms, flags and documentation see it."""

    name: str
    type: type
    default: Any
    label: str
    help: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    group: str = ""
    multiline: bool = False
    warn_above: float | None = None


def _param(default: Any, label: str, help: str, **about: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"label": label, "help": help, **about})
    return field(default=default, metadata={"label": label, "help": help, **about})


class Config:
    """What both configuration classes share: parsing, bounds, and a description of themselves."""

    @classmethod
    def parameters(cls) -> list[Parameter]:
        hints = typing.get_type_hints(cls)
        found = []
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[misc]
            kind = hints[item.name]
            found.append(Parameter(name=item.name, type=typing.get_origin(kind) or kind, default=default, **item.metadata))
        return found

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Build from untrusted values (strings from a form or flags, JSON numbers), with defaults for what is absent.

        Raises:
            ConfigError: every wrong value at once, each named with its limit.
        """
        errors: dict[str, str] = {}
        known = {parameter.name: parameter for parameter in cls.parameters()}
        for name in values.keys() - known.keys():
            errors[name] = f"{name} is not a parameter; known: {', '.join(known)}"
        parsed = {}
        for name, parameter in known.items():
            if name not in values:
                continue
            try:
                parsed[name] = _coerce(parameter, values[name])
            except ValueError as error:
                errors[name] = str(error)
        if errors:
            raise ConfigError(errors)
        config = cls(**parsed)
        errors = config.conflicts()
        if errors:
            raise ConfigError(errors)
        return config

    @classmethod
    def known(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values that are parameters here; a checkpoint recommends some for each kind of job."""
        names = {parameter.name for parameter in cls.parameters()}
        return {name: value for name, value in values.items() if name in names}

    def conflicts(self) -> dict[str, str]:
        """Values that are each fine but not together, by the name of the one to change."""
        return {}

    def warnings(self) -> dict[str, str]:
        """Values that are allowed and probably not meant."""
        return {
            parameter.name: f"{parameter.name} ({getattr(self, parameter.name)}) is above {parameter.warn_above:g}: {parameter.help}"
            for parameter in self.parameters()
            if parameter.warn_above is not None and getattr(self, parameter.name) > parameter.warn_above
        }

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema (2020-12) of this configuration."""
        names = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array"}
        properties = {}
        for parameter in cls.parameters():
            schema: dict[str, Any] = {"type": names[parameter.type], "title": parameter.label, "description": parameter.help,
                                      "default": parameter.default}
            if parameter.minimum is not None:
                schema["minimum"] = parameter.minimum
            if parameter.maximum is not None:
                schema["maximum"] = parameter.maximum
            if parameter.choices:
                schema["enum"] = list(parameter.choices)
            if parameter.type is list:
                schema["items"] = {"type": "string"}
            properties[parameter.name] = schema
        return {"type": "object", "properties": properties, "additionalProperties": False}


class ConfigError(Fault):
    """Wrong values, by parameter name."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("config.invalid", "; ".join(errors.values()))
        self.errors = errors


WHAT, LEARNING, SAVING, LISTENING, MACHINE = "What to train", "Learning", "Saving", "Validation and samples", "Machine"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Config):
    """How a model is fine-tuned."""

    seed: int = _param(0, "Seed", "The same seed, dataset and options give the same run.", minimum=0, maximum=MAX_SEED, group=WHAT)
    method: str = _param("lora", "Method", "LoRA trains a small addition (a file of a few MB, kind to small datasets); full trains every weight of the UNet.", choices=("lora", "full"), group=WHAT)
    lora_rank: int = _param(16, "LoRA rank", "Size of the addition: higher can learn more and forgets more.", minimum=1, maximum=256, group=WHAT)
    max_train_steps: int = _param(20_000, "Steps", "How many times the weights are updated in all.", unit="steps", minimum=1, maximum=10_000_000, group=WHAT)

    learning_rate: float = _param(1e-4, "Learning rate", "How far each step moves the weights. Too high ruins the model, too low learns nothing.", minimum=1e-9, maximum=1.0, warn_above=1e-2, group=LEARNING)
    lr_scheduler: str = _param("constant", "Schedule", "What the learning rate does after warm-up: stay, fall along a line or a cosine to zero, or fall whenever the validation loss stops falling (plateau).", choices=("constant", "linear", "cosine", "plateau"), group=LEARNING)
    lr_warmup_steps: int = _param(2_000, "Warm-up", "The learning rate grows from zero over this many steps.", unit="steps", minimum=0, maximum=1_000_000, group=LEARNING)
    plateau_patience: int = _param(2, "Plateau patience", "With the plateau schedule: validations without improvement before the learning rate falls.", unit="validations", minimum=0, maximum=1_000, group=LEARNING)
    plateau_factor: float = _param(0.5, "Plateau factor", "With the plateau schedule: the learning rate is multiplied by this.", minimum=0.01, maximum=0.99, group=LEARNING)
    train_batch_size: int = _param(2, "Batch size", "Sounds per step; more is steadier and needs more memory.", unit="clips", minimum=1, maximum=1_024, group=LEARNING)
    gradient_accumulation_steps: int = _param(1, "Accumulation", "Batches added up before each update: a larger batch in the same memory.", unit="batches", minimum=1, maximum=1_024, group=LEARNING)
    max_grad_norm: float = _param(1.0, "Gradient clipping", "Longest allowed gradient; 0 turns clipping off.", minimum=0.0, maximum=1e6, group=LEARNING)
    weight_decay: float = _param(0.01, "Weight decay", "Pulls weights towards zero a little at every step (AdamW).", minimum=0.0, maximum=1.0, group=LEARNING)
    snr_gamma: float = _param(0.0, "Min-SNR gamma", "Holds back the easy timesteps (5 is usual); 0 weighs all alike.", minimum=0.0, maximum=100.0, group=LEARNING)
    caption_dropout: float = _param(0.1, "Caption dropout", "Share of sounds trained without their caption, so that guidance keeps working.", minimum=0.0, maximum=1.0, group=LEARNING)
    audio_conditioning: float = _param(0.0, "Audio conditioning", "Share of sounds conditioned on their own CLAP audio embedding instead of their caption: for captions that say little. Only AudioLDM 1 models with their audio encoder; the original trained with 0.31.", minimum=0.0, maximum=1.0, group=LEARNING)
    use_ema: bool = _param(False, "EMA", "Also keep a moving average of the weights, and use that one for samples and the result.", group=LEARNING)
    ema_decay: float = _param(0.999, "EMA decay", "How slowly the average follows.", minimum=0.0, maximum=0.999999, group=LEARNING)

    checkpointing_steps: int = _param(5_000, "Save checkpoint every N steps", "Global steps between checkpoints; the file's name carries the global step.", unit="steps", minimum=1, maximum=10_000_000, group=SAVING)
    checkpoints_total_limit: int = _param(3, "Keep last", "The newest checkpoints that stay; the best, the last and pinned ones always stay.", unit="checkpoints", minimum=1, maximum=1_000, group=SAVING)

    validation_epochs: int = _param(5, "Validate every N epochs", "Epochs between validations: loss on held-out clips with fixed noise, and sounds for the fixed prompts.", unit="epochs", minimum=1, maximum=1_000_000, group=LISTENING)
    validation_prompts: list[str] = _param([], "Validation prompts", "One a line, heard at step 0, at every validation and at the end. Empty: captions of held-out clips.", multiline=True, group=LISTENING)
    guidance_scale: float = _param(3.5, "Guidance scale", "Lower is more creative, higher obeys the prompt more.", minimum=0.0, maximum=100.0, warn_above=15.0, group=LISTENING)
    num_inference_steps: int = _param(200, "Sampler steps", "Steps of the sampler: more is clearer, with little gain after about 50.", unit="steps", minimum=1, maximum=1_000, group=LISTENING)
    sampler: str = _param("ddim", "Sampler", "DDIM is the original; DPM-Solver++ and UniPC need about 20 steps for the same sound.", choices=SAMPLERS, group=LISTENING)
    num_waveforms_per_prompt: int = _param(3, "Candidates", "Sounds made per prompt and ranked by CLAP, best first.", unit="sounds", minimum=1, maximum=64, group=LISTENING)
    audio_length_in_s: float = _param(10.24, "Duration", "Length of the sounds trained on and made. Longer clips are cropped at random, shorter ones padded with silence.", unit="s", minimum=0.1, maximum=120.0, group=LISTENING)

    mixed_precision: str = _param("auto", "Precision", "auto takes bf16 where the GPU has it, else fp32. bf16 and fp16 need a GPU.", choices=("auto", "no", "bf16", "fp16"), group=MACHINE)
    gradient_checkpointing: bool = _param(False, "Gradient checkpointing", "Saves memory, costs about a third more time.", group=MACHINE)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.parse`; a warm-up that nobody chose shrinks to a tenth of a run that is shorter than its default."""
        if "lr_warmup_steps" not in values and "max_train_steps" in values:
            steps = super().parse({"max_train_steps": values["max_train_steps"], "lr_warmup_steps": 0}).max_train_steps
            values = {**values, "lr_warmup_steps": min(cls(max_train_steps=steps).lr_warmup_steps, steps // 10)}
        return super().parse(values)

    def conflicts(self) -> dict[str, str]:
        errors = {}
        if self.lr_warmup_steps >= self.max_train_steps:
            errors["lr_warmup_steps"] = f"lr_warmup_steps ({self.lr_warmup_steps}) must be less than max_train_steps ({self.max_train_steps})"
        return errors


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Config):
    """How a sound is made."""

    prompt: str = _param("", "Prompt", "What you want to hear, in plain English.", multiline=True)
    negative_prompt: str = _param("", "Negative prompt", "What you do not want to hear.")
    seed: int = _param(0, "Seed", "The same seed, prompt and checkpoint give the same sound.", minimum=0, maximum=MAX_SEED)
    num_inference_steps: int = _param(20, "Sampler steps", "20 to 25 for DPM-Solver++ and UniPC, 50 to 200 for DDIM; more changes little.", unit="steps", minimum=1, maximum=1_000)
    sampler: str = _param("dpmsolver++", "Sampler", "DPM-Solver++ and UniPC need about 20 steps for the same sound. DDIM with 200 is the original.", choices=SAMPLERS)
    guidance_scale: float = _param(3.5, "Guidance scale", "Lower is more creative, higher obeys the prompt more.", minimum=0.0, maximum=100.0, warn_above=15.0)
    audio_length_in_s: float = _param(10.24, "Duration", "Length of the sound.", unit="s", minimum=0.1, maximum=120.0)
    num_waveforms_per_prompt: int = _param(3, "Candidates", "Sounds made and ranked by CLAP, best first; all are kept.", unit="sounds", minimum=1, maximum=64)
    mixed_precision: str = _param("no", "Precision", "bf16 computes the UNet with half of the bits: faster where the GPU or processor has it, and another sound by a hair.", choices=("no", "bf16"))

    def conflicts(self) -> dict[str, str]:
        return {} if self.prompt.strip() else {"prompt": "prompt is empty: say what you want to hear"}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """How a checkpoint is evaluated. One sound is made per prompt: the best of several would flatter the CLAP score."""

    prompts: int = _param(50, "Sounds", "Made with each checkpoint, for captions of held-out clips in turn. More give narrower intervals.", unit="sounds", minimum=2, maximum=10_000)
    seed: int = _param(0, "Seed", "Of the sounds, of the choice of clips and of the intervals. The same seed gives the same report.", minimum=0, maximum=MAX_SEED)
    kernel: str = _param("gaussian", "Kernel", "Of the kernel audio distance: gaussian, its width the median distance of the real sounds, or polynomial.", choices=("gaussian", "polynomial"))
    num_inference_steps: int = _param(20, "Sampler steps", "20 to 25 for DPM-Solver++ and UniPC, 50 to 200 for DDIM; more changes little.", unit="steps", minimum=1, maximum=1_000)
    sampler: str = _param("dpmsolver++", "Sampler", "DPM-Solver++ and UniPC need about 20 steps for the same sound. DDIM with 200 is the original.", choices=SAMPLERS)
    guidance_scale: float = _param(3.5, "Guidance scale", "Lower is more creative, higher obeys the prompt more.", minimum=0.0, maximum=100.0, warn_above=15.0)
    audio_length_in_s: float = _param(10.24, "Duration", "Length of the sounds made, and of what is heard of each real one.", unit="s", minimum=0.1, maximum=120.0)


@dataclass(frozen=True, kw_only=True)
class ListenConfig(Config):
    """What a blind listening test lets people hear."""

    prompts: list[str] = _param([], "Prompts", "One a line; each gives one pair of sounds, with the same seed.", multiline=True)
    seed: int = _param(0, "Seed", "Of the first pair; the others follow from it.", minimum=0, maximum=MAX_SEED)
    num_inference_steps: int = _param(20, "Sampler steps", "20 to 25 for DPM-Solver++ and UniPC, 50 to 200 for DDIM; more changes little.", unit="steps", minimum=1, maximum=1_000)
    sampler: str = _param("dpmsolver++", "Sampler", "DPM-Solver++ and UniPC need about 20 steps for the same sound. DDIM with 200 is the original.", choices=SAMPLERS)
    guidance_scale: float = _param(3.5, "Guidance scale", "Lower is more creative, higher obeys the prompt more.", minimum=0.0, maximum=100.0, warn_above=15.0)
    audio_length_in_s: float = _param(10.24, "Duration", "Length of each sound.", unit="s", minimum=0.1, maximum=120.0)

    def conflicts(self) -> dict[str, str]:
        if not self.prompts:
            return {"prompts": "prompts is empty: write at least one, one a line"}
        if len(self.prompts) > MAX_PAIRS:
            return {"prompts": f"prompts has {len(self.prompts)} lines; at most {MAX_PAIRS} pairs can be compared in one test"}
        return {}


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"method": "lora", "lora_rank": 16, "max_train_steps": 300, "learning_rate": 3e-4, "lr_warmup_steps": 20, "train_batch_size": 4,
              "checkpointing_steps": 100, "num_waveforms_per_prompt": 1, "sampler": "dpmsolver++", "num_inference_steps": 20},
    "standard": {"method": "lora", "lora_rank": 32, "max_train_steps": 3_000, "learning_rate": 1e-4, "lr_warmup_steps": 100, "train_batch_size": 4,
                 "lr_scheduler": "plateau", "checkpointing_steps": 500, "num_waveforms_per_prompt": 1, "sampler": "dpmsolver++", "num_inference_steps": 25},
    "full": {"method": "full"},
}
"""Named starting points: quick try, standard, and full, the predecessor's own options with every weight of the UNet trained."""


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """Which weights a job starts from.

    Args:
        base: a diffusers folder.
        base_sha256: digest of that folder (`gpu.manifest.folder_digest`); "" skips the check.
        weights: a run's checkpoint folder whose UNet or LoRA lies on top of the base, or None.
    """

    base: str
    base_sha256: str = ""
    weights: str | None = None


def _readable(read: Callable[[type, Path], Any]) -> Callable[[type, Path], Any]:
    """What a config.json lacks, or has of another kind, is a fault of the file."""

    @functools.wraps(read)
    def checked(cls: type, folder: Path) -> Any:
        try:
            return read(cls, folder)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Fault("config.unreadable", f"{folder / CONFIG_FILE}: {type(error).__name__}: {str(error)[:200]}") from error

    return checked


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """The frozen `config.json` of a run's folder.

    Args:
        resume_from: checkpoint folder of another run whose full state this one continues from (a child run), or None.
        cache_dir: where latents and text embeddings are shared between runs.
    """

    config: FinetuneConfig
    model: ModelRef
    manifest_digest: str
    resume_from: str | None = None
    cache_dir: str | None = None

    def write(self, folder: Path) -> None:
        _write_json(folder / CONFIG_FILE, {"job": "finetune", **dataclasses.asdict(self)})

    @classmethod
    @_readable
    def read(cls, folder: Path) -> FinetuneJob:
        raw = _read_json(folder / CONFIG_FILE, job="finetune")
        return cls(**{**raw, "config": FinetuneConfig.parse(raw["config"]), "model": ModelRef(**raw["model"])})


@dataclass(frozen=True, kw_only=True)
class GenerateJob:
    """The frozen `config.json` of a generation's folder. `provenance` is written into every sound (licence, names, lineage)."""

    config: GenerateConfig
    model: ModelRef
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        _write_json(folder / CONFIG_FILE, {"job": "generate", **dataclasses.asdict(self)})

    @classmethod
    @_readable
    def read(cls, folder: Path) -> GenerateJob:
        raw = _read_json(folder / CONFIG_FILE, job="generate")
        return cls(**{**raw, "config": GenerateConfig.parse(raw["config"]), "model": ModelRef(**raw["model"])})


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """The frozen `config.json` of an evaluation's folder; `manifest.jsonl` beside it holds the real sounds.

    Args:
        subjects: whose sounds are made and compared, the checkpoint itself first.
        ears: folder with the CLAP that judges: a whole model's, or one saved by transformers.
        cache_dir: where embeddings of real sounds are kept.
    """

    config: EvaluateConfig
    subjects: list[EvaluateSubject]
    ears: str
    ears_name: str
    dataset: str
    manifest_digest: str
    cache_dir: str | None = None

    def write(self, folder: Path) -> None:
        _write_json(folder / CONFIG_FILE, {"job": "evaluate", **dataclasses.asdict(self)})

    @classmethod
    @_readable
    def read(cls, folder: Path) -> EvaluateJob:
        raw = _read_json(folder / CONFIG_FILE, job="evaluate")
        subjects = [EvaluateSubject(**{**subject, "model": ModelRef(**subject["model"])}) for subject in raw["subjects"]]
        return cls(**{**raw, "config": EvaluateConfig.parse(raw["config"]), "subjects": subjects})


@dataclass(frozen=True, kw_only=True)
class EvaluateSubject:
    """A checkpoint that an evaluation or a listening test makes sounds with. `key` names its folder and its place in the report."""

    key: str
    name: str
    model: ModelRef
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ListenJob:
    """The frozen `config.json` of a blind listening test's folder: the same prompts and seeds from two checkpoints."""

    config: ListenConfig
    subjects: list[EvaluateSubject]

    def write(self, folder: Path) -> None:
        _write_json(folder / CONFIG_FILE, {"job": "listen", **dataclasses.asdict(self)})

    @classmethod
    @_readable
    def read(cls, folder: Path) -> ListenJob:
        raw = _read_json(folder / CONFIG_FILE, job="listen")
        subjects = [EvaluateSubject(**{**subject, "model": ModelRef(**subject["model"])}) for subject in raw["subjects"]]
        return cls(**{**raw, "config": ListenConfig.parse(raw["config"]), "subjects": subjects})


@dataclass(frozen=True, kw_only=True)
class ConvertJob:
    """Bring a model from elsewhere into `destination`, a diffusers folder that does not exist yet.

    Args:
        source: a checkpoint file in an original layout, a diffusers folder, or `hub:OWNER/NAME[@REVISION]`.
        weights: which copy of the UNet a file's own sampler would take (`auto`), or `ema`, or `raw`.
        keep_original: also keep the tensors that no part of the model uses, without which the original layout cannot be written again.
        tokenizers: folder with the vocabularies that original files do not carry, or None for those at hand.
    """

    source: str
    destination: str
    name: str = ""
    weights: str = "auto"
    keep_original: bool = True
    tokenizers: str | None = None
    licence: str = ""

    def write(self, folder: Path) -> None:
        _write_json(folder / CONFIG_FILE, {"job": "convert", **dataclasses.asdict(self)})

    @classmethod
    @_readable
    def read(cls, folder: Path) -> ConvertJob:
        return cls(**_read_json(folder / CONFIG_FILE, job="convert"))


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """Write a checkpoint in the form that another tool reads.

    Args:
        format: `ckpt` (the original layout), `diffusers` (a folder), `safetensors` (the whole model in one fp16 file), `lora`.
        dtype: `fp32` or `fp16`.
        destination: the file or folder to write; must not exist yet.
        provenance: licence, names and lineage, written into the result.
    """

    model: ModelRef
    format: str
    destination: str
    dtype: str = "fp32"
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        _write_json(folder / CONFIG_FILE, {"job": "export", **dataclasses.asdict(self)})

    @classmethod
    @_readable
    def read(cls, folder: Path) -> ExportJob:
        raw = _read_json(folder / CONFIG_FILE, job="export")
        return cls(**{**raw, "model": ModelRef(**raw["model"])})


def plain(number: float) -> str:
    """A limit as people write it: 4294967295 and not 4.29497e+09."""
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def _coerce(parameter: Parameter, value: Any) -> Any:
    name = parameter.name
    try:
        parsed = _cast(parameter.type, value)
    except (ValueError, TypeError, OverflowError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", list: "a list of texts"}.get(parameter.type, "text")
        raise ValueError(f"{name} ({value!r}) must be {wanted}") from None
    if parameter.choices and parsed not in parameter.choices:
        raise ValueError(f"{name} ({parsed!r}) must be one of {', '.join(parameter.choices)}")
    if parameter.minimum is not None and parsed < parameter.minimum:
        raise ValueError(f"{name} ({parsed}) must be at least {plain(parameter.minimum)}")
    if parameter.maximum is not None and parsed > parameter.maximum:
        raise ValueError(f"{name} ({parsed}) must be at most {plain(parameter.maximum)}")
    return parsed


def _cast(kind: type, value: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        words = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False, "": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise ValueError
    if isinstance(value, bool):
        raise ValueError
    if kind is int:
        if isinstance(value, float):
            if not value.is_integer():
                raise ValueError
            return int(value)
        return int(value)
    if kind is float:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    if kind is list:
        lines = value.splitlines() if isinstance(value, str) else value
        if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
            raise ValueError
        return [line.strip() for line in lines if line.strip()]
    if not isinstance(value, str):
        raise ValueError
    return value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path, *, job: str) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Fault("config.unreadable", f"{path}: {str(error)[:200]}") from error
    found = raw.pop("job", None) if isinstance(raw, dict) else None
    if found != job:
        raise Fault("config.unreadable", f"{path} describes {str(found)[:100]!r}, not a {job} job")
    return raw
