"""The learning rate of each step."""

from __future__ import annotations

import math

from gpu.config import FinetuneConfig

THRESHOLD = 1e-4
"""A validation loss counts as better when it is lower by this share (torch's ReduceLROnPlateau has the same)."""


def learning_rate(step: int, config: FinetuneConfig, *, plateau_scale: float = 1.0) -> float:
    """The learning rate of the update that leads to global step `step` (from 1).

    It grows to `learning_rate` within `lr_warmup_steps`, then follows `lr_scheduler`; line and cosine reach zero after the last.
    """
    if step <= config.lr_warmup_steps:
        return config.learning_rate * step / config.lr_warmup_steps
    progress = (step - 1 - config.lr_warmup_steps) / (config.max_train_steps - config.lr_warmup_steps)
    shape = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": (1.0 + math.cos(math.pi * progress)) / 2,
        "plateau": plateau_scale,
    }
    return config.learning_rate * shape[config.lr_scheduler]


class Plateau:
    """Lowers the learning rate whenever the validation loss has stopped falling.

    The fixed-noise loss is noisy only in what the weights do to it, so a validation without improvement means something.
    """

    def __init__(self, *, patience: int, factor: float) -> None:
        self.patience = patience
        self.factor = factor
        self.scale = 1.0
        self.best = math.inf
        self.bad = 0

    def update(self, loss: float) -> None:
        """Take the loss of a validation into account."""
        if loss < self.best * (1 - THRESHOLD):
            self.best, self.bad = loss, 0
            return
        self.bad += 1
        if self.bad > self.patience:
            self.scale *= self.factor
            self.bad = 0

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "best": self.best, "bad": self.bad}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale, self.best, self.bad = state["scale"], state["best"], int(state["bad"])
