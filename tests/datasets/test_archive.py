"""Hostile and damaged sources. Every refusal has its code, and nothing is ever written outside the folder."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_app.archive import LIMITS, Limits, open_source, safe_name
from gpu.errors import Fault
from tests.datasets.conftest import table_of, tones, wav, write_zip

TABLE = table_of(["a.wav"])


def refusal(path: Path, *, limits: Limits = LIMITS) -> str:
    """The code with which reading everything in a source is refused."""
    target = path.parent / "out"
    target.mkdir(exist_ok=True)
    with pytest.raises(Fault) as caught, open_source(path, limits=limits) as source:
        source.metadata()
        for name in sorted(source.names):
            source.extract(name, target)
    return caught.value.code


def raw_zip(path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "a.zip"


# Names


@pytest.mark.parametrize(
    "name",
    ["../evil.wav", "a/../../evil.wav", "/etc/evil.wav", "//evil.wav", "C:/evil.wav", "c:evil.wav", "a\\..\\evil.wav", "a\\b.wav",
     "..", "a/..", "con.wav", "audio/NUL", "lpt1.txt.wav", "COM9", "bell\a.wav", "new\nline.wav", "x" * 201 + ".wav", "d/" * 200 + "a.wav"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(path, name):
    raw_zip(path, [("metadata.csv", TABLE), ("a.wav", wav()), (name, b"evil")])
    assert refusal(path) == "archive.path_unsafe"
    assert not [found for found in path.parent.rglob("*") if "evil" in found.name]


def test_a_name_with_a_nul_is_refused(path):
    raw_zip(path, [("metadata.csv", TABLE), ("a.wavXevil", wav())])
    path.write_bytes(path.read_bytes().replace(b"a.wavXevil", b"a.wav\0evil"))
    assert refusal(path) == "archive.path_unsafe"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(st.sampled_from(["..", ".", "a", "", "C:", "\\", "nul"]), max_size=6).map("/".join))
def test_every_accepted_name_stays_below_the_folder(name):
    folder = Path("/data/datasets/x")
    with contextlib.suppress(Fault):
        accepted = safe_name(name)
        assert (folder / accepted).relative_to(folder).as_posix() == accepted
        assert ".." not in accepted.split("/")
        assert unicodedata.is_normalized("NFC", accepted)
        assert safe_name(accepted) == accepted


@pytest.mark.parametrize("name", ["a.wav", "./a.wav", "audio/x y (1).wav", "audio//b.wav", "12:30 ü 雨.wav", "aux send.wav", "...wav"])
def test_ordinary_names_are_kept(name):
    assert safe_name(name) == name.replace("./", "", 1).replace("//", "/")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(path, kind):
    info = zipfile.ZipInfo("a.wav")
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    raw_zip(path, [("metadata.csv", TABLE), (info, b"/etc/passwd")])
    assert refusal(path) == "archive.link"


def test_the_same_name_twice_is_refused(path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        raw_zip(path, [("metadata.csv", TABLE), ("a.wav", wav()), ("a.wav", b"other")])
    assert refusal(path) == "archive.duplicate_name"


def test_the_same_name_in_two_unicode_spellings_is_refused(path):
    raw_zip(path, [("metadata.csv", TABLE), ("é.wav", wav()), ("e\u0301.wav", wav())])
    assert refusal(path) == "archive.duplicate_name"


def test_a_file_that_is_also_a_folder_is_refused(path):
    raw_zip(path, [("metadata.csv", TABLE), ("a.wav", wav()), ("a.wav/b.wav", wav())])
    assert refusal(path) == "archive.duplicate_name"


# Sizes


def test_a_bomb_is_stopped_while_it_unpacks(path):
    raw_zip(path, [("metadata.csv", TABLE), ("a.wav", b"\0" * 20_000_000)])
    assert refusal(path, limits=Limits(ratio=100, ratio_free_bytes=1_000_000)) == "archive.ratio"
    assert sum(found.stat().st_size for found in (path.parent / "out").iterdir()) < 8_000_000


def test_a_file_over_the_limit_is_refused(path):
    raw_zip(path, [("metadata.csv", TABLE), ("a.wav", b"\0" * 3_000_000)])
    assert refusal(path, limits=Limits(file_bytes=2_000_000)) == "archive.too_large"


def test_many_files_over_the_limit_are_refused(path):
    raw_zip(path, [("metadata.csv", TABLE), *((f"{index}.wav", bytes(1000)) for index in range(100))])
    assert refusal(path, limits=Limits(total_bytes=50_000)) == "archive.too_large"


def test_a_huge_table_is_refused(path):
    raw_zip(path, [("metadata.csv", b"x" * 3_000_000), ("a.wav", wav())])
    assert refusal(path, limits=Limits(metadata_bytes=2_000_000)) == "archive.too_large"


def test_headers_that_promise_less_than_there_is_do_not_help(path):
    """Both headers say 100 bytes; the packed stream holds 20 MB."""
    raw_zip(path, [("metadata.csv", TABLE), ("a.wav", b"\0" * 20_000_000)])
    content = path.read_bytes().replace(struct.pack("<I", 20_000_000), struct.pack("<I", 100))
    path.write_bytes(content)
    assert refusal(path) == "clip.corrupt"
    assert (path.parent / "out" / "a.wav").stat().st_size <= 100


def test_headers_that_promise_more_than_there_is_are_not_believed(path, tmp_path):
    raw_zip(path, [("metadata.csv", TABLE), ("a.wav", b"\1" * 5_000)])
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 5_000), struct.pack("<I", 4_000_000_000)))
    with open_source(path) as source:
        assert source.extract("a.wav", tmp_path / "out")[1] == 5_000


def test_overlapping_entries_are_refused(path):
    """Two names in the table of contents lead to the same bytes, as in David Fifield's bomb."""
    raw_zip(path, [("metadata.csv", TABLE), ("a.wav", wav()), ("b.wav", wav())])
    with zipfile.ZipFile(path) as archive:
        first, second = (archive.getinfo(name).header_offset for name in ("a.wav", "b.wav"))
    content = path.read_bytes()
    directory = content.rfind(b"PK\x01\x02")
    assert struct.unpack_from("<I", content, directory + 42)[0] == second
    path.write_bytes(content[: directory + 42] + struct.pack("<I", first) + content[directory + 46 :])
    assert refusal(path) == "archive.overlapping"


def test_a_hundred_thousand_entries_are_refused_quickly(path):
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(100_000):
            archive.writestr(f"{index}", b"")
    started = time.monotonic()
    assert refusal(path) == "archive.too_many_files"
    assert time.monotonic() - started < 5


def test_a_table_of_contents_over_the_limit_is_not_even_read(path):
    raw_zip(path, [("metadata.csv", TABLE), *((f"{index:0100}.wav", b"") for index in range(100))])
    assert refusal(path, limits=Limits(directory_bytes=10_000)) == "archive.too_many_files"


# Kinds of zips


def test_an_encrypted_zip_is_refused(path):
    raw_zip(path, [("metadata.csv", TABLE), ("a.wav", wav())])
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + offset] |= 1
            start = content.find(signature, start + 4)
    path.write_bytes(content)
    assert refusal(path) == "archive.encrypted"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_without_a_bound_on_memory_are_refused(path, method):
    assert refusal(raw_zip(path, [("metadata.csv", TABLE), ("a.wav", wav())], method)) == "archive.compression"


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "dataset.empty"), (b"audio,caption\n", "dataset.not_a_zip"), (wav(), "dataset.not_a_zip"), (b"Rar!\x1a\x07\0", "dataset.not_a_zip"),
     (b"\x1f\x8b\x08", "dataset.not_a_zip"), (b"PK\x03\x04 and no more", "archive.truncated"), (b"PK\x05\x06" + bytes(18), "dataset.empty")],
)  # fmt: skip
def test_what_is_no_whole_zip_says_what_it_is(path, content, code):
    path.write_bytes(content)
    assert refusal(path) == code


def test_a_missing_file_is_no_zip(path):
    assert refusal(path) == "dataset.not_a_zip"


@pytest.mark.parametrize("tenth", range(10))
def test_a_zip_cut_anywhere_is_refused(path, tenth):
    whole = write_zip(path, tones(5)).read_bytes()
    path.write_bytes(whole[: len(whole) * tenth // 10])
    assert refusal(path) == ("dataset.empty" if tenth == 0 else "archive.truncated")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_brings_anything_but_a_fault(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    whole = bytearray(write_zip(folder / "a.zip", tones(2)).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a.zip").write_bytes(whole)
    (folder / "out").mkdir()
    with contextlib.suppress(Fault), open_source(folder / "a.zip") as source:
        source.metadata()
        for name in source.names:
            with contextlib.suppress(Fault):
                source.extract(name, folder / "out")
    assert {found.name for found in folder.iterdir()} == {"a.zip", "out"}


def test_bytes_before_the_zip_are_allowed(path):
    write_zip(path, tones(1))
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    with open_source(path) as source:
        assert source.names == {"tone 0.wav"}


# Where metadata.csv is


def test_one_enclosing_folder_is_looked_through(path, tmp_path):
    raw_zip(path, [("rain/metadata.csv", TABLE), ("rain/audio/a.wav", wav()), ("__MACOSX/rain/._a.wav", b"junk"), ("rain/.DS_Store", b"junk")])
    with open_source(path) as source:
        assert source.names == {"audio/a.wav"}
        source.extract("audio/a.wav", tmp_path / "out")
    assert (tmp_path / "out" / "audio" / "a.wav").read_bytes() == wav()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/b/metadata.csv", "a/b/a.wav"], "a/b/metadata.csv"),
        (["a/metadata.csv", "b/a.wav"], "a/metadata.csv"),
        (["a/metadata.csv", "b/metadata.csv"], "b/metadata.csv"),
        (["captions.csv", "a.wav"], "captions.csv"),
        (["a.wav"], "no metadata.csv"),
        (["metadata.csv", "METADATA.CSV", "a.wav"], "spellings"),
    ],
)
def test_a_table_elsewhere_is_named(path, names, words):
    raw_zip(path, [(name, b"x") for name in names])
    with pytest.raises(Fault) as caught, open_source(path):
        pass
    assert caught.value.code == "dataset.no_metadata"
    assert words in caught.value.message


@pytest.mark.parametrize("name", ["Metadata.csv", "METADATA.CSV"])
def test_the_case_of_metadata_csv_does_not_matter(path, name):
    raw_zip(path, [(name, TABLE), ("a.wav", wav())])
    with open_source(path) as source:
        assert source.metadata() == TABLE.encode()
        assert source.names == {"a.wav"}


def test_litter_alone_is_an_empty_archive(path):
    raw_zip(path, [("__MACOSX/._a.wav", b""), ("Thumbs.db", b""), (".DS_Store", b"")])
    assert refusal(path) == "dataset.empty"


def test_utf8_names_without_the_flag_are_read_as_utf8(path):
    raw_zip(path, [("metadata.csv", TABLE), ("Regen-ae.wav", wav())])
    path.write_bytes(path.read_bytes().replace(b"Regen-ae.wav", "Regen-ä.wav".encode()))
    with open_source(path) as source:
        assert source.names == {"Regen-ä.wav"}


def test_old_dos_names_are_read_as_cp437(path):
    raw_zip(path, [("metadata.csv", TABLE), ("Regen-a.wav", wav())])
    path.write_bytes(path.read_bytes().replace(b"Regen-a.wav", "Regen-ä.wav".encode("cp437")))
    with open_source(path) as source:
        assert source.names == {"Regen-ä.wav"}


def test_decomposed_names_become_composed_ones(path):
    raw_zip(path, [("metadata.csv", TABLE), ("cafe\u0301.wav", wav())])
    with open_source(path) as source:
        assert source.names == {"café.wav"}


def test_only_what_is_asked_for_is_extracted(path, tmp_path):
    write_zip(path, {**tones(3), "huge.bin": bytes(10_000)})
    with open_source(path) as source:
        source.extract("tone 1.wav", tmp_path / "out")
    assert [found.name for found in (tmp_path / "out").iterdir()] == ["tone 1.wav"]


# Folders


def test_a_folder_is_a_source_too(tmp_path):
    folder = tmp_path / "rain"
    (folder / "audio").mkdir(parents=True)
    (folder / "metadata.csv").write_text(TABLE)
    (folder / "audio" / "a.wav").write_bytes(wav())
    (folder / ".DS_Store").write_bytes(b"junk")
    with open_source(folder) as source:
        assert source.names == {"audio/a.wav"}


def test_a_link_in_a_folder_is_refused(tmp_path):
    folder = tmp_path / "rain"
    folder.mkdir()
    (folder / "metadata.csv").write_text(TABLE)
    (folder / "a.wav").symlink_to("/etc/passwd")
    assert refusal(folder) == "archive.link"


def test_an_empty_folder_is_empty(tmp_path):
    (tmp_path / "rain").mkdir()
    assert refusal(tmp_path / "rain") == "dataset.empty"


def test_a_zip_in_memory_of_another_kind_is_not_confused(path):
    """A zip inside the zip is a file like any other and is not opened."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("metadata.csv", "evil")
    raw_zip(path, [("metadata.csv", TABLE), ("inner.zip", inner.getvalue())])
    with open_source(path) as source:
        assert source.metadata() == TABLE.encode()
