"""Files that are no checkpoint, or worse. Each is refused by name, runs nothing, and costs neither time nor memory.

They are read in a child process with little memory to spare, as the site's own process would read them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu.config import ConvertJob
from gpu.errors import Fault
from gpu.originals.layouts import describe_file
from tests.originals.fixtures import ROOT

MEMORY_BYTES, SECONDS = 3 * 2**29, 20.0
READ = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
from pathlib import Path
from gpu.errors import Fault
from gpu.originals.layouts import describe_file
assert "torch" not in sys.modules
for line in sys.stdin:
    before = time.perf_counter()
    try:
        found = {"facts": describe_file(Path(line.strip())).kind}
    except Fault as fault:
        found = {"code": fault.code, "message": fault.message}
    except BaseException as error:
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**found, "seconds": time.perf_counter() - before, "peak_bytes": peak}), flush=True)
"""


class Runs:
    """A pickle of it runs a command."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], Any]:
        return self.call


@dataclass(frozen=True)
class Stored:
    """A tensor as torch's pickles name it, with numbers of the test's choice."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    key: str = "0"
    numel: int = 4

    def __reduce__(self) -> tuple[Callable[..., Any], Any]:
        place = _Place(self.key, self.numel)
        return torch._utils._rebuild_tensor_v2, (place, self.offset, self.shape, self.stride, False, OrderedDict())


@dataclass(frozen=True)
class _Place:
    key: str
    numel: int


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return ("storage", torch.FloatStorage, obj.key, "cpu", obj.numel) if isinstance(obj, _Place) else None


def pickled(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def torch_zip(path: Path, content: bytes, storages: dict[str, bytes] | None = None, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        for key, values in ({"0": bytes(16)} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", values)
    return path


def safetensors(path: Path, header: bytes, values: bytes = b"", *, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + values)
    return path


@dataclass(frozen=True)
class Reading:
    facts: str = ""
    code: str = ""
    message: str = ""
    error: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


@pytest.fixture(scope="module")
def read():
    """Read a file in the child process."""
    child = subprocess.Popen(
        [sys.executable, "-c", READ, str(MEMORY_BYTES)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip

    def reading(path: Path) -> Reading:
        child.stdin.write(f"{path}\n")
        child.stdin.flush()
        return Reading(**json.loads(child.stdout.readline()))

    yield reading
    child.stdin.close()
    child.wait(timeout=30)


def refused(found: Reading) -> Reading:
    assert not found.error, found.error
    assert found.code.startswith(("checkpoint.", "file.")), found
    assert 20 < len(found.message) < 2000
    assert found.seconds < SECONDS
    assert found.peak_bytes < MEMORY_BYTES
    return found


# --- pickles that run something ---


def _running(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    nested = io.BytesIO()
    torch.save({"x": Runs(os.system, command)}, nested)
    state = b"cbuiltins\nobject\n)\x81}(X\x0c\x00\x00\x00__setstate__cposix\nsystem\nub."
    dotted = b"\x80\x04\x8c\x02os\x8c\x0apath.os.system\x93\x8c" + bytes([len(command)]) + command.encode() + b"\x85R."
    return {
        "reduce": pickled({"state_dict": {"a": Runs(os.system, command)}}),
        "at the top": pickled(Runs(os.system, command)),
        "eval": pickled({"state_dict": {"a": Runs(eval, f"__import__('os').system({command!r})")}}),
        "getattr": pickled(Runs(getattr, Runs(__import__, "os"), "system")),
        "as a key": pickled({"state_dict": [(Runs(os.system, command), 1)]}),
        "in a list beside": pickled({"callbacks": [Runs(exec, f"open({str(marker)!r}, 'w')")], "state_dict": {"a": Stored((2,), (1,))}}),
        "a saved file in a file": pickled(Runs(torch.storage._load_from_bytes, nested.getvalue())),
        "setstate": state,
        "a dotted name": dotted,
        "inst": b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nX" + struct.pack("<I", len(command)) + command.encode() + b"o.",
        "extension": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("kind", sorted(_running(Path("/nowhere"))))
@pytest.mark.parametrize("shell", ["zip", "legacy", "bare"])
def test_what_a_pickle_names_is_never_run(read, tmp_path: Path, kind: str, shell: str) -> None:
    marker = tmp_path / "it ran".replace(" ", "_")
    content = _running(marker)[kind]
    path = tmp_path / "model.ckpt"
    if shell == "zip":
        torch_zip(path, content)
    elif shell == "legacy":
        system = pickled({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}})
        path.write_bytes(pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + system + content + pickled(["0"]) + struct.pack("<q", 4) + bytes(16))
    else:
        path.write_bytes(content)

    refused(read(path))

    assert not marker.exists()


def test_a_whole_model_with_a_command_beside_it_is_read_without_running_it(read, original, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    state = torch.load(original("audioldm-s").path, weights_only=True)["state_dict"]
    torch.save({"state_dict": state, "callbacks": Runs(os.system, f"touch {marker}")}, tmp_path / "model.ckpt")

    found = read(tmp_path / "model.ckpt")

    assert found.facts == "original"
    assert not marker.exists()


# --- numbers that lie ---

LIES = {
    "more values than its storage holds": Stored((5,), (1,)),
    "an offset behind the end": Stored((2,), (1,), offset=3),
    "an offset far behind the end": Stored((2,), (1,), offset=2**62),
    "a negative offset": Stored((2,), (1,), offset=-2),
    "a negative stride": Stored((2,), (-1,), offset=3),
    "the same value everywhere": Stored((1000, 1000), (0, 0)),
    "rows on top of each other": Stored((4, 4), (0, 1)),
    "dimensions whose product overflows": Stored((2**62, 2**62), (1, 1)),
    "a negative dimension": Stored((-4,), (1,)),
    "fewer strides than dimensions": Stored((2, 2), (1,)),
    "hundreds of dimensions": Stored((1,) * 500, (1,) * 500),
    "a storage that is not there": Stored((2,), (1,), key="7"),
    "a storage with a path for a name": Stored((2,), (1,), key="../../../../etc/passwd"),
    "a storage that claims gigabytes": Stored((2**31,), (1,), numel=2**31),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_does_not_lie_in_its_bytes_is_refused(read, tmp_path: Path, lie: str) -> None:
    path = torch_zip(tmp_path / "model.ckpt", pickled({"state_dict": {"model.diffusion_model.out.2.bias": LIES[lie]}}))

    refused(read(path))


def test_thousands_of_tensors_in_the_same_bytes_are_refused(read, tmp_path: Path) -> None:
    state = {f"model.diffusion_model.input_blocks.{number}.0.weight": Stored((4,), (1,)) for number in range(20_000)}

    refused(read(torch_zip(tmp_path / "model.ckpt", pickled({"state_dict": state}))))


def test_a_million_keys_are_refused(read, tmp_path: Path) -> None:
    state = dict.fromkeys(map(str, range(1_000_000)), 0)

    refused(read(torch_zip(tmp_path / "model.ckpt", pickled({"state_dict": state}))))


def test_keys_of_a_megabyte_are_refused_in_few_words(read, tmp_path: Path) -> None:
    state = {f"{number}" + "x" * 2**20: Stored((4,), (1,)) for number in range(8)}

    refused(read(torch_zip(tmp_path / "model.ckpt", pickled({"state_dict": state}))))


# --- pickles that grow ---


def _growing() -> dict[str, bytes]:
    laughs = b"\x80\x02]q\x00(X\x03\x00\x00\x00lole" + b"".join(
        b"]" + b"q" + bytes([level]) + b"(" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9 + b"e" for level in range(1, 60)
    ) + b"."  # fmt: skip
    return {
        "lists of lists of lists": laughs,
        "a hundred thousand deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "tuples a hundred thousand deep": b"\x80\x02N" + b"\x85" * 100_000 + b".",
        "a huge memo index": b"\x80\x02}r\xff\xff\xff\xff.",
        "a text of four gigabytes": b"\x80\x02X\xff\xff\xff\xff" + b"x" * 100 + b".",
        "bytes of exabytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        "a number of two gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "a bytearray of exabytes": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
        "marks without end": b"\x80\x02" + b"(" * 2_000_000,
        "stack underflow": b"\x80\x02aaaa.",
        "copies of copies": b"\x80\x02" + b"}" + b"2" * 2_000_000 + b".",
        "nothing": b"",
        "a stop alone": b".",
        "a cycle": b"\x80\x02]q\x00h\x00a.",
        "a dict that holds itself": b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.",
    }


@pytest.mark.parametrize("kind", _growing())
def test_a_pickle_that_grows_or_breaks_is_refused(read, tmp_path: Path, kind: str) -> None:
    refused(read(torch_zip(tmp_path / "model.ckpt", _growing()[kind])))


# --- archives that lie ---


def test_a_table_of_contents_that_unpacks_to_gigabytes_is_refused(read, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("archive/data.pkl", "w") as member:
        for _ in range(512):
            member.write(bytes(2**20))

    assert path.stat().st_size < 4 * 2**20
    refused(read(path))


def test_an_archive_that_understates_its_content_is_refused(read, tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "model.ckpt", pickled({"state_dict": {"a": Stored((2,), (1,))}}) + bytes(2**20), compression=zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    for signature, size_at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = raw.index(signature)
        raw[at + size_at : at + size_at + 4] = struct.pack("<I", 64)
    path.write_bytes(raw)

    refused(read(path))


@pytest.mark.parametrize("name", ["../../data.pkl", "/etc/data.pkl", "archive\\data.pkl", "data.pkl/", "archive/DATA.PKL", "archive/code/x.py"])
def test_an_archive_with_other_members_is_refused(read, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, pickled({"state_dict": {}}))

    refused(read(path))


def test_an_archive_with_two_tables_of_contents_is_refused_or_read_as_torch_reads_it(read, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for folder in ("archive", "other"):
            archive.writestr(f"{folder}/data.pkl", pickled({"state_dict": {"a": Stored((2,), (1,))}}))
            archive.writestr(f"{folder}/data/0", bytes(16))

    refused(read(path))


def test_values_that_are_compressed_are_refused(read, tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "model.ckpt", pickled({"state_dict": {"a": Stored((4,), (1,))}}), compression=zipfile.ZIP_DEFLATED)

    refused(read(path))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_was_cut_short_is_refused(read, tmp_path: Path, kind: str, share: float) -> None:
    whole, path = tmp_path / "whole", tmp_path / "model.ckpt"
    state = {f"model.diffusion_model.layer{number}.weight": torch.zeros(50, 40) for number in range(20)}
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, whole)
    else:
        torch.save({"state_dict": state}, whole, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])

    refused(read(path))


# --- safetensors that lie ---

HEADERS = {
    "a header of exabytes": (b"{}", 2**62),
    "a header that is a list": (b"[]", None),
    "a header that is no JSON": (b"{nonsense", None),
    "a header of nested lists": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", None),
    "values that overlap": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', None),
    "values behind the end": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}', None),
    "a hole before the values": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', None),
    "negative places": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}', None),
    "a shape that overflows": (b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}', None),
    "a type that is none": (b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}', None),
    "a type that is a list": (b'{"a":{"dtype":[],"shape":[2],"data_offsets":[0,8]}}', None),
    "a shape of truths": (b'{"a":{"dtype":"F32","shape":[true,true],"data_offsets":[0,4]}}', None),
    "infinite places": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,Infinity]}}', None),
    "metadata that is a list": (b'{"__metadata__":[1]}', None),
    "no tensors": (b"{}", None),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_safetensors_header_that_lies_is_refused(read, tmp_path: Path, kind: str) -> None:
    header, length = HEADERS[kind]

    refused(read(safetensors(tmp_path / "model.safetensors", header, bytes(16), length=length)))


# --- other things ---


def _others() -> dict[str, dict[str, Any]]:
    weight = torch.zeros(2, 2)
    return {
        "Stable Diffusion": {"state_dict": {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3), "model.diffusion_model.time_embed.0.weight": weight,
            "first_stage_model.encoder.conv_in.weight": weight, "cond_stage_model.transformer.text_model.final_layer_norm.weight": weight}},
        "Stable Diffusion XL": {"conditioner.embedders.0.model.weight": weight, "model.diffusion_model.out.2.weight": weight},
        "an optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": weight}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "CLAP": {"epoch": 15, "state_dict": {"module.text_branch.embeddings.word_embeddings.weight": weight, "module.logit_scale_a": weight}},
        "HiFi-GAN": {"generator": {"conv_pre.weight_g": weight, "conv_pre.weight_v": weight, "ups.0.weight_g": weight}},
        "a vocoder": {"state_dict": {"conv_pre.weight": weight, "ups.0.weight": weight}},
        "a language model": {"model.layers.0.self_attn.q_proj.weight": weight, "lm_head.weight": weight},
        "a VAE of the training repository": {"state_dict": {"encoder.conv_in.weight": weight, "loss.logvar": weight}},
        "numbers": {"a": 1, "b": [1, 2, 3]},
        "an empty state dict": {"state_dict": {}},
        "half an AudioLDM": {"state_dict": {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(128, 8, 3, 3),
            "cond_stage_model.model.text_branch.pooler.dense.weight": weight}},
        "an AudioLDM of wrong dimensions": {"state_dict": {
            "model.diffusion_model.time_embed.0.weight": torch.zeros(512), "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1),
            "first_stage_model.encoder.conv_in.weight": weight, "first_stage_model.decoder.conv_in.weight": weight,
            "first_stage_model.vocoder.conv_pre.weight": weight, "cond_stage_model.model.text_branch.pooler.dense.weight": weight}},
    }  # fmt: skip


@pytest.mark.parametrize("what", _others())
def test_another_kind_of_model_is_refused_by_what_it_is(read, tmp_path: Path, what: str) -> None:
    torch.save(_others()[what], tmp_path / "model.ckpt")

    found = refused(read(tmp_path / "model.ckpt"))

    if what in ("Stable Diffusion", "CLAP", "an optimizer", "a vocoder"):
        assert what.split()[-1].lower() in found.message.lower()


@pytest.mark.parametrize("start", [b"", b"\0" * 4096, b"random bytes " * 100, b"PK\x05\x06" + bytes(18), b"<!DOCTYPE html><html>", b"\x80\x02", b"{}"])
def test_bytes_that_are_nothing_are_refused(read, tmp_path: Path, start: bytes) -> None:
    (tmp_path / "model.ckpt").write_bytes(start)

    refused(read(tmp_path / "model.ckpt"))


def test_what_is_not_a_file_is_refused_at_once(read, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("folder.ckpt", "loop.ckpt", "pipe.ckpt", "nothing.ckpt", "dangling.ckpt", "zeros.ckpt")}
    places["folder.ckpt"].mkdir()
    places["loop.ckpt"].symlink_to("loop.ckpt")
    os.mkfifo(places["pipe.ckpt"])
    places["dangling.ckpt"].symlink_to("nowhere")
    places["zeros.ckpt"].symlink_to("/dev/zero")

    for path in places.values():
        refused(read(path))


def test_a_file_that_may_not_be_read_is_refused(read, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path = torch_zip(tmp_path / "model.ckpt", pickled({}))
    path.chmod(0)

    refused(read(path))


# --- honest files in an unusual form ---


@pytest.mark.parametrize("form", ["bare", "fp16", "bf16", "legacy"])
def test_an_honest_file_in_another_form_is_known(original, tmp_path: Path, form: str) -> None:
    state = torch.load(original("audioldm-s").path, weights_only=True)["state_dict"]
    if form in ("fp16", "bf16"):
        half = torch.float16 if form == "fp16" else torch.bfloat16
        state = {name: tensor.to(half) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    content = state if form == "bare" else {"state_dict": state}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=form != "legacy")

    facts = describe_file(tmp_path / "model.ckpt")

    assert (facts.layout, facts.heads) == ("A", (1, 2, 3, 5))
    assert facts.dtype == {"fp16": "F16", "bf16": "BF16"}.get(form, "F32")


@pytest.mark.parametrize("form", ["module.", "_orig_mod.", "under model", "under ema"])
def test_weights_in_what_a_trainer_wraps_them_in_come_in_and_go_out_under_their_names(original, tmp_path: Path, form: str) -> None:
    from gpu.config import ExportJob, ModelRef
    from gpu.originals.convert import convert
    from gpu.originals.export import export
    from gpu.originals.tensors import open_tensors

    small = original("audioldm-s")
    state = torch.load(small.path, weights_only=True)["state_dict"]
    prefix, _, key = form.partition("under ")
    state = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({key or "state_dict": state}, tmp_path / "wrapped.ckpt")
    job = ConvertJob(source=str(tmp_path / "wrapped.ckpt"), destination=str(tmp_path / "model"), tokenizers=str(small.tokenizers))
    facts = convert(job, lambda *_: None)
    assert f"`{prefix or key}`" in facts.original["facts"]["warnings"][0]
    assert f"`{prefix or key}`" in (tmp_path / "model" / "README.md").read_text()

    export(ExportJob(model=ModelRef(base=str(tmp_path / "model")), format="ckpt", destination=str(tmp_path / "again.ckpt")), lambda *_: None)
    again = torch.load(tmp_path / "again.ckpt", weights_only=True)["state_dict"]
    assert list(again) == list(state)
    assert all(torch.equal(again[name], state[name]) for name in state)
    with open_tensors(tmp_path / "again.ckpt") as file:
        assert "model.diffusion_model.out.2.weight" in file.names
    for path in tmp_path.glob("*.ckpt"):
        path.unlink()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_in.weight", "scale_factor"])
def test_weights_that_are_no_numbers_are_refused_by_name(original, tmp_path: Path, name: str, value: float) -> None:
    """As a run that diverged leaves them: the file opens, the conversion stops and leaves nothing."""
    from gpu.originals.convert import convert

    state = torch.load(original("audioldm-s").path, weights_only=True)["state_dict"]
    state[name].view(-1)[-1] = value
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    job = ConvertJob(
        source=str(tmp_path / "model.ckpt"), destination=str(tmp_path / "model"), weights="raw", tokenizers=str(original("audioldm-s").tokenizers)
    )

    with pytest.raises(Fault, match=r"conv_out\.weight|decoder\.conv_in\.weight|out\.2\.weight|scale_factor") as refusal:
        convert(job, lambda *_: None)

    assert refusal.value.code.startswith("checkpoint.")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]
    (tmp_path / "model.ckpt").unlink()
