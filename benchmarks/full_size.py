"""What the published models cost at their full size: `python -m benchmarks.full_size MODEL… [--home FOLDER]`.

Every stage runs by the product's own path (`python -m gpu finetune`, `python -m gpu generate`) in a child process that is looked
at twenty times a second; its events say what it was doing. Beside each kind of step stands the bare one: the UNet, the loss,
backward and AdamW, in a child of its own. Weights are random (`benchmarks.published`): shapes alone decide what things cost.

`--home` keeps the models (up to 5 GB each) and the cache for the next call. The rows that estimates rest on are written to
gpu/measurements.json as well.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.published import MODELS, parts, unet_config
from benchmarks.report import RESULTS, machine
from benchmarks.training_step import bare_steps, write_run
from gpu.config import FinetuneConfig, FinetuneJob, GenerateConfig, GenerateJob, ModelRef
from gpu.events import CHECKPOINT, PROGRESS, WAITING, Event, read_events

ROOT = Path(__file__).parents[1]
MEASUREMENTS = ROOT / "gpu" / "measurements.json"
LOOK_EVERY_S = 0.05
STEPS = 3
CASES = [
    {"method": "lora", "train_batch_size": 1, "audio_length_in_s": 10.24},
    {"method": "lora", "train_batch_size": 2, "audio_length_in_s": 10.24},
    {"method": "lora", "train_batch_size": 2, "audio_length_in_s": 2.56},
    {"method": "lora", "train_batch_size": 2, "audio_length_in_s": 10.24, "gradient_checkpointing": True},
    {"method": "full", "train_batch_size": 1, "audio_length_in_s": 10.24},
    {"method": "full", "train_batch_size": 2, "audio_length_in_s": 10.24},
    {"method": "full", "train_batch_size": 2, "audio_length_in_s": 2.56, "use_ema": True},
]


@dataclass(frozen=True, kw_only=True)
class Look:
    """A child process at one moment: what of its memory is its own (not a file's), all of it, and the CPU seconds so far."""

    at: float
    anonymous_bytes: int
    resident_bytes: int
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A child process from its start to its end."""

    returncode: int
    wall_s: float
    max_resident_bytes: int
    looks: list[Look]

    def between(self, start: float, end: float) -> dict[str, float]:
        """Seconds and peaks of a stretch of its life."""
        looks = [look for look in self.looks if start <= look.at <= end] or [min(self.looks, key=lambda look: abs(look.at - end))]
        return {
            "wall_s": end - start,
            "cpu_s": looks[-1].cpu_s - looks[0].cpu_s,
            "anonymous_bytes": max(look.anonymous_bytes for look in looks),
            "resident_bytes": max(look.resident_bytes for look in looks),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["audioldm2", "audioldm-m", "audioldm-48k"], metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--home", type=Path, help="where models and cache are kept for the next call; a temporary folder when not given")
    parser.add_argument("--bare", nargs=3, metavar=("MODEL_FOLDER", "RUN_FOLDER", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of the kinds of step to measure, from 0; all when not given")
    parser.add_argument("--without-bare", action="store_true", help="leave the bare steps out")
    parser.add_argument("--generation", action="store_true", help="with --cases: also a generation and a resume")
    parser.add_argument("--write-measurements", action="store_true", help="only write gpu/measurements.json anew from the results")
    arguments = parser.parse_args()
    if arguments.write_measurements:
        write_measurements()
        return
    if arguments.bare:
        print(json.dumps(_bare(*arguments.bare)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.home or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        cases = CASES if arguments.cases is None else [CASES[number] for number in arguments.cases]
        for name in arguments.models:
            measure_model(name, home, cases, with_bare=not arguments.without_bare)
            if arguments.cases is None or arguments.generation:
                keep(measure_generation(name, home / name, home))
                keep(measure_resume(name, home / name, home))
    write_measurements()


def measure_model(name: str, home: Path, cases: list[dict[str, Any]], *, with_bare: bool) -> None:
    model = home / name
    if not (model / "model_index.json").is_file():
        # In a process of its own: what it needed to build is given back.
        subprocess.run([sys.executable, "-m", "benchmarks.published", name, str(model)], cwd=ROOT, check=True)
    for values in cases:
        keep(measure_case(name, model, home, values, with_bare=with_bare))


def measure_case(name: str, model: Path, home: Path, values: dict[str, Any], *, with_bare: bool) -> dict[str, Any]:
    """A short run: opening, caching, the sound at step 0, steps, a checkpoint and the last one; and the bare step."""
    run = new_run(home, model, **values)
    watched = watch(["finetune", str(run)])
    events = list(read_events(run))
    if watched.returncode != 0:
        raise SystemExit(f"{name} {values}: {events[-1].data}")
    ends = [event for event in events if event.type == PROGRESS]
    steps = [
        watched.between(seconds(one), seconds(other))
        for one, other in pairwise(ends)
        if not any(event.type in (WAITING, CHECKPOINT) for event in events if one.seq < event.seq < other.seq)
    ]
    started = next(event for event in events if event.type == "started")
    result = {
        "settings": {"model": name, "what": "training", **values},
        "stages": stages(watched, events),
        "step": {**{key: median(step[key] for step in steps) for key in ("wall_s", "cpu_s")}, "repetitions": len(steps),
                 "anonymous_bytes": max(step["anonymous_bytes"] for step in steps)},
        "peak": {"anonymous_bytes": max(look.anonymous_bytes for look in watched.looks), "resident_bytes": watched.max_resident_bytes},
        "sizes": {
            "trainable_parameters": started.data["trainable_parameters"],
            "total_parameters": started.data["total_parameters"],
            "checkpoint_bytes": next(event.data["size_bytes"] for event in events if event.type == CHECKPOINT),
        },
        "bare": bare(model, run) if with_bare else None,
    }  # fmt: skip
    shutil.rmtree(run)
    return result


def measure_generation(name: str, model: Path, home: Path) -> dict[str, Any]:
    """A sound of 10.24 s: 20 steps of DPM-Solver++, one candidate."""
    folder = Path(tempfile.mkdtemp(prefix="generation-", dir=home))
    values = {"num_inference_steps": 20, "sampler": "dpmsolver++", "num_waveforms_per_prompt": 1, "audio_length_in_s": 10.24}
    GenerateJob(config=GenerateConfig.parse({"prompt": "Rain on a tin roof", **values}), model=ModelRef(base=str(model))).write(folder)
    watched = watch(["generate", str(folder)])
    events = list(read_events(folder))
    if watched.returncode != 0:
        raise SystemExit(f"{name} {values}: {events[-1].data}")
    ends = [event for event in events if event.type == PROGRESS]
    steps = [watched.between(seconds(one), seconds(other)) for one, other in pairwise(ends)]
    shutil.rmtree(folder)
    return {
        "settings": {"model": name, "what": "generation", **values},
        "stages": stages(watched, events),
        "step": {key: median(step[key] for step in steps) for key in ("wall_s", "cpu_s")} | {"repetitions": len(steps)},
        "wall_s": watched.wall_s,
        "peak": {"anonymous_bytes": max(look.anonymous_bytes for look in watched.looks), "resident_bytes": watched.max_resident_bytes},
    }


def measure_resume(name: str, model: Path, home: Path) -> dict[str, Any]:
    """A full run with a moving average that stops after two steps, and goes on: everything is read back."""
    values = {"method": "full", "train_batch_size": 1, "audio_length_in_s": 2.56, "use_ema": True}
    run = new_run(home, model, max_train_steps=2, **values)
    if watch(["finetune", str(run)]).returncode != 0:
        raise SystemExit(f"{name}: {list(read_events(run))[-1].data}")
    first = list(read_events(run))[-1].seq
    job = FinetuneJob.read(run)
    config = FinetuneConfig.parse({**job.config.to_dict(), "max_train_steps": 4, "validation_epochs": 1_000_000})
    FinetuneJob(config=config, model=job.model, manifest_digest=job.manifest_digest, cache_dir=job.cache_dir).write(run)
    watched = watch(["finetune", str(run)])
    events = [event for event in read_events(run) if event.seq > first]
    if watched.returncode != 0:
        raise SystemExit(f"{name}: {events[-1].data}")
    shutil.rmtree(run)
    return {
        "settings": {"model": name, "what": "resume", **values},
        "stages": stages(watched, events),
        "peak": {"anonymous_bytes": max(look.anonymous_bytes for look in watched.looks), "resident_bytes": watched.max_resident_bytes},
    }


def new_run(home: Path, model: Path, **values: Any) -> Path:
    config = FinetuneConfig.parse({
        "max_train_steps": STEPS, "validation_prompts": ["Rain"], "num_inference_steps": 1, "num_waveforms_per_prompt": 1,
        "sampler": "ddim", "validation_epochs": 1_000_000, "checkpointing_steps": 1_000_000, **values,
    })  # fmt: skip
    return write_run(Path(tempfile.mkdtemp(prefix="run-", dir=home)) / "run", model, config, cache=home / "cache", clips=2)


def watch(arguments: list[str]) -> Watched:
    """Run `python -m gpu …` and look at it until it ends."""
    began = time.time()
    child = subprocess.Popen([sys.executable, "-m", "gpu", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    process = psutil.Process(child.pid)
    looks: list[Look] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_EVERY_S):
            try:
                memory, times = process.memory_info(), process.cpu_times()
            except psutil.Error:
                return
            looks.append(
                Look(at=time.time(), anonymous_bytes=memory.rss - memory.shared, resident_bytes=memory.rss, cpu_s=times.user + times.system)
            )

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    _, status, usage = os.wait4(child.pid, 0)
    ended.set()
    looker.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    return Watched(returncode=child.returncode, wall_s=time.time() - began, max_resident_bytes=usage.ru_maxrss * 1024, looks=looks)


def stages(watched: Watched, events: list[Event]) -> dict[str, dict[str, float]]:
    """Seconds and peak memory by what the events say was going on."""
    found: dict[str, dict[str, float]] = {}
    for event, following in pairwise(events):
        name = event.data["stage"] if event.type == WAITING else "training" if event.type == PROGRESS else event.type
        part = watched.between(seconds(event), seconds(following))
        before = found.setdefault(name, dict.fromkeys(part, 0.0))
        for key, value in part.items():
            before[key] = before[key] + value if key.endswith("_s") else max(before[key], value)
    return found


def bare(model: Path, run: Path) -> dict[str, float]:
    """The bare step's seconds and peak, in a child: the median of two."""
    command = [sys.executable, "-m", "benchmarks.full_size", "--bare", str(model), str(run), "2"]
    environment = {**os.environ, "GOMP_SPINCOUNT": "10000"}  # as gpu.__main__ sets it for the product
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def _bare(model: str, run: str, steps: str) -> dict[str, float]:
    job = FinetuneJob.read(Path(run))
    pairs = bare_steps(Path(run), Path(model), job.config, cache=Path(str(job.cache_dir)), steps=int(steps), alone=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"wall_s": median(wall for wall, _ in pairs), "cpu_s": median(cpu for _, cpu in pairs), "resident_bytes": peak}


def write_measurements() -> None:
    """What estimates rest on (`gpu.preflight`): the sizes of the published models, and what a step of each measured kind took."""
    rows = []
    for result in json.loads((RESULTS / "full_size.json").read_text()):
        settings = dict(result["settings"])
        if settings.pop("what") != "training" or result["step"]["repetitions"] < 2:
            continue
        rows.append({
            "model": settings.pop("model"), "config": settings, "cpu_s": round(result["step"]["cpu_s"], 3),
            "wall_s": round(result["step"]["wall_s"], 3), "resident_bytes": result["peak"]["resident_bytes"],
            "device": result["machine"]["device"],
        })  # fmt: skip
    small = json.loads(MEASUREMENTS.read_text(encoding="utf-8"))["small"]
    content = {"models": {name: model_facts(name) for name in MODELS}, "rows": rows, "small": small}
    MEASUREMENTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def model_facts(name: str) -> dict[str, Any]:
    """What an estimate needs to know of a published model, without its weights."""
    with torch.device("meta"):
        built = {part: build() for part, kind, build in parts(name) if "Tokenizer" not in kind and "Feature" not in kind}
    vocoder = built["vocoder"].config
    levels = len(built["vae"].config.block_out_channels)
    return {
        "parameters": {part: sum(weight.numel() for weight in module.parameters()) for part, module in built.items() if part != "scheduler"},
        "sample_rate_hz": vocoder.sampling_rate, "n_mels": vocoder.model_in_dim, "latent_scale": 2 ** (levels - 1),
        "hop_length": math.prod(vocoder.upsample_rates), "latent_channels": built["vae"].config.latent_channels, "unet": unet_config(name),
    }  # fmt: skip


def seconds(event: Event) -> float:
    return datetime.fromisoformat(event.at).timestamp()


def keep(result: dict[str, Any]) -> None:
    """Print it, and put it into results/full_size.json in place of an earlier one with the same settings."""
    print(json.dumps({key: value for key, value in result.items() if key != "stages"}), flush=True)
    path = RESULTS / "full_size.json"
    earlier = json.loads(path.read_text()) if path.is_file() else []
    kept = [other for other in earlier if other["settings"] != result["settings"]]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([*kept, {**result, "machine": machine()}], indent=1) + "\n")


if __name__ == "__main__":
    main()
