"""What the machine computes on, asked from the driver: torch is never loaded for it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    memory_bytes: int
    free_bytes: int
    driver: str


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that the driver shows; none where there is no driver."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # absent package, absent driver, forbidden in the container
        return []
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            found.append(Gpu(name=_text(nvml.nvmlDeviceGetName(handle)), memory_bytes=memory.total, free_bytes=memory.free, driver=driver))
        return found
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def device() -> str:
    """What the workers of this machine compute on, in words."""
    found = gpus()
    if found:
        return ", ".join(gpu.name for gpu in found)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "Apple GPU"
    return f"CPU ({os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GB)"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
