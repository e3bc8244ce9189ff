from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_app.metadata import Row, read_metadata
from gpu.errors import Fault


def rows(content: str | bytes) -> list[tuple[int, str, str]]:
    found, _ = read_metadata(content.encode() if isinstance(content, str) else content)
    return [(row.line, row.audio, row.caption) for row in found]


def problems(content: str | bytes) -> list[tuple[int | None, str]]:
    _, found = read_metadata(content.encode() if isinstance(content, str) else content)
    return [(problem.line, problem.code) for problem in found]


@pytest.mark.parametrize(
    "content",
    [
        "audio,caption\na.wav,A dog\n",
        "caption,audio\nA dog,a.wav\n",
        "id,audio,x,caption\n1,a.wav,,A dog\n",
        " Audio , CAPTION \na.wav,A dog\n",
        "audio;caption\na.wav;A dog\n",
        "audio\tcaption\na.wav\tA dog\n",
        "audio,caption\r\na.wav,A dog\r\n",
        "audio,caption\ra.wav,A dog\r",
        "audio,caption\na.wav,A dog",
        '"audio","caption"\n"a.wav","A dog"\n',
        'audio, caption\na.wav, "A dog"\n',
        "\ufeffaudio,caption\na.wav,A dog\n",
    ],
)
def test_every_spelling_of_the_same_table_is_understood(content):
    assert rows(content) == [(2, "a.wav", "A dog")]
    assert problems(content) == []


@pytest.mark.parametrize("audio", ["file", "file_name", "File Name", "file-name", "FILENAME", "path"])
@pytest.mark.parametrize("caption", ["text", "Description"])
def test_synonyms_are_accepted_and_reported(audio, caption):
    content = f"{caption},{audio}\nA dog,a.wav\n"
    assert rows(content) == [(2, "a.wav", "A dog")]
    assert problems(content) == [(1, "metadata.synonym"), (1, "metadata.synonym")]


def test_the_proper_column_wins_over_its_synonym():
    assert rows("path,audio,caption\n/x/a.wav,a.wav,A dog\n") == [(2, "a.wav", "A dog")]


def test_excels_first_line_is_skipped():
    assert rows("sep=;\r\naudio;caption\r\na.wav;A dog\r\n") == [(3, "a.wav", "A dog")]


def test_a_semicolon_in_a_caption_does_not_make_it_the_delimiter():
    assert rows("audio,caption\na.wav,one; two; three\n") == [(2, "a.wav", "one; two; three")]


def test_lines_are_counted_as_an_editor_does():
    content = 'audio,caption\na.wav,"one\ntwo\n\nthree"\n\nb.wav,"A ""quoted"" word, and a comma"\nc.wav,end\n'
    assert rows(content) == [(2, "a.wav", "one\ntwo\n\nthree"), (7, "b.wav", 'A "quoted" word, and a comma'), (8, "c.wav", "end")]


def test_an_unquoted_comma_is_put_together_and_reported():
    assert rows("audio,caption\na.wav,A dog, barking, twice\n") == [(2, "a.wav", "A dog, barking, twice")]
    assert problems("audio,caption\na.wav,A dog, barking\n") == [(2, "row.long")]


def test_an_unquoted_comma_before_another_column_cannot_be_put_together():
    assert rows("caption,audio\nA dog,a.wav,x\n") == [(2, "a.wav", "A dog")]
    assert problems("caption,audio\nA dog,a.wav,x\n") == [(2, "row.long")]


def test_trailing_delimiters_are_no_problem():
    assert problems("audio,caption,,\na.wav,A dog,,\nb.wav,A cat,,,,\n") == []


def test_a_short_row_keeps_its_sound_without_a_caption():
    assert rows("audio,caption\na.wav\n") == [(2, "a.wav", "")]
    assert problems("audio,caption\na.wav\n") == [(2, "row.short")]


def test_a_row_without_a_file_is_left_out():
    content = "audio,caption\n,A dog\na.wav,A cat\n"
    assert rows(content) == [(3, "a.wav", "A cat")]
    assert problems(content) == [(2, "row.no_audio")]


def test_a_quotation_mark_that_never_closes_costs_the_rest_and_says_where():
    content = 'audio,caption\na.wav,A dog\nb.wav,"A cat\nc.wav,A cow\n'
    assert rows(content) == [(2, "a.wav", "A dog")]
    assert problems(content) == [(3, "row.quote_open")]


def test_a_field_beyond_all_bounds_is_reported():
    content = 'audio,caption\na.wav,A dog\nb.wav,"' + "x" * 200_000 + '"\n'
    assert rows(content) == [(2, "a.wav", "A dog")]
    assert problems(content) == [(3, "row.unreadable")]


def test_nuls_are_dropped():
    assert rows("audio,cap\0tion\na.\0wav,A \0dog\n") == [(2, "a.wav", "A dog")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_read_and_reported(encoding):
    content = "audio,caption\na.wav,Ein Hündchen\n".encode(encoding)
    assert rows(content) == [(2, "a.wav", "Ein Hündchen")]
    assert problems(content) == [(None, "metadata.encoding")]


def test_windows_1252_is_read_and_reported_with_its_first_line():
    content = "audio,caption\na.wav,A dog\nb.wav,Hündchen “laut”\n".encode("cp1252")
    assert rows(content) == [(2, "a.wav", "A dog"), (3, "b.wav", "Hündchen “laut”")]
    assert problems(content) == [(3, "metadata.encoding")]


def test_latin_1_is_the_last_resort():
    assert rows(b"audio,caption\na.wav,\x81\xe9\n") == [(2, "a.wav", "\x81é")]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", "dataset.no_rows"),
        ("\n\n", "dataset.no_rows"),
        ("audio,caption\n", "dataset.no_rows"),
        ("audio,caption\n\n,\n", "dataset.no_rows"),
        ("audio,caption\n,A dog\n", "dataset.no_rows"),
        ("audio,label\na.wav,dog\n", "dataset.columns_missing"),
        ("a.wav,A dog\n", "dataset.columns_missing"),
        ("caption\nA dog\n", "dataset.columns_missing"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(content, code):
    with pytest.raises(Fault) as caught:
        read_metadata(content.encode())
    assert caught.value.code == code


def test_the_refusal_names_the_columns_that_there_are():
    with pytest.raises(Fault, match=r"audio, label.*needs audio and caption"):
        read_metadata(b"audio,label\na.wav,dog\n")


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda noise: b"audio,caption\n" + noise))
def test_no_bytes_bring_anything_but_a_fault(content):
    try:
        found, _ = read_metadata(content)
    except Fault as fault:
        assert fault.code in ("dataset.no_rows", "dataset.columns_missing")
    else:
        assert found
        assert all(isinstance(row, Row) and row.audio for row in found)


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n,;\t\"' "), max_size=20)


@given(st.lists(st.tuples(cells.filter(lambda text: text.strip()), cells), min_size=1, max_size=8), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]))
def test_what_a_spreadsheet_writes_comes_back(table, delimiter, line_end):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([("audio", "caption"), *table])
    text = file.getvalue()
    found = rows(text)
    assert [(audio, caption) for _, audio, caption in found] == [(audio.strip(), caption.strip()) for audio, caption in table]
    lines = list(io.StringIO(text, newline=""))
    assert all(lines[line - 1].startswith('"') for line, _, _ in found)
