"""A job in a terminal: its events as a progress bar, whoever executes it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from django.db import connection
from tqdm import tqdm

from audioldm_site.jobs.models import Job
from gpu.events import CHECKPOINT, FAILED, PROGRESS, SAMPLE, STARTED, VALIDATED, WAITING, WAVEFORM, Event, EventTail

POLL_S = 0.2


def execute_here(job: Job, work: Callable[[], None], *, on_interrupt: Callable[[], Any]) -> None:
    """Run `work` (which executes the claimed job) and show the job's progress until it has ended.

    Ctrl-C calls `on_interrupt` and goes on waiting for the end.
    """

    def target() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=target, name=f"execute-{job.pk}")
    thread.start()
    follow(job, until=lambda: not thread.is_alive(), on_interrupt=on_interrupt)
    thread.join()
    job.refresh_from_db()


def follow(job: Job, *, until: Callable[[], bool], on_interrupt: Callable[[], Any] | None = None) -> None:
    """Show the events of a job as they come, until `until()` holds and everything has been shown."""
    with Screen(counts_bytes=job.kind == "conversion") as screen:
        tail = EventTail(job.folder)
        while True:
            try:
                ended = until()
                for event in tail.read():
                    screen.show(event)
                if ended:
                    return
                time.sleep(POLL_S)
            except KeyboardInterrupt:
                if on_interrupt is None:
                    raise
                screen.say("stopping (this takes a moment)" if screen.counts_bytes else "stopping: what was learned is being saved (this takes a moment)")
                on_interrupt()


class Screen:
    """Draws events on stderr: one bar for what runs now, a line for what has happened.

    Args:
        counts_bytes: whether what is done is counted in bytes.
    """

    def __init__(self, *, counts_bytes: bool = False) -> None:
        self.counts_bytes = counts_bytes
        self._bar: tqdm | None = None
        self._stage = ""
        self._message: str | None = None

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close_bar()

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def show(self, event: Event) -> None:
        data = event.data
        if event.type == STARTED:
            resumed = f", resumed from step {data['step']}" if data.get("step") else ""
            self.say(f"started on {data['device']}{resumed}" if data.get("device") else f"reading {data.get('source') or '…'}")
        elif event.type == WAITING:
            self._advance(data.get("stage", ""), data.get("done"), data.get("total"))
            if data.get("message") and data["message"] != self._message:
                bare = data.get("stage") == "loading" and " " not in data["message"]
                self.say(f"loading {data['message']}" if bare else data["message"])
            self._message = data.get("message")
        elif event.type == PROGRESS:
            # A pretraining counts its stages one by one.
            self._advance(data.get("stage", "step"), data.get("stage_step", data["step"]), data.get("stage_max_steps", data["max_steps"]))
            if self._bar is not None and data.get("loss") is not None:
                self._bar.set_postfix(loss=f"{data.get('loss_smooth', data['loss']):.4f}", clips_s=f"{data.get('clips_per_second') or 0:.1f}")
        elif event.type == VALIDATED:
            loss = "no held-out clips" if data.get("loss") is None else f"loss {data['loss']:.4f}"
            if "held_out_error" in data:
                loss = f"{data['stage']}: error {data['held_out_error']:.4f} on held-out recordings"
            self.say(f"step {data['step']}: validation {loss}{' (best so far)' if data.get('best') else ''}")
        elif event.type == SAMPLE:
            self.say(f"step {data['step']}: sound for “{data['prompt']}”{_score(data)}: {data['audio']}")
        elif event.type == WAVEFORM:
            self.say(f"sound {data['index']}{_score(data)}: {data['audio']}")
        elif event.type == CHECKPOINT:
            self.say(f"step {data['step']}: checkpoint saved ({data['size_bytes'] / 2**20:.1f} MB)")
        elif event.type == FAILED:
            self.say(f"failed: {data.get('detail')}")

    def _advance(self, stage: str, done: int | None, total: int | None) -> None:
        if stage != self._stage:
            self._close_bar()
            self._stage = stage
            unit = {"unit": "B", "unit_scale": True} if self.counts_bytes else {}
            self._bar = tqdm(total=total, desc=stage, file=sys.stderr, dynamic_ncols=True, leave=stage == "step", **unit)
        if self._bar is not None and done is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""


def _score(data: dict[str, Any]) -> str:
    return "" if data.get("clap_score") is None else f", CLAP score {data['clap_score']:.3f}"
