"""Everything that depends on the machine: which device, which precision, how much memory, and what its failures mean."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import traceback
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import psutil
import torch

from gpu.config import FinetuneConfig
from gpu.errors import Fault

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PACKAGES = ("torch", "diffusers", "transformers", "pytorch-lightning", "peft", "safetensors")
# Places of latent pictures (per CFG half) that go through the UNet together: 8 candidates of 10.24 s of the published models.
PLACES_AT_ONCE = 8 * 256 * 16
# And on a processor: 4 sounds of the starter, one of the published models.
PLACES_AT_ONCE_ON_A_PROCESSOR = 4 * 28 * 10


def choose_device() -> torch.device:
    """The first GPU, else the processor."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def prepare_device(device: torch.device) -> None:
    """Settle what would otherwise differ from call to call: the same seed must give the same sound."""
    if device.type == "cuda":
        # cuBLAS reads it at its first use; without it some sums are taken in the order that threads finish.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.set_float32_matmul_precision("high")
    else:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # It would also fill every new tensor before it is written to: a search for other people's bugs.
        torch.utils.deterministic.fill_uninitialized_memory = False


def training_precision(mixed_precision: str, device: torch.device) -> str:
    """Lightning's word for `mixed_precision` (auto, no, bf16, fp16) on this device.

    Raises:
        Fault: `config.precision_needs_gpu`.
    """
    if mixed_precision in ("bf16", "fp16"):
        if device.type != "cuda":
            raise Fault(
                "config.precision_needs_gpu",
                f"mixed_precision ({mixed_precision}) needs a GPU, this machine trains on {device.type}: choose auto or no",
            )
        return f"{mixed_precision.replace('fp16', '16')}-mixed"
    if mixed_precision == "auto" and device.type == "cuda" and has_bf16(device):
        return "bf16-mixed"
    return "32-true"


def require_precision(config: FinetuneConfig, device: torch.device) -> str:
    """Lightning's word for the precision that a run asks for on this device; to be asked before anything is loaded.

    Raises:
        Fault: `config.precision_needs_gpu`, the device has no such arithmetic.
    """
    if config.mixed_precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise Fault(
            "config.precision_needs_gpu",
            f"mixed_precision (bf16) needs a GPU with bf16 arithmetic, which {torch.cuda.get_device_name(device)} lacks: "
            "choose auto, fp16 or no",
        )
    return training_precision(config.mixed_precision, device)


def sampling_precision(mixed_precision: str, device: torch.device) -> str:
    """Lightning's word for the precision (no, bf16) in which a UNet samples on this device.

    Raises:
        Fault: `config.precision_needs_gpu`, the device has no such arithmetic: it would be imitated, many times slower.
    """
    if mixed_precision != "bf16":
        return "32-true"
    if not has_bf16(device):
        raise Fault(
            "config.precision_needs_gpu",
            f"mixed_precision (bf16) needs bf16 arithmetic, which {device_name(device)} lacks: choose no",
        )
    return "bf16-mixed"


def has_bf16(device: torch.device) -> bool:
    """Whether the device itself computes in bf16: GPUs since 2020, processors with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within it torch computes in `precision`, Lightning's word; in single precision nothing changes."""
    return torch.autocast(device.type, dtype=AUTOCAST[precision]) if precision in AUTOCAST else contextlib.nullcontext()


def precision_words(precision: str) -> str:
    """Lightning's word as people say it."""
    return {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}.get(precision, precision)


def candidates_at_once(num_places: int, device: torch.device) -> int:
    """How many candidates go through the UNet together.

    It depends on the shape alone, never on what memory happens to be free: another batch size rounds differently. On a processor
    the published sizes gain nothing from a batch (their time is linear in it); a small model's calls cost more than its arithmetic, and
    three of the starter's sounds take two thirds of the time together.

    Args:
        num_places: H * W of one candidate. How many channels lie at each matters to the first and the last layer alone.
    """
    return max(1, (PLACES_AT_ONCE if device.type == "cuda" else PLACES_AT_ONCE_ON_A_PROCESSOR) // num_places)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """What a sound or a run was made with."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def usage(device: torch.device) -> dict[str, float]:
    """What a progress event says of the machine; what cannot be known is absent."""
    facts: dict[str, float] = {"memory_bytes": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        facts["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        facts.update(_nvml_usage(device.index or 0))
    return facts


def fault_of(error: BaseException) -> Fault:
    """What an exception means to the user: memory, disk, or a mistake of ours (`internal`)."""
    if isinstance(error, Fault):
        return error
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        return Fault("memory.exhausted", f"out of memory: {text.splitlines()[0] if text else type(error).__name__}", operator=True)
    for cause in _causes(error):
        # safetensors and torch tell of a full disk in types of their own.
        if (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left on device" in str(cause):
            return Fault(
                "disk.full", f"no space left on the disk of {getattr(cause, 'filename', None) or 'the data folder'}", operator=True
            )
    return Fault("internal", traceback.format_exception_only(error)[-1].strip(), operator=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@lru_cache
def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@lru_cache
def _nvml() -> Any:
    """The driver's monitoring library, or None where it is not to be had."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # absent package, absent driver, forbidden in the container: a figure less, not a failure
        return None
    return pynvml


def _nvml_usage(index: int) -> dict[str, float]:
    nvml = _nvml()
    if nvml is None:
        return {}
    try:
        # By UUID: CUDA_VISIBLE_DEVICES renumbers the devices for torch, but not for the driver.
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        return {
            "gpu_utilization": nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
    except nvml.NVMLError:
        return {}
