"""Picks the demo dataset out of a larger captioned collection: `python datasets_app/builtin/make_demo.py COLLECTION.zip`.

The collection holds WAV files, `metadata.csv` (audio, caption) and `ATTRIBUTION.md` with one line a file. Short clips of many
kinds are kept, and of the attribution exactly the lines of the kept files.
"""

from __future__ import annotations

import csv
import io
import re
import sys
import wave
import zipfile
from collections import defaultdict
from pathlib import Path

TARGET = Path(__file__).with_name("demo.zip")
MAX_SIZE_BYTES = 14_500_000
MIN_DURATION_S, MAX_DURATION_S = 0.35, 5.0
MAX_CLIPS = 180
ATTRIBUTION_LINE = re.compile(r"- `([^`]+)` - ")


def main(collection: Path) -> None:
    with zipfile.ZipFile(collection) as source:
        rows = list(csv.DictReader(io.StringIO(source.read("metadata.csv").decode())))
        attribution = source.read("ATTRIBUTION.md").decode()
        durations_s = {row["audio"]: _duration_s(source.read(row["audio"])) for row in rows}
        kept = _choose(rows, attribution, durations_s)
        _write(source, kept, _attribution_of({row["audio"] for row in kept}, attribution))
    total_s = sum(durations_s[row["audio"]] for row in kept)
    print(f"{len(kept)} clips, {total_s / 60:.1f} min, {TARGET.stat().st_size / 1e6:.1f} MB: {TARGET}")


def _choose(rows: list[dict], attribution: str, durations_s: dict[str, float]) -> list[dict]:
    """Round after round the shortest unused clip of each source, so that no source crowds out the others."""
    source_of, current = {}, ""
    for line in attribution.splitlines():
        if line.startswith("## "):
            current = line
        elif match := ATTRIBUTION_LINE.match(line):
            source_of[match[1]] = current

    queues: dict[str, list[dict]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: durations_s[row["audio"]]):
        if row["audio"] in source_of and MIN_DURATION_S <= durations_s[row["audio"]] <= MAX_DURATION_S:
            queues[source_of[row["audio"]]].append(row)

    kept: list[dict] = []
    size_bytes = 0
    while any(queues.values()):
        for queue in queues.values():
            if not queue:
                continue
            row = queue.pop(0)
            size_bytes += int(durations_s[row["audio"]] * 22_050 * 2)
            if len(kept) == MAX_CLIPS or size_bytes > MAX_SIZE_BYTES:
                return sorted(kept, key=lambda row: row["audio"])
            kept.append(row)
    return sorted(kept, key=lambda row: row["audio"])


def _attribution_of(names: set[str], attribution: str) -> str:
    """The attribution without the lines of other files, without sources that lost all theirs, and with new counts."""
    head, *sections = re.split(r"(?m)^(?=## )", attribution)
    kept = [re.sub(r"^\d+ clips\.", f"{len(names)} clips.", head, flags=re.M)]
    for section in sections:
        lines = [line for line in section.splitlines() if not (m := ATTRIBUTION_LINE.match(line)) or m[1] in names]
        count = sum(bool(ATTRIBUTION_LINE.match(line)) for line in lines)
        if count or "licence text" in lines[0]:
            lines[0] = re.sub(r"\(\d+ clips;", f"({count} clips;", lines[0])
            kept.append("\n".join(lines).rstrip() + "\n\n")
    return "".join(kept).rstrip() + "\n"


def _write(source: zipfile.ZipFile, rows: list[dict], attribution: str) -> None:
    metadata = io.StringIO()
    writer = csv.DictWriter(metadata, ["audio", "caption"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        target.writestr("metadata.csv", metadata.getvalue())
        target.writestr("ATTRIBUTION.md", attribution)
        for row in rows:
            target.writestr(row["audio"], source.read(row["audio"]))


def _duration_s(content: bytes) -> float:
    with wave.open(io.BytesIO(content)) as sound:
        return sound.getnframes() / sound.getframerate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
