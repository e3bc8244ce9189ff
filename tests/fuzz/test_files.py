"""Files that nobody should send: each is read, or refused by a fault with a code. Nothing else is raised, run or left behind."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as save_safetensors

from audioldm_site import faults
from datasets_app.archive import open_source
from datasets_app.metadata import read_metadata
from gpu import config as configs
from gpu.errors import Fault
from gpu.events import TYPES, EventTail, EventWriter
from gpu.manifest import MANIFEST_FILE, read_manifest
from gpu.models import CHECKPOINT_FILE, INDEX_FILE, describe, verify_checkpoint
from gpu.originals.layouts import describe_file
from gpu.originals.pickles import PickleDamage, read_pickle
from gpu.sound import inspect_sound, read_recipe, spectrogram_png
from tests.fuzz.cases import bounded, cases

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
NAMES = st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "a", "", "C:", "\\", "audio", "metadata.csv", "x" * 300]), max_size=5).map("/".join)
CELLS = st.text(max_size=20) | st.sampled_from(["a.wav", "../a.wav", "/etc/passwd", "=1+1", '"', "\ufeff", "\0"])
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**32, 2**63, 2**64])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@contextlib.contextmanager
def refused():
    """The body may be refused, in words that the site knows."""
    try:
        yield
    except Fault as fault:
        assert fault.code in faults.WORDS, fault.code
        assert fault.message
        assert len(fault.message) < 3000


def garbled(draw, whole: bytes, *, edits: int = 6) -> bytes:
    """The bytes with some overwritten, taken out, repeated or put in."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, edits))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["write", "write", "number", "cut", "insert", "end"]))
        if how == "write":
            content[start : start + 1] = bytes([draw(st.integers(0, 255))])
        elif how == "number":
            content[start : start + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x01\0\0\0"]))
        elif how == "cut":
            del content[start : start + draw(st.integers(1, 64))]
        elif how == "insert":
            content[start:start] = draw(st.binary(max_size=32))
        else:
            del content[start:]
    return bytes(content)


def changed(draw, plain: dict[str, Any]) -> bytes:
    """A JSON object with some values replaced, left out or added; now and then no JSON at all."""
    raw = dict(plain)
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from([*plain, "another"]))
        if draw(st.booleans()):
            raw[name] = draw(JSON)
        else:
            raw.pop(name, None)
    text = json.dumps(raw).encode()
    return draw(st.sampled_from([text] * 8 + [text[: len(text) // 2], b"", b"null", b"[]", DEEP, b'{"a":' + b"9" * 5000 + b"}", b"\xff\xfe"]))


# --- datasets


@cases(60, 1500)
@given(st.data())
@bounded
def test_zips(folder, data) -> None:
    path, out = folder / "a.zip", folder / "out"
    out.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))) as archive, contextlib.suppress(UnicodeError, ValueError):
        archive.writestr("metadata.csv", data.draw(st.binary(max_size=50) | st.just(b"audio,caption\na.wav,b\n")))
        for name in data.draw(st.lists(NAMES, max_size=5)):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = data.draw(st.sampled_from([0, 0o120777 << 16, 0o010644 << 16, 0o100644 << 16, 0o040755 << 16, 0xFFFFFFFF]))
            archive.writestr(entry, data.draw(st.binary(max_size=200)))
    path.write_bytes(garbled(data.draw, path.read_bytes(), edits=4))
    with refused(), open_source(path) as source:
        source.metadata()
        for name in source.names:
            with refused():
                source.extract(name, out)
    assert {found.name for found in folder.iterdir()} <= {"a.zip", "out", "a.wav", "a.bin", "run", "model"}
    assert all(found.resolve().is_relative_to(out) and not found.is_symlink() for found in out.rglob("*"))


@cases(100, 2000)
@given(st.lists(st.lists(CELLS, max_size=5), max_size=8), st.sampled_from(",;\t|"), st.sampled_from(["utf-8", "utf-16", "utf-32", "latin-1"]), st.data())
@bounded
def test_tables(rows, delimiter, encoding, data) -> None:
    text = "\n".join(delimiter.join(row) for row in [["audio", "caption"], *rows])
    with refused():
        read_metadata(garbled(data.draw, text.encode(encoding, errors="replace")))


def _wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((2, 2, 8000, 0, "NONE", ""))
        sound.writeframes(np.arange(800, dtype=np.int16).tobytes())
    return file.getvalue()


@cases(80, 1500)
@given(st.data())
@bounded
def test_sounds(folder, data) -> None:
    path = folder / "a.wav"
    whole = bytearray(_wav())
    if data.draw(st.booleans()):  # the header's numbers
        struct.pack_into("<HHIIHH", whole, 20, *(data.draw(st.sampled_from([0, 1, 2, 3, 7, 16, 0xFFFE, 0xFFFF])) for _ in range(2)), *(data.draw(st.sampled_from([0, 1, 8000, 2**31, 2**32 - 1])) for _ in range(2)), *(data.draw(st.sampled_from([0, 1, 2, 8, 16, 24, 0xFFFF])) for _ in range(2)))
    path.write_bytes(garbled(data.draw, bytes(whole)))
    with refused():
        facts = inspect_sound(path)
        assert facts.frames > 0
        spectrogram_png(path, width=40, height=20)
    read_recipe(path)


# --- models


@cases(80, 1500)
@given(st.data())
@bounded
def test_weights(folder, data) -> None:
    """safetensors under names of real layouts, LoRAs in several spellings and of nothing."""
    names = st.sampled_from(["state_dict.a", "conv_in.weight", "down_blocks.0.x.weight", "a.lora_A.weight", "a.lora_B.weight", "lora_unet_a.alpha", "model.diffusion_model.input_blocks.0.0.weight", "scale_factor"])
    tensors = {data.draw(names | st.text(max_size=20)): np.zeros(data.draw(st.lists(st.integers(0, 4), max_size=4)), np.float32) for _ in range(data.draw(st.integers(0, 5)))}
    try:
        whole = save_safetensors(tensors, metadata=data.draw(st.none() | st.dictionaries(st.sampled_from(["step", "alpha", "rank"]) | st.text(max_size=10), st.sampled_from(["nan", "inf", "-1", "9" * 400]) | st.text(max_size=20), max_size=3)))
    except Exception:  # a name that the library itself does not write
        whole = b""
    path = folder / "a.bin"
    path.write_bytes(garbled(data.draw, whole))
    with refused():
        describe_file(path)


@cases(60, 500)
@given(header=st.dictionaries(st.text(max_size=10), st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "F16", "X", "F8_E4M3"]) | JSON, "shape": st.lists(NUMBERS, max_size=4) | JSON, "data_offsets": st.lists(NUMBERS, max_size=3) | JSON}) | JSON, max_size=4), values=st.binary(max_size=64), lie=st.integers(-8, 8))
@bounded
def test_safetensors_headers(folder, header, values, lie) -> None:
    text = json.dumps(header).encode()
    path = folder / "a.bin"
    path.write_bytes(struct.pack("<Q", max(0, len(text) + lie)) + text + values)
    with refused():
        describe_file(path)


OPCODES = [bytes([code]) for code in b"(.0123BCFGIJKLMNQRSTUVX]abcdefghijlopqrstu}\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98"]
PIECES = st.sampled_from([*OPCODES, b"cposix\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"X\x01\0\0\0a", b"K\x05", b"J\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f"]) | st.binary(max_size=5)


@cases(100, 2000)
@given(st.lists(PIECES, max_size=40))
@bounded
def test_pickles(pieces) -> None:
    with contextlib.suppress(PickleDamage):
        read_pickle(b"\x80\x02" + b"".join(pieces) + b".")


@cases(60, 800)
@given(st.data())
@bounded
def test_checkpoint_folders(folder, data) -> None:
    model = folder / "model"
    (model / "unet").mkdir(parents=True, exist_ok=True)
    facts = {"step": 1, "method": "full", "weights": "raw", "base": ".", "base_sha256": "", "files": {"a": "0"}, "config": {}, "metrics": {}, "model": {}, "format_version": 1}
    (model / CHECKPOINT_FILE).write_bytes(changed(data.draw, facts))
    (model / INDEX_FILE).write_bytes(changed(data.draw, {"_class_name": "AudioLDM2Pipeline", "unet": ["diffusers", "UNet"], "vae": ["diffusers", "AutoencoderKL"]}))
    (model / "unet" / "config.json").write_bytes(changed(data.draw, {"sample_size": 8, "attention_head_dim": 8}))
    with refused():
        verify_checkpoint(model)
    with refused():
        describe(model)


# --- a job's folder


JOBS = {
    configs.FinetuneJob: {"job": "finetune", "config": {"max_train_steps": 10}, "model": {"base": "x", "base_sha256": ""}, "manifest_digest": "x"},
    configs.GenerateJob: {"job": "generate", "config": {"prompt": "a bell"}, "model": {"base": "x", "base_sha256": ""}, "provenance": {}},
    configs.EvaluateJob: {"job": "evaluate", "config": {}, "subjects": [{"key": "a", "name": "a", "model": {"base": "x"}}], "ears": "x", "ears_name": "x", "dataset": "x", "manifest_digest": ""},
    configs.ListenJob: {"job": "listen", "config": {"prompts": ["a"]}, "subjects": [{"key": "a", "name": "a", "model": {"base": "x"}}]},
    configs.ConvertJob: {"job": "convert", "source": "x", "destination": "y"},
    configs.ExportJob: {"job": "export", "model": {"base": "x"}, "format": "ckpt", "destination": "y"},
}  # fmt: skip


@cases(100, 1000)
@given(st.data())
@bounded
def test_job_files(folder, data) -> None:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    job, plain = data.draw(st.sampled_from(sorted(JOBS.items(), key=lambda pair: pair[0].__name__)))
    (run / configs.CONFIG_FILE).write_bytes(changed(data.draw, plain))
    with refused():
        job.read(run)


@cases(60, 500)
@given(st.data())
@bounded
def test_manifests(folder, data) -> None:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    clip = {"audio": "a.wav", "sha256": "0" * 64, "caption": "a bell", "split": "train", "duration_s": 1.0}
    (run / MANIFEST_FILE).write_bytes(b"\n".join(changed(data.draw, clip) for _ in range(data.draw(st.integers(0, 3)))))
    with refused():
        read_manifest(run)


@cases(100, 1000)
@given(st.data())
@bounded
def test_event_files(folder, data) -> None:
    """Torn and hostile lines: what was whole before them is read, and a writer goes on after it without a hole."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    lines = []
    for seq in range(1, data.draw(st.integers(1, 5))):
        event = {"v": 1, "seq": seq, "attempt": 1, "type": data.draw(st.sampled_from(sorted(TYPES))), "at": "2026-11-22T13:00:00.000+00:00", "data": {"step": seq}}
        lines.append(json.dumps(event).encode() if data.draw(st.integers(0, 3)) else changed(data.draw, event))
    path = run / "events.jsonl"
    path.write_bytes(garbled(data.draw, b"".join(line + b"\n" for line in lines), edits=2))
    with refused():
        EventTail(run).read()
    with EventWriter(run, attempt=2) as events:
        events.write("finished", step=1)
    found = EventTail(run).read()
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    assert found[-1].attempt == 2
