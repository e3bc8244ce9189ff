"""What a sound costs here and in diffusers' own pipeline: `python -m benchmarks.generation [--model FOLDER]`.

The same prompt, steps and number of candidates for both, the same thread count, alternating in one process. Ours also writes
files, says events and (unlike the pipeline without librosa) ranks the candidates. A third row is ours with 20 steps of
DPM-Solver++, beside the pipeline's default of 200 DDIM steps, and a fourth the same in bf16 where the device has it. The last two rows are first sounds: a process of its own each, from its start
to the written file, one candidate, 20 steps of DPM-Solver++; their largest resident memory stands below them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from diffusers import AudioLDM2Pipeline
from torch import nn

from benchmarks.report import Timing, report, timed
from gpu.config import GenerateConfig, GenerateJob, ModelRef
from gpu.device import choose_device, has_bf16
from gpu.events import EventWriter
from gpu.generate import Generator
from gpu.tiny import write_tiny_audioldm2

PROMPT = "Rain falling on a tin roof"
THEIR_FIRST_SOUND = """
import sys, soundfile, torch
from diffusers import AudioLDM2Pipeline, DPMSolverMultistepScheduler
model, seconds, prompt, path = sys.argv[1:]
pipeline = AudioLDM2Pipeline.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
samples = pipeline(prompt, num_inference_steps=20, audio_length_in_s=float(seconds)).audios[0]
soundfile.write(path, samples, pipeline.vocoder.config.sampling_rate)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a diffusers folder; a tiny random model when not given")
    parser.add_argument("--seconds", type=float, default=2.56)
    parser.add_argument("--steps", type=int, default=200, help="DDIM steps; the pipeline's default is 200")
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        model = arguments.model or write_tiny_audioldm2(home / "tiny")
        firsts = first_sounds(model, arguments.seconds, home, rounds=arguments.rounds)
        generator, theirs = Generator(), pipeline(model)

        def ours(**values: object) -> None:
            config = GenerateConfig.parse({
                "prompt": PROMPT, "audio_length_in_s": arguments.seconds, "num_waveforms_per_prompt": arguments.candidates, **values,
            })  # fmt: skip
            with EventWriter(home) as events:
                generator.generate(GenerateJob(config=config, model=ModelRef(base=str(model))), home, events, lambda: False)

        calls = {
            f"diffusers, DDIM {arguments.steps}": lambda: theirs(
                PROMPT,
                num_inference_steps=arguments.steps,
                audio_length_in_s=arguments.seconds,
                num_waveforms_per_prompt=arguments.candidates,
            ),
            f"ours, DDIM {arguments.steps}": lambda: ours(num_inference_steps=arguments.steps, sampler="ddim"),
            "ours, DPM-Solver++ 20": lambda: ours(num_inference_steps=20, sampler="dpmsolver++"),
        }
        if has_bf16(choose_device()):
            calls["ours, DPM-Solver++ 20, bf16"] = lambda: ours(num_inference_steps=20, sampler="dpmsolver++", mixed_precision="bf16")
        pairs: dict[str, list[tuple[float, float]]] = {label: [] for label in calls}
        ours(num_inference_steps=1)  # both are warm: the pipeline is in memory already
        for _ in range(arguments.rounds):
            for label, call in calls.items():
                pairs[label].append(timed(call))

    rows = {label: Timing.of(found) for label, found in pairs.items()}
    reference, same, fast, *half = rows.values()
    settings = {
        "model": arguments.model.name if arguments.model else "tiny",
        "seconds": arguments.seconds,
        "steps": arguments.steps,
        "candidates": arguments.candidates,
    }
    rows |= {label: Timing.of([timing for timing, _ in found]) for label, found in firsts.items()}
    report("generation", settings, rows, {
        "ours / diffusers, wall": same.wall_s / reference.wall_s,
        "ours / diffusers, cpu": same.cpu_s / reference.cpu_s,
        "20 steps: times faster, wall": reference.wall_s / fast.wall_s,
        "20 steps: times faster, cpu": reference.cpu_s / fast.cpu_s,
        **({"20 steps in bf16: times faster, cpu": reference.cpu_s / half[0].cpu_s} if half else {}),
        **{f"{label}: largest memory, MB": max(peak for _, peak in found) / 1e6 for label, found in firsts.items()},
    })  # fmt: skip


def first_sounds(model: Path, seconds: float, home: Path, *, rounds: int) -> dict[str, list[tuple[tuple[float, float], int]]]:
    """For each way (wall, CPU) seconds and bytes of every round; the model's files are in the system's cache."""
    folder = home / "first"
    folder.mkdir()
    config = GenerateConfig.parse({
        "prompt": PROMPT, "audio_length_in_s": seconds, "num_waveforms_per_prompt": 1, "num_inference_steps": 20, "sampler": "dpmsolver++",
    })  # fmt: skip
    GenerateJob(config=config, model=ModelRef(base=str(model))).write(folder)
    commands = {
        "diffusers, first sound": ["-c", THEIR_FIRST_SOUND, str(model), str(seconds), PROMPT, str(home / "theirs.wav")],
        "ours, first sound": ["-m", "gpu", "generate", str(folder)],
    }
    found: dict[str, list[tuple[tuple[float, float], int]]] = {label: [] for label in commands}
    for _ in range(rounds):
        for label, command in commands.items():
            began = perf_counter()
            process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{label}: ended with {os.waitstatus_to_exitcode(status)}")
            found[label].append(((perf_counter() - began, used.ru_utime + used.ru_stime), used.ru_maxrss * 1024))
    return found


def pipeline(model: Path) -> AudioLDM2Pipeline:
    opened = AudioLDM2Pipeline.from_pretrained(model, dtype=torch.float32, use_safetensors=True).to(choose_device())
    opened.set_progress_bar_config(disable=True)
    for part in opened.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    return opened


if __name__ == "__main__":
    main()
