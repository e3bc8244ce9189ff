"""From an opened source to measured clips: every row of metadata.csv becomes a clip, a problem, or both."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets_app.archive import METADATA_FILE, Source, safe_name
from datasets_app.metadata import Row, read_metadata
from datasets_app.problems import Problem
from gpu.errors import Fault
from gpu.sound import CLIPPED_SHARE, DC_OFFSET, SILENCE_DBFS, WAV_FORMATS, SoundFacts, inspect_sound

MIN_DURATION_S = 0.05
VERY_SHORT_S = 0.25
VERY_LONG_S = 120.0
MAX_NAME = 500
UNUSABLE_FLAGS = frozenset({"not_finite"})
"""A clip with one of these can never be trained on; NaN would spread to every weight."""
EXCLUDED_FLAGS = frozenset({"silent"}) | UNUSABLE_FLAGS
"""A clip with one of these starts out excluded."""
# Decoding and measuring let go of Python's lock, so threads are enough; the queue's workers may not start processes.
INSPECTORS = min(8, os.cpu_count() or 1)
MAX_AHEAD = 64


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """A decodable clip as it will be kept.

    Args:
        path: below the dataset's folder.
        original_name: as metadata.csv writes it.
    """

    line: int
    path: str
    original_name: str
    caption: str
    original_caption: str
    sha256: str
    size_bytes: int
    sound: SoundFacts
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a source holds. `unlisted` counts sounds that metadata.csv does not name; they are left behind."""

    clips: list[ClipFacts]
    problems: list[Problem]
    unlisted: int


def inspect_source(source: Source, folder: Path, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Inspection:
    """Extract metadata.csv and every sound that it lists into `folder`, and measure them.

    Args:
        on_progress: told how many of how many sounds have been looked at.
    Raises:
        Fault: the dataset as a whole is refused.
    """
    content = source.metadata()
    (folder / METADATA_FILE).write_bytes(content)
    rows, problems = read_metadata(content)
    listed = list(_listed(rows, source, problems))
    clips = []
    for done, clip in enumerate(_measured(listed, source, folder, problems), start=1):
        on_progress(done, len(listed))
        if clip:
            clips.append(clip)
    if not clips:
        first = f" (line {problems[-1].line}: {problems[-1].message})" if problems else ""
        raise NoUsableClips(f"none of the {len(rows)} rows of {METADATA_FILE} leads to a sound that can be used{first}", problems)
    clips = _with_duplicates_flagged(clips, problems)
    _report_captions(clips, problems)
    names = {name for _, name in listed}
    unlisted = sum(name.lower().endswith(".wav") and name not in names for name in source.names)
    if unlisted:
        message = f"{unlisted} WAV files are not named in {METADATA_FILE}; they were left behind"
        problems.append(Problem(file=METADATA_FILE, line=None, code="dataset.unlisted", message=message))
    return Inspection(clips=clips, problems=problems, unlisted=unlisted)


class NoUsableClips(Fault):
    """Every row has a problem; they are kept so that the owner sees why."""

    def __init__(self, message: str, problems: list[Problem]) -> None:
        super().__init__("dataset.no_usable_clips", message)
        self.problems = problems


def clean_caption(text: str) -> str:
    """One line, single spaces, NFC: what the text encoders see anyway."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _listed(rows: list[Row], source: Source, problems: list[Problem]) -> Iterator[tuple[Row, str]]:
    """Each row with the source's name of its file; the first row wins where two name the same."""
    first_lines: dict[str, int] = {}
    finder = _Finder(source)
    for row in rows:
        try:
            wanted = safe_name(row.audio.replace("\\", "/"), limits=source.limits)
        except Fault as fault:
            problems.append(_about(row, "clip.path_unsafe", fault.message))
            continue
        name = finder.find(wanted)
        if name is None:
            problems.append(_about(row, "clip.missing", f"{wanted} is not in the archive"))
        elif name in first_lines:
            problems.append(_about(row, "clip.duplicate_row", f"{wanted} is already listed on line {first_lines[name]}; this row was left out"))
        else:
            first_lines[name] = row.line
            if name != wanted:
                problems.append(_about(row, "clip.name_differs", f"{wanted} was found as {name}"))
            yield row, name


class _Finder:
    """Finds files as people name them: exactly, else ignoring case, else by the last part of the name when only one file has it."""

    def __init__(self, source: Source) -> None:
        self._names = source.names
        self._folded: dict[str, list[str]] = defaultdict(list)
        self._last_parts: dict[str, list[str]] = defaultdict(list)
        for name in source.names:
            self._folded[name.casefold()].append(name)
            self._last_parts[name.casefold().rpartition("/")[2]].append(name)

    def find(self, wanted: str) -> str | None:
        if wanted in self._names:
            return wanted
        for candidates in (self._folded.get(wanted.casefold()), self._last_parts.get(wanted.casefold().rpartition("/")[2])):
            if candidates and len(candidates) == 1:
                return candidates[0]
        return None


def _measured(listed: list[tuple[Row, str]], source: Source, folder: Path, problems: list[Problem]) -> Iterator[ClipFacts | None]:
    """Extract in order, one file at a time, while a few threads measure what has been extracted; results in order."""
    waiting: deque[tuple[Row, str, str, int, Future[SoundFacts]]] = deque()

    def result() -> ClipFacts | None:
        row, name, sha256, size_bytes, future = waiting.popleft()
        try:
            return _clip(row, name, sha256, size_bytes, future.result(), problems)
        except Fault as fault:
            problems.append(_about(row, _clip_code(fault, folder / name), fault.message))
            (folder / name).unlink(missing_ok=True)
            return None

    with ThreadPoolExecutor(INSPECTORS, thread_name_prefix="inspect") as pool:
        try:
            for row, name in listed:
                try:
                    sha256, size_bytes = source.extract(name, folder)
                except Fault as fault:
                    if not fault.code.startswith("clip."):
                        raise
                    problems.append(_about(row, fault.code, fault.message))
                    (folder / name).unlink(missing_ok=True)
                    yield None
                    continue
                waiting.append((row, name, sha256, size_bytes, pool.submit(inspect_sound, folder / name)))
                if len(waiting) >= MAX_AHEAD:
                    yield result()
            while waiting:
                yield result()
        finally:
            pool.shutdown(cancel_futures=True)


def _clip(row: Row, name: str, sha256: str, size_bytes: int, sound: SoundFacts, problems: list[Problem]) -> ClipFacts:
    """The clip, with what is odd about its sound reported.

    Raises:
        Fault: `clip.not_audio`, `clip.too_short`.
    """
    if sound.format not in WAV_FORMATS:
        raise Fault("clip.not_audio", f"{name} is {sound.format}, not WAV")
    if sound.duration_s < MIN_DURATION_S:
        raise Fault("clip.too_short", f"{name} lasts {sound.duration_s:.3f} s; the least is {MIN_DURATION_S:g} s")
    words = {
        "clip.silent": f"{name} never exceeds {SILENCE_DBFS:g} dBFS; it is excluded until you include it",
        "clip.clipped": f"{sound.clipped_share:.1%} of the samples of {name} are clipped; the limit is {CLIPPED_SHARE:.1%}",
        "clip.dc_offset": f"{name} is {sound.dc_offset:+.3f} off the zero line; the limit is {DC_OFFSET:g}",
        "clip.not_finite": f"{name} has samples that are not numbers; it is excluded",
        "clip.truncated": f"{name} is shorter than its header says: {sound.duration_s:.2f} s are left",
    }
    problems.extend(_about(row, f"clip.{flag}", words[f"clip.{flag}"]) for flag in sound.flags)
    flags = [*sound.flags]
    if sound.duration_s < VERY_SHORT_S:
        flags.append("very_short")
    elif sound.duration_s > VERY_LONG_S:
        flags.append("very_long")
    caption = clean_caption(row.caption)
    return ClipFacts(
        line=row.line,
        path=name,
        original_name=row.audio[:MAX_NAME],
        caption=caption,
        original_caption=row.caption,
        sha256=sha256,
        size_bytes=size_bytes,
        sound=sound,
        flags=flags if caption else [*flags, "no_caption"],
    )


def _clip_code(fault: Fault, path: Path) -> str:
    """A file that starts as WAV and cannot be decoded is damaged; any other is no WAV at all."""
    if fault.code != "clip.unreadable":
        return fault.code
    with open(path, "rb") as file:
        return "clip.corrupt" if file.read(4) in (b"RIFF", b"RF64") else "clip.not_audio"


def _with_duplicates_flagged(clips: list[ClipFacts], problems: list[Problem]) -> list[ClipFacts]:
    groups: dict[str, list[ClipFacts]] = defaultdict(list)
    for clip in clips:
        groups[clip.sha256].append(clip)
    for first, *others in groups.values():
        for clip in others:
            message = f"{clip.path} has the same content as {first.path} (line {first.line}); both are kept, on the same side of the split"
            problems.append(Problem(file=clip.original_name, line=clip.line, code="clip.duplicate_audio", message=message))
    return [replace(clip, flags=[*clip.flags, "duplicate"]) if len(groups[clip.sha256]) > 1 else clip for clip in clips]


def _report_captions(clips: list[ClipFacts], problems: list[Problem]) -> None:
    told = {problem.line for problem in problems if problem.code == "row.short"}
    for clip in clips:
        if not clip.caption and clip.line not in told:
            message = f"{clip.path} has no caption; it is not used until you write one"
            problems.append(Problem(file=clip.original_name, line=clip.line, code="clip.caption_empty", message=message))


def _about(row: Row, code: str, message: str) -> Problem:
    return Problem(file=row.audio, line=row.line, code=code, message=message)
