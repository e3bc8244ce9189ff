"""metadata.csv as people write it: any spreadsheet's delimiter and encoding, any order of columns, with every guess reported."""

from __future__ import annotations

import csv
import io
import unicodedata
from dataclasses import dataclass

from datasets_app.archive import METADATA_FILE
from datasets_app.problems import Problem
from gpu.errors import Fault

DELIMITERS = (",", ";", "\t")
AUDIO_COLUMNS = ("audio", "file", "file_name", "filename", "path")
CAPTION_COLUMNS = ("caption", "text", "description")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Args:
        line: where it starts in the file, from 1; a quoted caption may span several lines.
        audio: the name as written, trimmed.
        caption: as written, trimmed.
    """

    line: int
    audio: str
    caption: str


def read_metadata(content: bytes) -> tuple[list[Row], list[Problem]]:
    """The rows of a metadata.csv and what is odd about it.

    Raises:
        Fault: `dataset.columns_missing`, `dataset.no_rows`.
    """
    text, problems = _decode(content)
    text = text.replace("\0", "")  # PostgreSQL stores none
    first = 1
    if text[:4].lower() == "sep=":  # Excel's own first line
        _, _, text = text.partition("\n")
        first = 2
    lines = list(io.StringIO(text, newline=""))
    delimiter = _delimiter(lines)
    cells = _cells(lines, delimiter=delimiter, first=first, problems=problems)
    header = next(((line, row) for line, row in cells if any(row)), None)
    if header is None:
        raise Fault("dataset.no_rows", f"{METADATA_FILE} is empty")
    audio, caption = _columns(header[1], line=header[0], problems=problems)
    rows = []
    for line, row in cells:
        if any(cell.strip() for cell in row):
            found = _row(row, line=line, audio=audio, caption=caption, width=len(header[1]), delimiter=delimiter, problems=problems)
            if found:
                rows.append(found)
    if not rows:
        raise Fault("dataset.no_rows", f"{METADATA_FILE} has a header and no usable row below it")
    return rows, problems


def _decode(content: bytes) -> tuple[str, list[Problem]]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:2]:
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be" if content[:1] == b"\0" else "utf-16"
        return content.decode(encoding, "replace"), [_about_file("metadata.encoding", f"{METADATA_FILE} is UTF-16; it was read as such")]
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        try:
            text, encoding = content.decode("cp1252"), "Windows-1252"
        except UnicodeDecodeError:
            text, encoding = content.decode("latin-1"), "Latin-1"
        message = f"{METADATA_FILE} is not UTF-8 (first on line {line}); it was read as {encoding}, check the captions with accents"
        return text, [_about_file("metadata.encoding", message, line=line)]


def _delimiter(lines: list[str]) -> str:
    """The one that makes the header hold both columns, else the most frequent in it."""
    header = next((line for line in lines if line.strip()), "")
    for delimiter in DELIMITERS:
        names = [_column_name(cell) for cell in next(csv.reader([header], delimiter=delimiter), [])]
        if any(name in names for name in AUDIO_COLUMNS) and any(name in names for name in CAPTION_COLUMNS):
            return delimiter
    return max(DELIMITERS, key=header.count)


def _cells(lines: list[str], *, delimiter: str, first: int, problems: list[Problem]):
    """Rows with the physical line on which each starts."""
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t")
    while True:
        start = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(_about_file("row.unreadable", f"nothing from line {start + first} on was read: {error}", line=start + first))
            return
        raw = "".join(lines[start : reader.line_num])
        if reader.line_num == len(lines) and reader.line_num - start > 1 and raw.count('"') % 2:
            message = f"a quotation mark that opens on line {start + first} is never closed; that line and the {reader.line_num - start - 1} below it were not read"
            problems.append(_about_file("row.quote_open", message, line=start + first))
            return
        yield start + first, row


def _columns(header: list[str], *, line: int, problems: list[Problem]) -> tuple[int, int]:
    names = [_column_name(cell) for cell in header]
    places = []
    for wanted in (AUDIO_COLUMNS, CAPTION_COLUMNS):
        found = next((name for name in wanted if name in names), None)
        if found is None:
            has = ", ".join(cell.strip()[:40] for cell in header[:8])
            raise Fault("dataset.columns_missing", f"{METADATA_FILE} has the columns {has}; it needs {AUDIO_COLUMNS[0]} and {CAPTION_COLUMNS[0]}")
        if found != wanted[0]:
            problems.append(_about_file("metadata.synonym", f"the column {header[names.index(found)].strip()} was read as {wanted[0]}", line=line))
        places.append(names.index(found))
    return places[0], places[1]


def _row(row: list[str], *, line: int, audio: int, caption: int, width: int, delimiter: str, problems: list[Problem]) -> Row | None:
    name = row[audio].strip() if audio < len(row) else ""
    if not name:
        problems.append(Problem(file="", line=line, code="row.no_audio", message="the row names no file"))
        return None
    if len(row) < width and caption >= len(row):
        problems.append(Problem(file=name, line=line, code="row.short", message=f"the row has {len(row)} of {width} cells and no caption"))
        return Row(line=line, audio=name, caption="")
    words = row[caption].strip()
    if len(row) > width and any(cell.strip() for cell in row[width:]):
        message = f"the row has {len(row)} cells under {width} columns; put a caption with {delimiter!r} in quotation marks"
        if caption == width - 1:
            words = (", " if delimiter == "," else delimiter).join(row[caption:]).strip()
            message += "; the caption was put together again"
        problems.append(Problem(file=name, line=line, code="row.long", message=message))
    return Row(line=line, audio=name, caption=words)


def _column_name(cell: str) -> str:
    return "_".join(unicodedata.normalize("NFKC", cell).strip().strip('"').casefold().replace("-", " ").replace("_", " ").split())


def _about_file(code: str, message: str, *, line: int | None = None) -> Problem:
    return Problem(file=METADATA_FILE, line=line, code=code, message=message)
