import dataclasses

import pytest

from gpu.errors import Fault
from gpu.manifest import ManifestClip, digest, folder_digest, read_manifest, write_manifest

CLIP = ManifestClip(audio="audio/a.wav", caption="a dog\u2028barks, \"loud\"", sha256="ab" * 32, duration_s=1.5, split="train")


def test_what_is_written_is_read_again(tmp_path):
    clips = [CLIP, dataclasses.replace(CLIP, caption="größer 🎵", split="validation")]
    write_manifest(tmp_path, clips)
    assert read_manifest(tmp_path) == clips


def test_the_digest_changes_with_content_caption_and_split_but_not_with_the_place():
    original = digest([CLIP])
    assert digest([dataclasses.replace(CLIP, audio="elsewhere.wav")]) == original
    for change in ({"sha256": "cd" * 32}, {"caption": "a cat"}, {"split": "validation"}):
        assert digest([dataclasses.replace(CLIP, **change)]) != original


def test_a_broken_line_is_named(tmp_path):
    write_manifest(tmp_path, [CLIP])
    with open(tmp_path / "manifest.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(Fault, match="line 2"):
        read_manifest(tmp_path)


def test_a_folders_digest_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    first = folder_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = folder_digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, folder_digest(tmp_path)}) == 3
