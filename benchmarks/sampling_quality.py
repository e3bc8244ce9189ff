"""How near each sampler and step count comes to the converged solution: `python -m benchmarks.sampling_quality [--model FOLDER]`.

For every prompt the same noise is denoised by each sampler. The converged solution is DPM-Solver++ with many steps; the distance is the mean
absolute difference of the natural-log mel pictures, which is what the vocoder gets. Beside it stand the distance between two sounds of the
same prompt from different noise (what "another sound" means on this scale), the CLAP score of each setting, and the cost. The default
sampler and step count of the product come from this curve.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch

from benchmarks.recognition import read_prompts
from benchmarks.report import RESULTS, machine
from gpu.config import GenerateConfig, ModelRef
from gpu.device import choose_device, has_bf16
from gpu.pipelines import LoadedPipeline, encode_guided, load_pipeline
from gpu.sampling import clap_scores, decode, denoise, initial_noise

CONVERGED = ("dpmsolver++", 100)
SETTINGS = [("ddim", 200), ("ddim", 50), ("ddim", 25), ("ddim", 20), ("dpmsolver++", 10), ("dpmsolver++", 15), ("dpmsolver++", 20), ("dpmsolver++", 25),
            ("unipc", 10), ("unipc", 15), ("unipc", 20)]  # fmt: skip
HEARD = {CONVERGED, ("ddim", 200), ("ddim", 20), ("dpmsolver++", 15), ("dpmsolver++", 20), ("dpmsolver++", 25), ("unipc", 15), ("unipc", 20)}
"""Whose sounds CLAP hears: a sound costs as much as many sampler steps."""
STARTER = Path(__file__).parents[1] / "training_app" / "builtin" / "starter"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--limit", type=int, default=50, help="of the hundred prompts of benchmarks.recognition, evenly spread")
    parser.add_argument("--seconds", type=float, default=2.6)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = parser.parse_args()
    prompts = [prompt.text for prompt in read_prompts()]
    prompts = prompts[:: max(1, len(prompts) // arguments.limit)][: arguments.limit]
    with ProcessPoolExecutor(arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(work, arguments.model, list(enumerate(prompts))[worker :: arguments.workers], arguments.seconds, arguments.guidance)
            for worker in range(arguments.workers)
        ]
    found: dict[str, list[dict[str, float]]] = {}
    for rows in (rows for job in jobs for rows in job.result()):
        for label, row in rows.items():
            found.setdefault(label, []).append(row)
    tell(found, settings={"model": arguments.model.name, "prompts": len(prompts), "seconds": arguments.seconds, "guidance": arguments.guidance,
                          "converged": "{} {}".format(*CONVERGED)})  # fmt: skip


def work(model: Path, prompts: list[tuple[int, str]], seconds: float, guidance: float) -> list[dict[str, dict[str, float]]]:
    """Runs in a process of its own."""
    torch.set_num_threads(1)
    loaded = load_pipeline(ModelRef(base=str(model)), device=choose_device())
    rows = []
    for done, (number, prompt) in enumerate(prompts):
        rows.append(compare(loaded, prompt, seed=number, seconds=seconds, guidance=guidance))
        print(f"{done + 1} of {len(prompts)}", flush=True)
    return rows


@torch.no_grad()
def compare(loaded: LoadedPipeline, prompt: str, *, seed: int, seconds: float, guidance: float) -> dict[str, dict[str, float]]:
    """Distance to the converged mel, CLAP score and processor seconds of each setting, for one prompt and one noise."""
    embeds = encode_guided(loaded, prompt, "")
    shape = loaded.latent_shape(seconds)

    def run(sampler: str, steps: int, noise_seed: int, mixed_precision: str = "no") -> tuple[np.ndarray, float, float]:
        config = GenerateConfig.parse({"prompt": prompt, "sampler": sampler, "num_inference_steps": steps, "guidance_scale": guidance,
                                       "audio_length_in_s": seconds, "num_waveforms_per_prompt": 1, "mixed_precision": mixed_precision})  # fmt: skip
        began = process_time()
        latents = denoise(loaded, initial_noise([noise_seed], shape), embeds, config)
        spent = process_time() - began
        mel = loaded.pipeline.vae.decode(latents / loaded.pipeline.vae.config.scaling_factor, return_dict=False)[0]
        scores = clap_scores(loaded, prompt, decode(loaded, latents, duration_s=seconds)) if (sampler, steps) in HEARD else None
        return mel.numpy(), scores[0] if scores else float("nan"), spent

    target, target_score, target_s = run(*CONVERGED, seed)
    other, other_score, _ = run("dpmsolver++", 25, seed + 1_000_000)
    rows = {
        "converged": {"distance": 0.0, "clap_score": target_score, "cpu_s": target_s},
        "another seed": {"distance": float(np.abs(other - target).mean()), "clap_score": other_score, "cpu_s": float("nan")},
    }
    for sampler, steps in SETTINGS:
        mel, score, spent = run(sampler, steps, seed)
        rows[f"{sampler} {steps}"] = {"distance": float(np.abs(mel - target).mean()), "clap_score": score, "cpu_s": spent}
    if has_bf16(loaded.device):
        mel, score, spent = run("dpmsolver++", 20, seed, "bf16")
        rows["dpmsolver++ 20 bf16"] = {"distance": float(np.abs(mel - target).mean()), "clap_score": score, "cpu_s": spent}
    return rows


def tell(found: dict[str, list[dict[str, float]]], *, settings: dict[str, Any]) -> None:
    rows = {}
    reference = np.array([row["clap_score"] for row in found["converged"]])
    print(f"\r{'':19} {'mel distance':>22} {'CLAP score':>10} {'minus converged':>24} {'cpu s':>7}")
    for label, items in found.items():
        distance, score, cpu = (np.array([item[name] for item in items]) for name in ("distance", "clap_score", "cpu_s"))
        gap = score - reference
        rows[label] = {
            "mel_distance": float(distance.mean()), "mel_distance_95": interval(distance), "clap_score": float(score.mean()),
            "clap_gap": float(gap.mean()), "clap_gap_95": interval(gap), "cpu_s": float(np.median(cpu)), "n": len(items),
        }  # fmt: skip
        rows[label] = {name: value for name, value in rows[label].items() if np.isfinite(value)}
        row = {name: rows[label].get(name, float("nan")) for name in ("mel_distance", "mel_distance_95", "clap_score", "clap_gap", "clap_gap_95", "cpu_s")}
        print(f"{label:19} {row['mel_distance']:8.4f} ± {row['mel_distance_95']:8.4f}    {row['clap_score']:10.4f} {row['clap_gap']:11.4f} ± {row['clap_gap_95']:8.4f} {row['cpu_s']:9.2f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sampling_quality.json").write_text(json.dumps({"settings": settings, "machine": machine(), "rows": rows}, indent=1) + "\n")


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % interval of the mean."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


if __name__ == "__main__":
    main()
