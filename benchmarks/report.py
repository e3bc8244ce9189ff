"""How every benchmark tells its result: a table on the terminal, and JSON with the machine and the versions beside it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from gpu.device import choose_device, device_name, versions
from gpu.events import now
from gpu.manifest import digest_of, file_digests

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over several repetitions. CPU seconds count all threads and hardly change when others use the machine."""

    wall_s: float
    cpu_s: float
    repetitions: int

    @classmethod
    def of(cls, pairs: list[tuple[float, float]]) -> Timing:
        """From (wall, CPU) seconds of each repetition."""
        return cls(wall_s=median(wall for wall, _ in pairs), cpu_s=median(cpu for _, cpu in pairs), repetitions=len(pairs))


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """(wall, CPU) seconds of one call, the GPU's work included."""
    wall, cpu = clock()
    call()
    wall_after, cpu_after = clock()
    return wall_after - wall, cpu_after - cpu


def clock() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def weights_digest(model: Path) -> str:
    """SHA-256 of a model's weights and of their names, without its card, which tells what was measured of them."""
    return digest_of(file_digests(model, files=[path.relative_to(model) for path in model.rglob("*.safetensors")]))


def machine() -> dict[str, Any]:
    return {
        "device": device_name(choose_device()),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load": os.getloadavg()[0],
        "versions": versions(),
        "at": now(),
    }


def report(name: str, settings: dict[str, Any], rows: dict[str, Timing], ratios: dict[str, float]) -> None:
    """Print the table and add the result to `results/<name>.json`, in place of an earlier one with the same settings."""
    width = max(map(len, [*rows, *ratios]))
    print(f"{'':{width}}  {'wall s':>9}  {'cpu s':>9}  {'n':>4}")
    for label, timing in rows.items():
        print(f"{label:{width}}  {timing.wall_s:9.4f}  {timing.cpu_s:9.4f}  {timing.repetitions:4}")
    for label, ratio in ratios.items():
        print(f"{label:{width}}  {ratio:9.3f}")

    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text()) if path.is_file() else []
    result = {
        "settings": settings,
        "machine": machine(),
        "timings": {label: asdict(timing) for label, timing in rows.items()},
        "ratios": ratios,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([*(other for other in earlier if other["settings"] != settings), result], indent=1) + "\n")
