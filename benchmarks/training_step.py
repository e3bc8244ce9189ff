"""What a training step costs here beside the least it could cost: `python -m benchmarks.training_step [--model FOLDER]`.

Ours is a whole run: Lightning, batches from the cache, the draws, clipping, events, requests looked for. The bare step is the
UNet forward, the loss, backward and AdamW on one batch of the same shape that lies ready. Both alternate in one process.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.report import Timing, clock, report, timed
from gpu.config import FinetuneConfig, FinetuneJob, ModelRef
from gpu.device import choose_device, training_precision
from gpu.finetune import main as finetune
from gpu.finetune.data import Clips, TrainingBatches, cache_clips, read_clips
from gpu.finetune.module import Denoiser
from gpu.lora import inject_lora
from gpu.manifest import TRAIN, ManifestClip, sha256_of, write_manifest
from gpu.pipelines import load_pipeline, unet_inputs
from gpu.tiny import CAPTIONS, write_tiny_audioldm2

WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a diffusers folder; a tiny random model when not given")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.56)
    parser.add_argument("--steps", type=int, default=30, help="steps of each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        model = arguments.model or write_tiny_audioldm2(home / "tiny")
        config = FinetuneConfig.parse({
            "method": arguments.method, "train_batch_size": arguments.batch, "audio_length_in_s": arguments.seconds,
            "max_train_steps": WARM_UP + arguments.steps, "validation_prompts": ["Rain"], "num_inference_steps": 1,
            "num_waveforms_per_prompt": 1, "validation_epochs": 1_000_000, "checkpointing_steps": 1_000_000,
        })  # fmt: skip
        ours: list[tuple[float, float]] = []
        bare: list[tuple[float, float]] = []
        for number in range(arguments.rounds):
            ours += run_steps(write_run(home / f"run{number}", model, config, cache=home / "cache"))
            bare += bare_steps(home / f"run{number}", model, config, cache=home / "cache", steps=arguments.steps)

    rows = {"a step of a run": Timing.of(ours), "bare UNet step": Timing.of(bare)}
    settings = {
        "model": arguments.model.name if arguments.model else "tiny",
        "method": config.method,
        "batch": arguments.batch,
        "seconds": arguments.seconds,
    }
    one, other = rows.values()
    report("training_step", settings, rows, {"ratio of wall": one.wall_s / other.wall_s, "ratio of cpu": one.cpu_s / other.cpu_s})


def write_run(folder: Path, model: Path, config: FinetuneConfig, *, cache: Path, clips: int = 16) -> Path:
    """A run's folder with tones."""
    folder.mkdir()
    written = []
    for number in range(clips):
        path = folder / f"{number}.wav"
        moments = np.arange(int(16_000 * config.audio_length_in_s)) / 16_000
        soundfile.write(path, 0.4 * np.sin(2 * np.pi * 110 * (number + 1) * moments), 16_000)
        written.append(
            ManifestClip(
                audio=path.name,
                caption=CAPTIONS[number % len(CAPTIONS)],
                sha256=sha256_of(path),
                duration_s=config.audio_length_in_s,
                split=TRAIN,
            )
        )
    digest = write_manifest(folder, written)
    FinetuneJob(config=config, model=ModelRef(base=str(model.resolve())), manifest_digest=digest, cache_dir=str(cache)).write(folder)
    return folder


def run_steps(folder: Path) -> list[tuple[float, float]]:
    """(wall, CPU) seconds from the end of one step to the end of the next, in a whole run."""
    ends: list[tuple[float, float]] = []
    plain = Denoiser.optimizer_step

    def marked(self: Denoiser, *args: object, **kwargs: object) -> None:
        plain(self, *args, **kwargs)
        ends.append(clock())

    Denoiser.optimizer_step = marked
    try:
        if finetune([str(folder)]) != 0:
            raise SystemExit(f"the run failed: see {folder / 'events.jsonl'}")
    finally:
        Denoiser.optimizer_step = plain
    return [(after[0] - before[0], after[1] - before[1]) for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]


def bare_steps(
    folder: Path, model: Path, config: FinetuneConfig, *, cache: Path, steps: int, alone: bool = False
) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of bare steps.

    Args:
        alone: forget the rest of the model first and warm up by one step only, for models that take seconds and gigabytes.
    """
    device = choose_device()
    loaded = load_pipeline(ModelRef(base=str(model)), device=device, memo=cache)
    read = read_clips(folder, expected_digest="", report=lambda *_: None)
    clips: Clips = cache_clips(read, loaded, cache, duration_s=config.audio_length_in_s, report=lambda *_: None)
    batches = TrainingBatches(clips, config, scaling_factor=loaded.pipeline.vae.config.scaling_factor, num_train_timesteps=1000)
    batch = batches.batch(0).to(device)
    unet: nn.Module = loaded.unet.train()
    if alone:
        del loaded
    if config.method == "lora":
        inject_lora(unet, rank=config.lora_rank)
    else:
        unet.requires_grad_(True)
    optimizer = torch.optim.AdamW([weight for weight in unet.parameters() if weight.requires_grad], fused=device.type == "cuda")
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=training_precision("auto", device) == "bf16-mixed")

    def step() -> None:
        with autocast:
            pred = unet(batch.latents, batch.timesteps, **unet_inputs(batch.embeds, unet), return_dict=False)[0]
            loss = F.mse_loss(pred.float(), batch.noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(1 if alone else WARM_UP):
        step()
    return [timed(step) for _ in range(steps)]


if __name__ == "__main__":
    main()
