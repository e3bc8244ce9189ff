"""One step before the first that changes nothing: what does not fit into memory says so in the first minute, and not after hours.

The step is a real one: the largest batch, forward, backward and the optimizer's update. Its moments stay until the sounds at
step 0 have been made, so that those prove what later ones need too. Weights, gradients and random numbers are then as if it had
never been.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from torch import Tensor

from gpu.announcer import Announcer
from gpu.config import FinetuneConfig
from gpu.device import autocast, device_name, fault_of
from gpu.errors import Fault
from gpu.events import WAITING
from gpu.finetune.data import Batch, TrainingBatches
from gpu.finetune.module import Denoiser
from gpu.pipelines import collate
from gpu.preflight import gib, in_words, less

STAGE = "preflight"


class DryRun(pl.Callback):
    """Holds what a first update would leave in memory until training begins. It stands after the callback that makes sounds."""

    def __init__(self) -> None:
        self.moments: list[Tensor] = []

    def rehearse(self, module: Denoiser, batches: TrainingBatches, announcer: Announcer, *, precision: str) -> None:
        """Make one step and say what it took, as a `waiting` event of stage `preflight` with `memory_bytes` and `step_s`.

        Raises:
            Fault: `memory.exhausted`, with the next smaller options in words.
        """
        announcer.waiting(STAGE, message="one step to see whether it fits")
        with offering_less(module.config), peak_memory(module.device) as peak:
            began = time.monotonic()
            self.moments = dry_step(module, largest_batch(batches).to(module.device), precision=precision)
            if module.device.type == "cuda":
                torch.cuda.synchronize()
            step_s = time.monotonic() - began
        words = f"a step fits: {gib(peak['bytes'])} of memory, {step_s:.2g} s"
        announcer.say(
            WAITING, stage=STAGE, message=words, memory_bytes=peak["bytes"], step_s=round(step_s, 4), device=device_name(module.device)
        )

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.moments.clear()


def dry_step(module: Denoiser, batch: Batch, *, precision: str) -> list[Tensor]:
    """A whole step that leaves weights, gradients, losses and random numbers as they were; returns the optimizer's moments."""
    devices = [module.device] if module.device.type == "cuda" else []
    weights = list(module.trained().values())
    moments: list[Tensor] = []
    with torch.random.fork_rng(devices=devices):
        try:
            with autocast(precision, module.device):
                loss = module.training_step(batch, 0)
            loss.backward()
            for weight in weights:
                moments.extend(_update_and_undo(weight))
        finally:
            module._losses.clear()
            for weight in weights:
                weight.grad = None
    return moments


def largest_batch(batches: TrainingBatches) -> Batch:
    """The first batch, each sound with the longest text of the run: every other batch needs as much memory or less."""
    batch = batches.batch(batches.start)
    captions = {clip.caption for clip in batches.clips.train}
    longest = max((batches.clips.embeds(caption) for caption in sorted(captions)), key=_length)
    return Batch(
        latents=batch.latents,
        noise=batch.noise,
        timesteps=batch.timesteps,
        embeds=collate([longest] * len(batch.latents)),
        captions=batch.captions,
    )


@contextlib.contextmanager
def offering_less(config: FinetuneConfig) -> Iterator[None]:
    """Within it running out of memory becomes the fault that names the next smaller options.

    Raises:
        Fault: `memory.exhausted`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        fault = fault_of(error)
        if fault.code != "memory.exhausted":
            raise
        values = less(config)
        advice = f"; this needs less: {in_words(values)}" if values else "; a smaller model is what is left to try"
        raise Fault(fault.code, f"{fault.message}{advice}", operator=fault.operator) from error


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """Afterwards `bytes` is the most that was held within: of the GPU, else of this process (files that it maps included)."""
    found = {"bytes": 0}
    on_gpu = device.type == "cuda"
    # 5: the kernel begins the peak anew (proc(5)); where it cannot, the memory at the end has to do.
    anew = not on_gpu and _write("/proc/self/clear_refs", "5")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if on_gpu:
        found["bytes"] = torch.cuda.max_memory_allocated(device)
    else:
        found["bytes"] = (_peak_resident() if anew else None) or psutil.Process().memory_info().rss


def _update_and_undo(weight: torch.nn.Parameter) -> list[Tensor]:
    """One weight's AdamW update, and its bits back: at most one weight is there twice. (A learning rate of 0 would turn -0 into 0.)"""
    kept = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=0.0)
    optimizer.step()
    with torch.no_grad():
        weight.copy_(kept)
    weight.grad = None
    return [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]


def _length(embeds: Any) -> int:
    mask = getattr(embeds, "attention_mask", None)
    return 0 if mask is None else mask.shape[1]


def _write(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError:
        return False
    return True


def _peak_resident() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
