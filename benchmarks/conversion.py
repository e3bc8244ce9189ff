"""What it costs to bring an original checkpoint in and to write it out again: `python -m benchmarks.conversion [--full-size] [FAMILY …]`.

The file has the names, shapes and types that the original code itself gives a model of that family, and random values. Recognising,
converting and exporting are processes of their own, measured from outside; the floor is a plain copy of the same file to the same
disk. Of memory, what is mapped from files can be taken back at any time: the anonymous part is what a process needs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import RobertaTokenizer, T5Tokenizer

from benchmarks.report import Timing, report
from gpu.originals.tensors import Entry
from gpu.originals.writing import Planned, write_torch
from tests.originals.fixtures import MISSING, PACKAGES, OriginalCode

DTYPES = {"float32": "F32", "int64": "I64", "int32": "I32"}
PIECE_BYTES = 8 * 2**20
SAMPLE_EVERY_S = 0.02
VOCABULARIES = {False: (300, 160), True: (50_265, 32_100)}  # RoBERTa, T5: small, full size
TWINS = ("cond_stage_models.0.cond_stage_models.1.model.", "cond_stage_models.1.model.")  # T5 lies twice in a file of AudioLDM 2


@dataclass(frozen=True, kw_only=True)
class Cost:
    wall_s: float
    cpu_s: float
    resident_bytes: int
    anonymous_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=["audioldm-m", "audioldm2"], metavar="FAMILY")
    parser.add_argument("--full-size", action="store_true", help="as published: 4.6 and 8.5 GB a file, three times that on the disk")
    parser.add_argument("--home", type=Path, help="where the files go; removed afterwards")
    arguments = parser.parse_args()
    if not (PACKAGES / "audioldm2").is_dir():
        print(f"SKIPPED: {MISSING}")
        return
    code = OriginalCode(*["--full-size"] if arguments.full_size else [])
    for family in arguments.families:
        with tempfile.TemporaryDirectory(dir=arguments.home, prefix="conversion-") as home:
            layout = Path(home) / "layout.json"
            code.ask(do="layout", family=family, to=layout)
            measure(family, Path(home), json.loads(layout.read_text()), full_size=arguments.full_size)
    code.close()


def measure(family: str, home: Path, layout: dict[str, list], *, full_size: bool) -> None:
    source, folder, exported = home / "original.ckpt", home / "model", home / "exported.ckpt"
    write_checkpoint(source, layout)
    write_tokenizers(home / "tokenizers", *VOCABULARIES[full_size])
    size = source.stat().st_size
    costs = {"recognise": run("inspect", source)}
    costs["convert"] = run("convert", source, folder, "--tokenizers", home / "tokenizers")
    kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    costs["plain copy"] = copied(source, home / "copy")
    costs["export to the original layout"] = run("convert", folder, exported)

    rows = {name: Timing(wall_s=cost.wall_s, cpu_s=cost.cpu_s, repetitions=1) for name, cost in costs.items()}
    ratios = {"convert / plain copy, wall": costs["convert"].wall_s / costs["plain copy"].wall_s,
              "export / plain copy, wall": costs["export to the original layout"].wall_s / costs["plain copy"].wall_s,
              "folder / file, bytes": kept / size, "exported / file, bytes": exported.stat().st_size / size}  # fmt: skip
    for name, cost in costs.items():
        if name != "recognise":
            ratios[f"{name}, MB/s"] = size / 1e6 / cost.wall_s
        if name != "plain copy":
            ratios[f"{name}, peak resident MB"] = cost.resident_bytes / 1e6
            ratios[f"{name}, peak anonymous MB"] = cost.anonymous_bytes / 1e6
    settings = {"family": family, "size": "full" if full_size else "small", "file_bytes": size, "tensors": len(layout)}
    report("conversion", settings, rows, ratios)


def run(*arguments: object) -> Cost:
    """`python -m gpu …`, watched from outside."""
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gpu", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    anonymous = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        anonymous = max(anonymous, anonymous_bytes(process.pid))
        time.sleep(SAMPLE_EVERY_S)
    wall = time.perf_counter() - began
    if status:
        raise SystemExit(f"{arguments} failed: {process.stderr.read().decode()}")
    return Cost(wall_s=wall, cpu_s=usage.ru_utime + usage.ru_stime, resident_bytes=usage.ru_maxrss * 1024, anonymous_bytes=anonymous)


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def copied(source: Path, target: Path) -> Cost:
    """As cheap as writing such a file can be: copied, synced, nothing looked at."""
    began, cpu = time.perf_counter(), time.process_time()
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    cost = Cost(wall_s=time.perf_counter() - began, cpu_s=time.process_time() - cpu, resident_bytes=0, anonymous_bytes=0)
    target.unlink()
    return cost


def write_checkpoint(path: Path, layout: dict[str, list]) -> None:
    tensors = []
    for name, (shape, dtype) in layout.items():
        entry = Entry(tuple(shape), DTYPES[dtype])
        tensors.append(Planned(name, entry, lambda name=name, entry=entry: values(name, entry)))
    write_torch(path, tensors, extras={}, on_bytes=lambda _: None)


def values(name: str, entry: Entry) -> Iterator[bytes]:
    """Values that the importer believes where it looks, random ones elsewhere; the same for the same name."""
    known = {"betas": np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2, "scale_factor": np.array(0.4321), "logvar": np.zeros(1000)}
    if name in known or entry.dtype != "F32":
        kind = {"F32": "<f4", "I64": "<i8", "I32": "<i4"}[entry.dtype]
        yield np.broadcast_to(known.get(name, np.array(1)), entry.shape).astype(kind).tobytes()
        return
    source = np.random.default_rng(zlib.crc32(name.replace(*TWINS).replace("encoder.embed_tokens", "shared").encode()))
    left = entry.numel
    while left:
        count = min(left, PIECE_BYTES // 4)
        yield source.standard_normal(count, dtype=np.float32).tobytes()
        left -= count


def write_tokenizers(folder: Path, clap_words: int, t5_words: int) -> None:
    """Words without meaning, as many as the embedding tables have rows."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {word: number for number, word in enumerate([*special, *(f"w{number}" for number in range(clap_words - len(special)))])}
    RobertaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder / "roberta-base")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁w{number}", -10.0) for number in range(t5_words - 3))]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder / "flan-t5-large")


if __name__ == "__main__":
    main()
