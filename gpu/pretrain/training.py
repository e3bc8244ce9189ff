"""What every stage's loop shares: numbered steps that go on after a stop, and saying how it goes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 60.0
REPORT_EVERY_S = 2.0
CPU = torch.device("cpu")
Announce = Callable[..., None]
"""Told `stage, step, max_steps`, with `loss` from a stage that trains, without from one that prepares. May raise to end the run."""


class Training:
    """The steps of one stage.

    Each step begins by seeding torch from the recipe's seed and the step's number, so whatever is random in it is the same
    in a run that was stopped and continued as in one that was not.

    Args:
        path: where the state is kept; when the file is there, the stage goes on from it.
        keep: whether to write there; of several processes only one does.
        parts: what is trained and must be restored: modules and optimisers by name.
        batch_size: examples of a step.
        announce: told `stage, step, max_steps, loss, ...` now and then.
        obey: called between two steps, with this; may save, make sounds of what is learned so far, or raise to end the run.
    """

    def __init__(
        self, path: Path, *, parts: Mapping[str, Any], max_steps: int, batch_size: int, seed: int, announce: Announce, obey: Obey | None,
        keep: bool = True,
    ) -> None:  # fmt: skip
        self.path = path
        self.parts = parts
        self.keep = keep
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.seed = seed
        self.announce = announce
        self.obey = obey
        self.step = self.saved_step = 0
        self.seconds = 0.0
        self._average = math.nan
        self._reported_at = 0.0
        self._pace: tuple[int, float] | None = None
        if path.exists():
            self._load()

    def steps(self) -> Iterator[int]:
        """The numbers of the remaining steps, from 0; the state is saved every minute and at the end."""
        begun_at = saved_at = time.monotonic()
        before_s = self.seconds
        self._pace = (self.step, begun_at)
        while self.step < self.max_steps:
            torch.manual_seed(self.seed * 1_000_003 + self.step)
            yield self.step
            self.step += 1
            self.seconds = before_s + time.monotonic() - begun_at
            if self.keep and (time.monotonic() - saved_at > SAVE_EVERY_S or self.step == self.max_steps):
                self.save()
                saved_at = time.monotonic()
            if self.obey:
                self.obey(self)

    def report(self, loss: torch.Tensor, **more: float) -> None:
        """Announce the loss and its running mean, every few seconds and at the last step."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"{self.path.stem}: the loss is {value} at step {self.step + 1}")
        self._average = value if math.isnan(self._average) else 0.98 * self._average + 0.02 * value
        is_last = self.step + 1 == self.max_steps
        if is_last or time.monotonic() - self._reported_at > REPORT_EVERY_S:
            self._reported_at = time.monotonic()
            self.announce(
                stage=self.path.stem, step=self.step + 1, max_steps=self.max_steps,
                loss=round(value, 4), loss_smooth=round(self._average, 4), learning_rate=self.parts["optimizer"].param_groups[0]["lr"],
                minutes=round(self.seconds / 60, 1), **self._speed(), **more,
            )  # fmt: skip

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        temporary = self.path.with_suffix(".tmp")
        torch.save({"step": self.step, "seconds": self.seconds, "parts": state}, temporary)
        temporary.replace(self.path)
        self.saved_step = self.step

    def _speed(self) -> dict[str, float]:
        """Of this process in this stage; the step that is being reported counts."""
        first, since = self._pace or (self.step, time.monotonic())
        step_s = (time.monotonic() - since) / (self.step + 1 - first)
        return {
            "clips_per_second": round(self.batch_size / max(step_s, 1e-6), 2),
            "seconds_left": round(step_s * (self.max_steps - self.step - 1), 1),
        }

    def _load(self) -> None:
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(saved["parts"][name])
        self.step = self.saved_step = saved["step"]
        self.seconds = saved["seconds"]
        logger.info("%s: going on after step %d", self.path.stem, self.step)


Obey = Callable[[Training], None]


def saved_step(path: Path) -> int:
    """The step that a stage will go on after; 0 when it has not begun. Of its state only the number is read."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"] if path.exists() else 0


class Ema:
    """A running mean of weights, which samples better than the weights themselves (Ho et al. 2020, appendix B).

    Young means follow faster: the decay at step n is at most (1 + n) / (10 + n).
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.weights

    def load_state_dict(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = {name: value.to(self.weights[name].device) for name, value in weights.items()}


def cosine(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """The share of the learning rate at `step`: up over the warm-up, down to nothing by half a cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup_steps) / max(max_steps - warmup_steps, 1))


def trapezoid(step: int, *, warmup_steps: int, decay_steps: int, max_steps: int) -> float:
    """The share of the learning rate at `step`: up, level, and down in a straight line over the last `decay_steps`."""
    return min(1.0, (step + 1) / max(warmup_steps, 1), (max_steps - step) / max(decay_steps, 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
