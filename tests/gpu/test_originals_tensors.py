"""The reader of foreign files: values as torch has them, nothing run, nothing believed."""

from __future__ import annotations

import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gpu.errors import Fault
from gpu.originals.pickles import PickleDamage, read_pickle
from gpu.originals.tensors import SAFETENSORS, TORCH_LEGACY, TORCH_ZIP, Entry, open_tensors
from gpu.originals.writing import Planned, write_safetensors, write_torch

NUMPY = {torch.float32: "F32", torch.int32: "I32", torch.bool: "BOOL", torch.float16: "F16", torch.int64: "I64"}


def state() -> OrderedDict[str, torch.Tensor]:
    """Every kind of tensor that a checkpoint may hold: transposed, sliced, tied, empty, without dimensions, of several types."""
    found = OrderedDict(
        plain=torch.arange(12.0).reshape(3, 4), transposed=torch.arange(6.0).reshape(2, 3).t(), scalar=torch.tensor(2.5),
        count=torch.tensor(7, dtype=torch.int32), half=torch.arange(5).half(), parameter=torch.nn.Parameter(torch.ones(2, 1, 1)),
        empty=torch.zeros(0, 3), flags=torch.tensor([True, False]), slice=torch.arange(10.0)[3:7], long=torch.arange(4),
    )  # fmt: skip
    found["tied"] = found["plain"]
    return found


def write(folder: Path, kind: str) -> Path:
    path = folder / "model.ckpt"
    if kind == SAFETENSORS:
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in state().items()}, path)
    else:
        about = {"state_dict": state(), "global_step": 5, "epoch": 2, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}
        torch.save(about, path, _use_new_zipfile_serialization=kind == TORCH_ZIP)
    return path


@pytest.mark.parametrize("kind", [TORCH_ZIP, TORCH_LEGACY, SAFETENSORS])
def test_every_tensor_has_the_values_that_torch_reads(tmp_path, kind):
    with open_tensors(write(tmp_path, kind)) as file:
        assert file.format == kind
        assert file.names["parameter"] == Entry((2, 1, 1), "F32")
        assert file.names["count"] == Entry((), "I32")
        for name, tensor in state().items():
            expected = tensor.detach().numpy()
            assert np.array_equal(file.array(name), expected), name
            assert b"".join(bytes(piece) for piece in file.chunks(name, chunk_bytes=8)) == np.ascontiguousarray(expected).tobytes(), name


def test_bfloat16_comes_as_its_bits(tmp_path):
    torch.save({"x": torch.tensor([1.0, -2.0], dtype=torch.bfloat16)}, tmp_path / "x.pth")
    with open_tensors(tmp_path / "x.pth") as file:
        assert file.names["x"].dtype == "BF16"
        assert file.array("x").tolist() == [0x3F80, 0xC000]


@pytest.mark.parametrize("kind", [TORCH_ZIP, TORCH_LEGACY])
def test_plain_values_beside_the_weights_are_told_and_the_optimizer_is_not(tmp_path, kind):
    with open_tensors(write(tmp_path, kind)) as file:
        assert file.extras == {"global_step": 5, "epoch": 2}
        assert file.names.keys() == state().keys()


def test_an_array_cannot_be_written_to(tmp_path):
    with open_tensors(write(tmp_path, TORCH_ZIP)) as file, pytest.raises(ValueError):
        file.array("plain")[0] = 1


class Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_command_in_the_pickle_is_named_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"state_dict": state(), "callbacks": [Runs(f"touch {marker}")]}, tmp_path / "x.ckpt")
    with open_tensors(tmp_path / "x.ckpt") as file:
        assert file.foreign == ["posix.system"]
        assert len(file.names) == len(state())
    assert not marker.exists()


def test_an_index_of_two_to_the_32_into_the_memo_costs_nothing():
    # Python's own unpickler reserves 64 GB for it.
    assert read_pickle(b"\x80\x02}r\xff\xff\xff\xff.").value == {}


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x02", b"\x80\x02}", b".", b"\x80\x02X\xff\xff\xff\x7fab.", b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
     b"\x80\x02h\x05.", b"\x80\x02(.", b"\x80\x02K\x01K\x02s.", b"\xff", b"\x80\x02}(K\x01u.", b"I" + b"9" * 70_000 + b"\n."],
    ids=range(12),
)  # fmt: skip
def test_a_pickle_that_makes_no_sense_is_damage(data):
    with pytest.raises(PickleDamage):
        read_pickle(data)


def test_nesting_of_any_depth_neither_recurses_nor_crashes():
    depth = 200_000
    assert isinstance(read_pickle(b"\x80\x02" + b"]" * 1 + b"\x85" * depth + b".").value, tuple)


def test_copies_asked_for_again_and_again_are_counted():
    # An OrderedDict of one long list, called 2000 times.
    pairs = b"](" + b"X\x01\x00\x00\x00aK\x01\x86" * 5_000 + b"eq\x01"
    call = b"ccollections\nOrderedDict\nh\x01\x85R0"
    with pytest.raises(PickleDamage, match="operations"):
        read_pickle(b"\x80\x02" + pairs + call * 2_000 + b".")


@pytest.mark.parametrize("kind", [TORCH_ZIP, TORCH_LEGACY, SAFETENSORS])
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    whole = write(tmp_path, kind).read_bytes()
    cut = tmp_path / "cut.ckpt"
    for end in [*range(0, 200, 7), *range(200, len(whole), 61), len(whole) - 1]:
        cut.write_bytes(whole[:end])
        with pytest.raises(Fault) as caught:
            open_tensors(cut).close()
        assert caught.value.code in ("checkpoint.incomplete", "checkpoint.unrecognised", "checkpoint.malformed"), end


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from([TORCH_ZIP, TORCH_LEGACY, SAFETENSORS]), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=6))
def test_flipped_bits_end_in_a_fault_or_in_arrays_within_the_file(tmp_path, kind, flips):
    content = bytearray(write(tmp_path, kind).read_bytes())
    for place, mask in flips:
        content[int(place * (len(content) - 1))] ^= mask
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(content)
    try:
        with open_tensors(path) as file:
            for name, entry in file.names.items():
                assert file.array(name).shape == entry.shape
                assert entry.size_bytes <= file.size_bytes
    except Fault as fault:
        assert fault.code.startswith("checkpoint.")


def test_values_that_changed_on_the_disk_are_told_by_their_checksum(tmp_path):
    path = write(tmp_path, TORCH_ZIP)
    with open_tensors(path) as file:
        place = file.blocks[0].offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with open_tensors(path) as file, pytest.raises(Fault, match="CRC-32") as caught:
        file.verify()
    assert caught.value.code == "checkpoint.corrupt"


def test_the_checksum_of_a_whole_file_is_its_sha256(tmp_path):
    import hashlib

    path = write(tmp_path, TORCH_ZIP)
    seen = []
    with open_tensors(path) as file:
        assert file.verify(seen.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen[-1] == path.stat().st_size


def test_packed_values_are_refused_with_what_to_do(tmp_path):
    path, packed = write(tmp_path, TORCH_ZIP), tmp_path / "packed.ckpt"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    with pytest.raises(Fault) as caught:
        open_tensors(packed)
    assert caught.value.code == "checkpoint.compressed"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"), (b"\0" * 600, "nothing but zeros"), (b"<!DOCTYPE html><html>", "web page"), (b"RIFF....WAVE", "sound"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"\x1f\x8b\x08" + b"x" * 20, "gzip"), (b"GGUF" + b"x" * 20, "GGUF"),
        (b"\x80\x04N.", "none of torch's"), (b"hello there", "begins with"),
    ],
)  # fmt: skip
def test_what_a_file_is_instead_is_said(tmp_path, content, words):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(Fault, match=words) as caught:
        open_tensors(tmp_path / "x.ckpt")
    assert caught.value.code == "checkpoint.unrecognised"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"net_g": {"a": torch.ones(1)}, "iter_num": 5}, "holds net_g, iter_num"), ({"state": {}, "param_groups": []}, "optimizer"),
        ([torch.ones(1)], "a list"), (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"), ({}, "nothing"),
    ],
)  # fmt: skip
def test_a_torch_file_without_a_state_dict_says_what_it_holds(tmp_path, value, words):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(Fault, match=words):
        open_tensors(tmp_path / "x.pt")


UNET = "model.diffusion_model.out.2.bias"


@pytest.mark.parametrize(
    ("value", "prefix", "words"),
    [
        ({"state_dict": {f"module.{UNET}": 1, "module.betas": 2}}, "module.", "`module.`"),
        ({"state_dict": {f"_orig_mod.module.{UNET}": 1, "_orig_mod.module.betas": 2}}, "_orig_mod.module.", "`_orig_mod.`, `module.`"),
        ({"model": {UNET: 1, "betas": 2}, "optimizer": {"lr": 1}}, "", "`model`"),
        ({"ema": {UNET: 1, "betas": 2}, "weights": {UNET: 3, "betas": 4}}, "", "`weights`; those under `ema` were not read"),
        ({"params": {UNET: 1, "betas": 2}}, "", "`params`"),
        ({"module": {"state_dict": {UNET: 1, "betas": 2}}}, "", "`module.state_dict`"),
        ({f"weights.{UNET}": 1, "weights.betas": 2}, "weights.", "`weights.`"),
        ({f"model.{UNET}": 1, "model.betas": 2}, "model.", "`model.`"),
    ],
)  # fmt: skip
def test_what_a_trainer_wraps_a_model_in_is_taken_off_and_said(tmp_path, value, prefix, words):
    def filled(item):
        return {key: filled(inner) for key, inner in item.items()} if isinstance(item, dict) else torch.tensor([float(item)])

    torch.save(filled(value), tmp_path / "x.ckpt")
    with open_tensors(tmp_path / "x.ckpt") as file:
        assert list(file.names) == [UNET, "betas"]
        assert file.array("betas") - file.array(UNET) == 1
        assert file.stored.get("betas", "betas") == f"{prefix}betas"
        assert len(file.wrapped) == 1 and words in file.wrapped[0]


def test_what_torch_compile_marks_inside_a_name_is_taken_off(tmp_path):
    names = ["model._orig_mod.diffusion_model.out.2.bias", "model_ema._orig_moddiffusion_modelout2bias", "betas"]
    save_file({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors")
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert set(file.names) == {UNET, "model_ema.diffusion_modelout2bias", "betas"}


@pytest.mark.parametrize("names", [["module.a", "b"], ["model.diffusion_model.a", "model.b"], ["model.layers.0.a", "model.layers.1.a"], ["a._orig_mod.b", "a.b"]])
def test_names_that_do_not_agree_or_belong_to_the_model_stay(tmp_path, names):
    save_file({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors")
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert (set(file.names), file.wrapped, file.stored) == (set(names), (), {})


def test_a_missing_file_is_the_users_to_find(tmp_path):
    with pytest.raises(Fault) as caught:
        open_tensors(tmp_path / "nothing.ckpt")
    assert caught.value.code == "file.unusable"


def test_safetensors_with_a_hole_are_refused(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(Fault) as caught:
        open_tensors(tmp_path / "x.safetensors")
    assert caught.value.code == "checkpoint.malformed"


def planned() -> list[Planned]:
    return [
        Planned(name, Entry(tuple(tensor.shape), NUMPY[tensor.dtype]), lambda tensor=tensor: [tensor.detach().contiguous().numpy().tobytes()])
        for name, tensor in state().items()
    ]


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written_without_it(tmp_path, mmap):
    write_torch(tmp_path / "x.ckpt", planned(), extras={"global_step": 5}, on_bytes=lambda size: None)
    found = torch.load(tmp_path / "x.ckpt", weights_only=True, mmap=mmap)
    assert found["global_step"] == 5
    assert found["state_dict"].keys() == state().keys()
    for name, tensor in state().items():
        assert torch.equal(found["state_dict"][name], tensor), name
        assert found["state_dict"][name].dtype == tensor.dtype
    assert zipfile.ZipFile(tmp_path / "x.ckpt").testzip() is None


def test_safetensors_reads_what_is_written_without_it(tmp_path):
    written = []
    write_safetensors(tmp_path / "x.safetensors", planned(), metadata={"format": "pt"}, on_bytes=written.append)
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in state().items())
    assert sum(written) == sum(tensor.entry.size_bytes for tensor in planned())
