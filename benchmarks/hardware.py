"""The tables of docs/hardware.md: `python -m benchmarks.hardware`. What was measured beside what is told, and what the presets need."""

from __future__ import annotations

import json
from dataclasses import replace

from benchmarks.report import RESULTS
from gpu import preflight
from gpu.config import PRESETS, FinetuneConfig
from gpu.preflight import memory_parts, published, seconds_per_step

ONE_CORE = preflight.Machine(device="cpu", name="", memory_bytes=0, free_bytes=0, disk_free_bytes=0, cores=1)

WORDS = {
    "started": "opening the rest again, encoding the prompt", "sampling": "a sampler step and decoding, twice", "validated": "the first step",
    "training": "the other two steps",
}  # fmt: skip
"""What a run did after it had said the last thing; its sounds had one sampler step."""


def main() -> None:
    print("| model | method | batch | seconds | other | memory, GB | told, GB | CPU s a step | told, CPU s |\n|---|---|---|---|---|---|---|---|---|")
    for row in preflight.measurements():
        config = row.config
        other = ", ".join(name for name in ("use_ema", "gradient_checkpointing") if getattr(config, name)) or "–"
        told = sum(memory_parts(row.facts, row.size, config, "cpu").values())
        step_s = seconds_per_step(row.facts, row.size, config, ONE_CORE)
        print(f"| {row.model} | {config.method} | {config.train_batch_size} | {config.audio_length_in_s} | {other} | {row.resident_bytes / 1e9:.1f} "
              f"| {told / 1e9:.1f} | {row.cpu_s:.1f} | {step_s:.1f} |")  # fmt: skip

    print("\n| what | model | seconds, wall | CPU s | peak memory, GB |\n|---|---|---|---|---|")
    for result in json.loads((RESULTS / "full_size.json").read_text()):
        settings = result["settings"]
        if settings["what"] == "training" and settings.get("audio_length_in_s") != 10.24:
            continue
        what = " ".join(str(settings[name]) for name in ("what", "method") if name in settings)
        for stage, part in result["stages"].items():
            if part["wall_s"] >= 0.5:
                doing = "sampling" if settings["what"] == "generation" and stage == "training" else WORDS.get(stage, stage)
                print(f"| {what}: {doing} | {settings['model']} | {part['wall_s']:.0f} | {part['cpu_s']:.0f} | {part['resident_bytes'] / 1e9:.1f} |")

    print("\n| model | UNet, M | " + " | ".join(PRESETS) + " | full, batch 1, checkpointing | disk of full, GB |\n|---|---|" + "---|" * (len(PRESETS) + 2))
    for name, (facts, size) in published().items():
        configs = [FinetuneConfig.parse(values) for values in PRESETS.values()]
        configs.append(replace(FinetuneConfig.parse(PRESETS["full"]), train_batch_size=1, gradient_checkpointing=True))
        memory = [f"{sum(memory_parts(facts, size, config, 'cuda').values()) / 1e9:.1f}" for config in configs]
        disk = sum(preflight.disk_parts(facts, size, configs[-1], [10.24] * 100).values())
        print(f"| {name} | {facts.parameters['unet'] / 1e6:.0f} | {' | '.join(memory)} | {disk / 1e9:.0f} |")


if __name__ == "__main__":
    main()
