"""How cost grows, one quantity after the other: `python -m benchmarks.growth [--only CURVE ...]`; `docs/growth.md` shows the result.

Each point is measured on the real thing: imports on a database of their own, steps and sounds with the starter, browsers as websockets of a
real server. Seconds are wall seconds; beside them the processor's, which hardly change when others use the machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "training_app/builtin/starter"
CLIP_S = 2.6

Point = dict[str, float]


def import_clips() -> Iterator[Point]:
    from django.core.management import call_command

    from benchmarks.imports import import_it, timed, write_zip

    call_command("migrate", verbosity=0)
    for clips in (100, 500, 2_000):
        with tempfile.TemporaryDirectory() as folder:
            source = write_zip(Path(folder) / "sounds.zip", clips, 4.5)
            yield {"x": clips, **timed(lambda source=source, clips=clips: import_it(source, clips))}


def cache_clips() -> Iterator[Point]:
    from benchmarks.training_step import write_run
    from gpu.config import FinetuneConfig, ModelRef
    from gpu.device import choose_device
    from gpu.finetune import data
    from gpu.pipelines import load_pipeline

    loaded = load_pipeline(ModelRef(base=str(STARTER)), device=choose_device())
    config = FinetuneConfig.parse({"audio_length_in_s": CLIP_S})
    for clips in (16, 64, 256):
        with tempfile.TemporaryDirectory() as folder:
            run = write_run(Path(folder) / "run", STARTER, config, cache=Path(folder) / "cache", clips=clips)
            read = data.read_clips(run, expected_digest="", report=lambda *_: None)

            def cache(read: Any = read, folder: str = folder) -> None:
                data.cache_clips(read, loaded, Path(folder) / "cache", duration_s=CLIP_S, report=lambda *_: None)

            yield {"x": clips, **_spent(cache), **{f"again_{name}": value for name, value in _spent(cache).items()}}


def step_batch() -> Iterator[Point]:
    for batch in (1, 2, 4, 8, 16):
        yield {"x": batch, **_step(train_batch_size=batch)}


def step_seconds() -> Iterator[Point]:
    for times in (1, 2, 4, 8):
        yield {"x": round(CLIP_S * times, 1), **_step(audio_length_in_s=CLIP_S * times)}


def sampler_steps() -> Iterator[Point]:
    for steps in (5, 10, 20, 50, 100, 200):
        yield {"x": steps, **_sound(num_inference_steps=steps)}


def candidates() -> Iterator[Point]:
    for count in (1, 2, 4, 8, 16):
        yield {"x": count, **_sound(num_waveforms_per_prompt=count)}


def sound_seconds() -> Iterator[Point]:
    for times in (1, 2, 4, 8):
        yield {"x": round(CLIP_S * times, 1), **_sound(audio_length_in_s=CLIP_S * times)}


def browsers() -> Iterator[Point]:
    """In a process of its own: the server's address is part of the settings."""
    before = (ROOT / "benchmarks/results/live_latency.json").read_bytes()
    try:
        for clients in (1, 10, 50, 100):
            command = [sys.executable, "-m", "benchmarks.live_latency", "--clients", str(clients), "--rate", "50", "--seconds", "4"]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            row = json.loads((ROOT / "benchmarks/results/live_latency.json").read_text())["results"][0]
            yield {"x": clients, "p50_ms": row["p50_ms"], "p95_ms": row["p95_ms"], "wrong": row["clients_with_a_gap_or_double"]}
    finally:
        (ROOT / "benchmarks/results/live_latency.json").write_bytes(before)


def rows() -> Iterator[Point]:
    """Pages over a database that grows tenfold: every kind of row at once."""
    from django.core.management import call_command
    from django.urls import reverse

    from benchmarks.pages import fill, measure

    call_command("migrate", verbosity=0)
    for share in (100, 10, 1):
        pages = fill(share)
        run, dataset = (measure(address) for name, address in pages.items() if name.startswith("a "))
        index = measure(reverse("training:index"))
        yield {
            "x": 1_000 // share, "run_ms": run["ms"], "run_queries": run["queries"], "dataset_ms": dataset["ms"], "dataset_queries": dataset["queries"],
            "runs_ms": index["ms"], "runs_queries": index["queries"],
        }  # fmt: skip


CURVES: dict[str, Callable[[], Iterator[Point]]] = {
    curve.__name__: curve
    for curve in (import_clips, cache_clips, step_batch, step_seconds, sampler_steps, candidates, sound_seconds, browsers, rows)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=CURVES, default=list(CURVES))
    for name in parser.parse_args().only:
        # A process for each: settings, database and torch's threads begin anew.
        subprocess.run([sys.executable, "-c", f"from benchmarks.growth import draw; draw({name!r})"], cwd=ROOT, check=True)


def draw(name: str) -> None:
    """Measure one curve and keep it beside the others."""
    from benchmarks.report import RESULTS, machine

    with tempfile.TemporaryDirectory() as data_dir:
        os.environ |= {"DATA_DIR": data_dir, "DJANGO_SETTINGS_MODULE": "audioldm_site.settings", "LOG_LEVEL": "ERROR", "ALLOWED_HOSTS": "testserver"}
        import django

        django.setup()
        points = []
        for point in CURVES[name]():
            points.append(point)
            print(name, *(f"{key}={value:.4g}" for key, value in point.items()), flush=True)
    path = RESULTS / "growth.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept[name] = {"machine": machine(), "points": points}
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def render(result: dict[str, Any], name: str) -> str:
    """The table of one curve, in Markdown. Seconds for each of `x` show where it bends."""
    heads = {
        "import_clips": "clips", "cache_clips": "clips", "step_batch": "batch", "step_seconds": "clip, s", "sampler_steps": "sampler steps",
        "candidates": "candidates", "sound_seconds": "sound, s", "browsers": "browsers", "rows": "runs",
    }  # fmt: skip
    points, at = result[name]["points"], result[name]["machine"]
    if name == "browsers":
        head = ["browsers", "half within, ms", "95 % within, ms", "with a gap or double"]
        lines = [[point["x"], f"{point['p50_ms']:.0f}", f"{point['p95_ms']:.0f}", point["wrong"]] for point in points]
    elif name == "rows":
        head = ["runs, and clips of a dataset, and events of a run", "list of runs, ms (queries)", "dataset, ms (queries)", "run, ms (queries)"]
        lines = [
            [f"{point['x']:,}, {point['x'] * 10:,}, {point['x'] * 100:,}", *(f"{point[f'{page}_ms']:.0f} ({point[f'{page}_queries']})" for page in ("runs", "dataset", "run"))]
            for point in points
        ]  # fmt: skip
    else:
        again = "again_wall_s" in points[0]
        head = [heads[name], "s", "CPU s", "ms for each", *(["a second time, s"] if again else [])]
        lines = [
            [point["x"], f"{point['wall_s']:.3g}", f"{point['cpu_s']:.3g}", f"{_short(1000 * point['wall_s'] / point['x'])}", *([f"{point['again_wall_s']:.2g}"] if again else [])]
            for point in points
        ]  # fmt: skip
    table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *lines])
    return f"{table}\n\n{at['at'][:10]}, {at['cpus']} cores at a load of {at['load']:.1f} when it ended."


def _short(number: float) -> str:
    """Three digits, without an exponent."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _step(**values: Any) -> Point:
    """A step of a LoRA run of the starter."""
    from benchmarks.training_step import WARM_UP, run_steps, write_run
    from gpu.config import FinetuneConfig

    config = FinetuneConfig.parse({
        "train_batch_size": 4, "audio_length_in_s": CLIP_S, "max_train_steps": WARM_UP + 8, "lr_warmup_steps": 0, "validation_prompts": ["Rain"],
        "num_inference_steps": 1, "num_waveforms_per_prompt": 1, "validation_epochs": 1_000_000, "checkpointing_steps": 1_000_000, **values,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        pairs = run_steps(write_run(Path(folder) / "run", STARTER, config, cache=Path(folder) / "cache"))
    return {"wall_s": median(wall for wall, _ in pairs), "cpu_s": median(cpu for _, cpu in pairs)}


def _sound(**values: Any) -> Point:
    """A warm generation with the starter; one candidate in 20 steps where nothing else is said."""
    from gpu.config import GenerateConfig, GenerateJob, ModelRef
    from gpu.events import EventWriter

    config = GenerateConfig.parse({
        "prompt": "Rain falling on a tin roof", "audio_length_in_s": CLIP_S, "num_waveforms_per_prompt": 1, "num_inference_steps": 20,
        "sampler": "dpmsolver++", **values,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, EventWriter(Path(folder)) as events:
        job = GenerateJob(config=config, model=ModelRef(base=str(STARTER)))
        spent = [_spent(lambda: _generator().generate(job, Path(folder), events, lambda: False)) for _ in range(3)]
    return {name: median(each[name] for each in spent[1:]) for name in spent[0]}


@functools.cache
def _generator() -> Any:
    """One for the whole process: warm is what is measured."""
    from gpu.generate import Generator

    return Generator()


def _spent(call: Callable[[], Any]) -> Point:
    from benchmarks.report import timed

    wall, cpu = timed(call)
    return {"wall_s": wall, "cpu_s": cpu}


if __name__ == "__main__":
    main()
