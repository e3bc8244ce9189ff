"""Says what happens without saying too much: progress at most twice a second, and always the last before anything else is said."""

from __future__ import annotations

import time
from typing import Any

from gpu.events import PROGRESS, WAITING, Event, EventWriter

INTERVAL_S = 0.5


class Announcer:
    """Writes a job's events, holding back what comes too fast.

    Args:
        events: where they go.
        interval_s: least time between two progress or waiting events.
    """

    def __init__(self, events: EventWriter, *, interval_s: float = INTERVAL_S) -> None:
        self.events = events
        self.interval_s = interval_s
        self._held_back: tuple[str, dict[str, Any]] | None = None
        self._said_at = -interval_s
        self._stage: str | None = None

    def say(self, type: str, /, **data: Any) -> Event:
        """Write an event at once, after the last progress that was held back. Waiting that was held back is over."""
        self.flush()
        self._stage = None
        return self.events.write(type, **data)

    def progress(self, **data: Any) -> None:
        self._say_or_hold(PROGRESS, data, new=self._stage is not None)
        self._stage = None

    def waiting(self, stage: str, *, done: int | None = None, total: int | None = None, message: str = "") -> None:
        """What is being done that is not training: loading, caching, sampling, saving. A new stage is said at once."""
        about = {"done": done, "total": total, "message": message}
        self._say_or_hold(
            WAITING, {"stage": stage, **{name: value for name, value in about.items() if value not in (None, "")}}, new=stage != self._stage
        )
        self._stage = stage

    def flush(self) -> None:
        """Write the progress that was held back."""
        if self._held_back:
            type, data = self._held_back
            self._held_back = None
            if type == PROGRESS:
                self.events.write(type, **data)

    def _say_or_hold(self, type: str, data: dict[str, Any], *, new: bool) -> None:
        now = time.monotonic()
        if new:
            self.flush()
        if new or now - self._said_at >= self.interval_s:
            self._held_back = None
            self.events.write(type, **data)
            self._said_at = now
        else:
            self._held_back = (type, data)
