"""What reaches a run from outside: files in `control/`, signals, and the death of whoever started it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAVE, NOW = "save", "now"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SUPERVISED = "JOB_ID"
"""A worker sets it for its children; only they end with their parent. A run from a terminal may outlive it (nohup)."""


class Control:
    """Asked before every micro-step and every sampler step.

    Files and signals, not exceptions: Lightning answers SIGTERM with one in the middle of a step. Both signals mean `stop` with
    a checkpoint, and so does a lost parent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "control"
        self._parent = os.getppid()
        self._supervised = SUPERVISED in os.environ
        self._signalled = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it SIGTERM and SIGINT ask to stop."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals again: Lightning's fit() installs handlers of its own when it starts."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @property
    def orphaned(self) -> bool:
        return self._supervised and os.getppid() != self._parent

    def stop(self) -> str | None:
        """`save`, `now`, or None."""
        try:
            text = (self.folder / "stop").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return SAVE if self._signalled or self.orphaned else None
        return NOW if text == NOW else SAVE

    def wants(self, request: str) -> bool:
        """Whether `save` or `sample` is asked for."""
        return (self.folder / request).exists()

    def obeyed(self, request: str) -> None:
        (self.folder / request).unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._signalled and number == signal.SIGINT:
            # Asked twice at the keyboard: the user does not want to wait.
            sys.exit(128 + number)
        self._signalled = True
