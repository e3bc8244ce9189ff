"""What a job says: numbered events, one JSON object a line, appended to `events.jsonl`.

The file is the truth; database rows and what a browser shows are copies. Numbers start at 1 and have no holes. One process writes at
a time: the trainer while it lives, else its supervisor.

    {"v":1,"seq":42,"attempt":1,"type":"progress","at":"2026-11-22T13:00:00.000+00:00","data":{"step":420,"loss":0.131}}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu.errors import Fault

FORMAT_VERSION = 1
EVENTS_FILE = "events.jsonl"

STARTED, WAITING, PROGRESS, VALIDATED = "started", "waiting", "progress", "validated"
CHECKPOINT, SAMPLE, WAVEFORM = "checkpoint", "sample", "waveform"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
ENDINGS = frozenset({FINISHED, STOPPED, FAILED})
TYPES = frozenset({STARTED, WAITING, PROGRESS, VALIDATED, CHECKPOINT, SAMPLE, WAVEFORM}) | ENDINGS


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that a job said. `data` holds plain JSON values; NaN and infinity are written as null, what is no text as U+FFFD or `?`."""

    seq: int
    attempt: int
    type: str
    at: str
    data: dict[str, Any] = field(default_factory=dict)
    v: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(_plain(asdict(self)), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> Event:
        """Raises ValueError when the line is not a whole event."""
        try:
            raw = json.loads(line)
            event = cls(seq=raw["seq"], attempt=raw["attempt"], type=raw["type"], at=raw["at"], data=raw["data"], v=raw["v"])
            datetime.fromisoformat(event.at)
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not an event: {line[:200]!r}") from error
        if not (event.seq and _counts(event.seq) and _counts(event.attempt) and isinstance(event.type, str) and event.type in TYPES and isinstance(event.data, dict)):
            raise ValueError(f"not an event: {line[:200]!r}")
        return event


class EventWriter:
    """Appends events to a job's file and numbers them.

    A line that a killed writer left unfinished is cut off first; numbering goes on from the last whole event.

    Args:
        folder: the job's folder; the file is made when missing.
        attempt: which attempt at the job this process is, from 1.
    Raises:
        OSError: the disk is full or gone. Nothing is announced that is not written.
    """

    def __init__(self, folder: Path, *, attempt: int = 1) -> None:
        self.path = folder / EVENTS_FILE
        self.attempt = attempt
        self.seq = _mend(self.path)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (open for the writer's life)

    def write(self, type: str, /, **data: Any) -> Event:
        """Append one event. Endings and checkpoints are synced to the disk before this returns."""
        if type not in TYPES:
            raise ValueError(f"unknown event type {type!r}; known: {', '.join(sorted(TYPES))}")
        event = Event(seq=self.seq + 1, attempt=self.attempt, type=type, at=now(), data=data)
        self._append((event.to_json() + "\n").encode())
        if type in ENDINGS or type == CHECKPOINT:
            os.fsync(self._file.fileno())
        self.seq = event.seq
        return event

    def _append(self, line: bytes) -> None:
        # A short write (disk full) must not leave half a line that the next event would be glued to.
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(28, "no space left on device", str(self.path))
        except OSError:
            self._file.truncate(start)
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_events(folder: Path, *, after: int = 0) -> Iterator[Event]:
    """The whole events of a job with `seq > after`, in order; an unfinished last line is left for later."""
    tail = EventTail(folder, after=after)
    yield from tail.read()


class EventTail:
    """Follows a growing event file from where the last `read()` ended, without reading anything twice."""

    def __init__(self, folder: Path, *, after: int = 0) -> None:
        self.path = folder / EVENTS_FILE
        self.after = after
        self._offset = 0

    def read(self, *, limit: int | None = None) -> list[Event]:
        """The events that were completed since the last call, at most `limit`.

        Raises:
            Fault: `events.damaged`, what comes next is no event or not the next one. What comes before it was read by the calls before.
        """
        if not self.path.exists():
            return []
        events: list[Event] = []
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n") or (limit is not None and len(events) >= limit):
                    break
                try:
                    event = Event.from_json(line)
                    if event.seq > self.after + 1:
                        raise ValueError(f"event {self.after + 1} is missing: {event.seq} came instead")
                except ValueError as error:
                    if events:
                        break
                    raise Fault("events.damaged", f"{self.path} at byte {self._offset}: {str(error)[:300]}") from error
                self._offset += len(line)
                if event.seq > self.after:
                    self.after = event.seq
                    events.append(event)
        return events


def now() -> str:
    """The moment, ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _mend(path: Path) -> int:
    """Cut off what follows the last whole event without a hole before it and return its number (0 for a new file)."""
    if not path.exists():
        return 0
    seq, whole = 0, 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                found = Event.from_json(line).seq
            except ValueError:
                break
            if found != seq + 1:
                break
            seq = found
            whole += len(line)
    if whole != path.stat().st_size:
        os.truncate(path, whole)
    return seq


def _counts(value: Any) -> bool:
    """Whether it is a whole number that a column holds. A job that was cancelled while it waited has had no attempt: 0."""
    return type(value) is int and 0 <= value < 2**31


def _plain(value: Any) -> Any:
    """What JSON and every database can hold: PostgreSQL refuses NUL and half a surrogate pair, as names in damaged files have them."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", errors="replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
