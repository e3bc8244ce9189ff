"""What a sound costs here and in diffusers' own pipeline: `python -m benchmarks.generation [--model FOLDER]`.

The same prompt, steps and number of candidates for both, the same thread count, alternating in one process. Ours also writes
files, says events and (unlike the pipeline without librosa) ranks the candidates. A third row is ours with 20 steps of
DPM-Solver++, beside the pipeline's default of 200 DDIM steps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from diffusers import AudioLDM2Pipeline
from torch import nn

from benchmarks.report import Timing, report, timed
from gpu.config import GenerateConfig, GenerateJob, ModelRef
from gpu.device import choose_device
from gpu.events import EventWriter
from gpu.generate import Generator
from gpu.tiny import write_tiny_audioldm2

PROMPT = "Rain falling on a tin roof"


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
        pairs: dict[str, list[tuple[float, float]]] = {label: [] for label in calls}
        ours(num_inference_steps=1)  # both are warm: the pipeline is in memory already
        for _ in range(arguments.rounds):
            for label, call in calls.items():
                pairs[label].append(timed(call))

    rows = {label: Timing.of(found) for label, found in pairs.items()}
    reference, same, fast = rows.values()
    settings = {
        "model": arguments.model.name if arguments.model else "tiny",
        "seconds": arguments.seconds,
        "steps": arguments.steps,
        "candidates": arguments.candidates,
    }
    report("generation", settings, rows, {
        "ours / diffusers, wall": same.wall_s / reference.wall_s,
        "ours / diffusers, cpu": same.cpu_s / reference.cpu_s,
        "20 steps: times faster, wall": reference.wall_s / fast.wall_s,
        "20 steps: times faster, cpu": reference.cpu_s / fast.cpu_s,
    })  # fmt: skip


def pipeline(model: Path) -> AudioLDM2Pipeline:
    opened = AudioLDM2Pipeline.from_pretrained(model, dtype=torch.float32, use_safetensors=True).to(choose_device())
    opened.set_progress_bar_config(disable=True)
    for part in opened.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    return opened


if __name__ == "__main__":
    main()
