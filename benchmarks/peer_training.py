"""Clips per second here and in the way that AudioLDM-training-finetuning works: `python -m benchmarks.peer_training [--model FOLDER]`.

The other way computes everything in every step: file, mel, VAE, the text encoders (CLAP's text padded to 512 tokens, as the original and
diffusers both do) and GPT-2, then UNet, backward and AdamW in fp32. It is written here from the product's own parts, which are no slower than
the original's, so that only the order of work differs. Ours is a whole run: what does not change is computed once, and cached. The same model,
clips, batch and threads; the cache's building counts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.report import Timing, report, timed
from benchmarks.training_step import WARM_UP, run_steps, write_run
from gpu.conditioning import Embeds, encode_prompts
from gpu.config import FinetuneConfig, ModelRef
from gpu.device import choose_device
from gpu.diffusion import training_target
from gpu.finetune.data import cache_clips, encode_window, read_clips
from gpu.lora import inject_lora
from gpu.pipelines import LoadedPipeline, encode, load_pipeline, unet_inputs
from gpu.tiny import write_tiny_audioldm2

CLIPS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a diffusers folder; a tiny random model when not given")
    parser.add_argument("--method", choices=("lora", "full"), default="full")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.56)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--epochs", type=int, nargs="*", default=[1, 10, 100])
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        model = arguments.model or write_tiny_audioldm2(home / "tiny")
        config = FinetuneConfig.parse({
            "method": arguments.method, "train_batch_size": arguments.batch, "audio_length_in_s": arguments.seconds,
            "max_train_steps": WARM_UP + arguments.steps, "validation_prompts": ["Rain"], "num_inference_steps": 1,
            "num_waveforms_per_prompt": 1, "validation_epochs": 1_000_000, "checkpointing_steps": 1_000_000,
        })  # fmt: skip
        folder = write_run(home / "run", model, config, cache=home / "cache")
        caching = timed(lambda: build_cache(folder, model, config, home / "cache"))
        ours = Timing.of(run_steps(folder))
        theirs = Timing.of(uncached_steps(folder, model, config, steps=arguments.steps))

    ratios = {"a cached step / an uncached step, cpu": ours.cpu_s / theirs.cpu_s}
    for epochs in arguments.epochs:
        steps = epochs * CLIPS / arguments.batch
        ratios[f"clips/s, theirs, {epochs} epochs"] = arguments.batch / theirs.cpu_s
        ratios[f"clips/s, ours with the cache's building, {epochs} epochs"] = epochs * CLIPS / (caching[1] + steps * ours.cpu_s)
        ratios[f"times faster, {epochs} epochs"] = steps * theirs.cpu_s / (caching[1] + steps * ours.cpu_s)
    settings = {
        "model": arguments.model.name if arguments.model else "tiny", "method": config.method, "batch": arguments.batch,
        "seconds": arguments.seconds, "clips": CLIPS, "clips_per_second_of": "processor time",
    }  # fmt: skip
    report("peer_training", settings, {"a step of ours": ours, "a step with everything in it": theirs, f"caching {CLIPS} clips": Timing.of([caching])}, ratios)


def build_cache(folder: Path, model: Path, config: FinetuneConfig, cache: Path) -> None:
    loaded = load_pipeline(ModelRef(base=str(model)), device=choose_device(), memo=cache)
    clips = read_clips(folder, expected_digest="", report=lambda *_: None)
    cache_clips(clips, loaded, cache, duration_s=config.audio_length_in_s, report=lambda *_: None)


def encode_padded(loaded: LoadedPipeline, captions: list[str]) -> Embeds:
    if loaded.family != "audioldm2":
        return encode(loaded, captions)
    tokenizer = loaded.pipeline.tokenizer

    def padded(texts: list[str], **options: Any) -> Any:
        return tokenizer(texts, **(options | {"padding": "max_length"}))

    padded.model_max_length = tokenizer.model_max_length
    return encode_prompts({**loaded.pipeline.components, "tokenizer": padded}, captions)


def uncached_steps(folder: Path, model: Path, config: FinetuneConfig, *, steps: int) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of steps that compute everything anew, as the original's training loop does."""
    device = choose_device()
    loaded = load_pipeline(ModelRef(base=str(model)), device=device)
    clips = read_clips(folder, expected_digest="", report=lambda *_: None)
    unet, scheduler = loaded.unet.train(), loaded.pipeline.scheduler
    if config.method == "lora":
        inject_lora(unet, rank=config.lora_rank)
    else:
        unet.requires_grad_(True)
    optimizer = torch.optim.AdamW([weight for weight in unet.parameters() if weight.requires_grad], fused=device.type == "cuda")
    num_samples = loaded.num_frames(config.audio_length_in_s) * loaded.mel.hop_length
    size = config.train_batch_size

    def step(number: int) -> None:
        chosen = [clips[(number * size + place) % len(clips)] for place in range(size)]
        windows = [encode_window(loaded, Path(clip.audio), start_s=0.0, num_samples=num_samples) for clip in chosen]
        mean, std = (torch.stack([window[name] for window in windows]).to(device) for name in ("mean", "std"))
        latents = (mean + std * torch.randn_like(mean)) * loaded.pipeline.vae.config.scaling_factor  # [B, C, T/4, M/4]
        embeds = encode_padded(loaded, [clip.caption for clip in chosen])
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (size,), device=device)
        pred = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, **unet_inputs(embeds, unet), return_dict=False)[0]
        loss = F.mse_loss(pred, training_target(scheduler, latents, noise, timesteps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for number in range(WARM_UP):
        step(number)
    pairs = []
    for number in range(steps):
        wall, cpu = perf_counter(), process_time()
        step(WARM_UP + number)
        pairs.append((perf_counter() - wall, process_time() - cpu))
    return pairs


if __name__ == "__main__":
    main()
