"""Whether a run will fit, asked before it is made: the model's and the dataset's facts and this machine's, never torch.

`gpu.preflight` does the counting. An earlier run of the same kind on this machine knows better, and is asked first.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from django.db.models import BigIntegerField, Max
from django.db.models.fields.json import KT
from django.db.models.functions import Cast

from audioldm_site import hardware
from audioldm_site.templatetags.studio import duration, step_time
from datasets_app.models import Dataset
from gpu.config import FinetuneConfig
from gpu.errors import Fault
from gpu.events import PROGRESS, STARTED, WAITING
from gpu.models import describe
from gpu.preflight import Earlier, Estimate, Machine, ModelSize, estimate, gib, in_words
from training_app import storage
from training_app.models import Checkpoint, TrainingEvent, TrainingRun

log = logging.getLogger(__name__)

SAME_KIND = (
    "method", "lora_rank", "train_batch_size", "gradient_accumulation_steps", "audio_length_in_s", "gradient_checkpointing", "use_ema",
    "mixed_precision",
)  # fmt: skip
"""Runs that agree in these on the same model need the same memory and the same time for a step."""
NEAR_KIND = ("method", "mixed_precision")
"""Runs that agree in these tell how fast this machine is with the model; the rest is a matter of counting."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
RUNS_ASKED = 5


def check(*, dataset: Dataset, checkpoint: Checkpoint, config: FinetuneConfig) -> Estimate | None:
    """What the run would need here; None where the model's files cannot be read, which whoever opens them says better."""
    try:
        base = storage.root_model(checkpoint).folder
        facts, size = describe(base), ModelSize.read(base)
    except Fault as fault:
        log.info("no estimate for %s: %s", checkpoint, fault.message)
        return None
    clips = list(dataset.clips.usable().values_list("duration_s", "sample_rate_hz"))
    here = machine()
    return estimate(
        facts,
        size,
        config,
        here,
        clip_seconds=[seconds for seconds, _ in clips],
        clip_rates_hz=[rate for _, rate in clips],
        earlier=earlier_run(checkpoint, config, here),
    )


def require(*, dataset: Dataset, checkpoint: Checkpoint, config: FinetuneConfig, force: bool = False) -> None:
    """Let a run pass that can do its work here.

    Args:
        force: also one that memory or disk seem too small for. What is impossible, and not only large, stays refused.
    Raises:
        Fault: `preflight.refused`, with every reason and what would fit.
    """
    found = check(dataset=dataset, checkpoint=checkpoint, config=config)
    stops = [finding for finding in found.stops if not (force and finding.can_force)] if found else []
    if stops:
        advice = f"; this would fit: {in_words(found.suggestion)}" if found.suggestion else ""
        raise Fault("preflight.refused", "; ".join(finding.message for finding in stops) + advice)


def shown(found: Estimate | None, *, forced: bool = False) -> dict[str, Any]:
    """What templates/training/_estimate.html shows."""
    if found is None:
        return {"unchecked": "The model's files cannot be read, so nothing can be said about it."}
    return {
        "estimate": found,
        "suggestion": in_words(found.suggestion),
        "suggested": json.dumps(found.suggestion),
        "can_force": bool(found.stops) and all(finding.can_force for finding in found.stops),
        "forced": forced,
    }


def in_one_line(found: Estimate | None) -> str:
    """For the terminal: memory, time and disk, each with what it rests on."""
    if found is None:
        return "no estimate: the model's files cannot be read"
    here = found.machine
    time = "time unknown until the first run on this device"
    if found.step_s is not None and found.total_s is not None:
        time = f"{step_time(found.step_s)} a step, {duration(found.total_s)} in all ({found.time_basis})"
    return (
        f"memory {found.verdict}: about {gib(found.memory_bytes)} of {gib(here.memory_bytes)} on {here.name} ({found.memory_basis}); "
        f"{time}; disk {gib(found.disk_bytes)} of {gib(here.disk_free_bytes)} free"
    )


def of_run(run: TrainingRun) -> str:
    """The estimate of a run that was just made, in one line."""
    if not run.dataset or not run.base_checkpoint:
        return in_one_line(None)
    return in_one_line(check(dataset=run.dataset, checkpoint=run.base_checkpoint, config=FinetuneConfig.parse(run.config)))


def measured(run: TrainingRun) -> dict[str, Any] | None:
    """What the run's own step before the first took: `memory_bytes` and `step_s`; None before it was made."""
    event = TrainingEvent.objects.filter(job=run, type=WAITING, data__stage="preflight", data__has_key="step_s").order_by("-seq").first()
    return event.data if event else None


def machine() -> Machine:
    """What a run would find here: the first GPU, else the processor and its memory."""
    disk_free = shutil.disk_usage(settings.DATA_DIR).free
    cores = _threads()
    if gpus := hardware.gpus():
        gpu = gpus[0]
        return Machine(
            device="cuda", name=gpu.name, memory_bytes=gpu.memory_bytes, free_bytes=gpu.free_bytes, disk_free_bytes=disk_free, cores=cores
        )
    memory = psutil.virtual_memory()
    limit = _container_limit()
    total = min(memory.total, limit) if limit else memory.total
    return Machine(
        device="cpu",
        name=_processor(),
        memory_bytes=total,
        free_bytes=min(memory.available, total),
        disk_free_bytes=disk_free,
        cores=cores,
    )


def earlier_run(checkpoint: Checkpoint, config: FinetuneConfig, here: Machine) -> Earlier | None:
    """What the newest run of this kind on this model and this machine needed; else what another of its method did; else None."""
    root = storage.root_model(checkpoint)
    runs = TrainingRun.objects.filter(base_checkpoint__sha256=root.sha256, started_at__isnull=False).order_by("-started_at")
    values = config.to_dict()
    same = {f"config__{name}": values[name] for name in SAME_KIND}
    near = {f"config__{name}": values[name] for name in NEAR_KIND}
    for run in runs.filter(**same)[:RUNS_ASKED]:
        if found := _needed(run, here):
            return found
    for run in runs.filter(**near)[:RUNS_ASKED]:
        if found := _needed(run, here):
            return replace(found, config=FinetuneConfig.parse(FinetuneConfig.known(run.config)))
    return None


def _needed(run: TrainingRun, here: Machine) -> Earlier | None:
    """What a run took on this machine: its steps, or the one before the first; None where it ran elsewhere or never came so far."""
    events = TrainingEvent.objects.filter(job=run)
    rehearsed = measured(run) or {}
    started = events.filter(type=STARTED).order_by("-seq").first()
    device = str(started.data.get("device", "") if started else rehearsed.get("device", ""))
    if not device.startswith(here.name):
        return None
    key = "data__gpu_memory_bytes" if here.device == "cuda" else "data__memory_bytes"
    memory = events.filter(type=PROGRESS).aggregate(most=Max(Cast(KT(key), BigIntegerField())))["most"]
    latest = events.filter(type=PROGRESS).order_by("-seq").first()
    speed = latest.data.get("clips_per_second") if latest else None
    clips = run.config["train_batch_size"] * run.config["gradient_accumulation_steps"]
    step_s = clips / speed if speed else rehearsed.get("step_s")
    # Saving and the making of sounds may need more than the step before the first did: its memory alone would promise too much.
    return Earlier(memory_bytes=memory, step_s=step_s) if memory or step_s else None


def _threads() -> int:
    """Threads that the trainer will compute with."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else len(os.sched_getaffinity(0))


def _container_limit() -> int | None:
    """Bytes that the container may have, where it is limited to fewer than there are."""
    for path in CGROUP_LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def _processor() -> str:
    """The processor's name as `gpu.device.device_name` begins with."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return hardware.device()
