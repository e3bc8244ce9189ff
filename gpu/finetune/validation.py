"""How well a run does: the loss on held-out clips with the noise always the same, and sounds for the same prompts and seeds.

The noise and the timesteps of the loss are fixed, so that two validations differ in nothing but the weights. The sounds are judged in
short: how well they fit their prompts, how far they are from held-out clips where there are enough of both, and what is wrong with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu.config import FinetuneConfig, GenerateConfig, ModelRef
from gpu.diffusion import denoising_loss, training_target
from gpu.errors import Fault
from gpu.evaluation import metrics
from gpu.evaluation.ears import Ears, hear_clip
from gpu.evaluation.report import NEAR_DUPLICATE
from gpu.finetune.checkpoints import checkpoint_name
from gpu.finetune.data import Batch, Clips, generator
from gpu.finetune.module import Denoiser
from gpu.generate import recipe_of, write_candidate
from gpu.manifest import ManifestClip
from gpu.pipelines import Embeds, LoadedPipeline, collate, encode_guided, load_pipeline
from gpu.sampling import Candidate, sample_sounds

log = logging.getLogger(__name__)

TIMESTEPS_PER_CLIP = 8
MAX_FORWARDS = 128
"""Clip and timestep pairs of one loss. With many clips each gets fewer timesteps, then not every clip is heard."""
MAX_PROMPTS = 3
SAMPLES = "samples"
MAX_REFERENCE = 64
"""Held-out clips that a validation's sounds are compared with; more would cost time at every start and hardly narrow the interval."""
SAME_SOUND = 0.999
"""Cosine of two sounds that are one for every ear. No real sounds are at hand to learn a threshold from, so it is a strict one."""
KEEP_PARTS_BYTES = 512 * 2**20
"""Text encoders, VAE and vocoder stay in memory while training when they are no larger than this (fp32)."""


class ValidationLoss:
    """The fixed-noise loss. Its noise belongs to the clips, not to the run's seed: runs with other seeds can be compared."""

    def __init__(self, clips: Clips, config: FinetuneConfig, *, scaling_factor: float, num_train_timesteps: int) -> None:
        chosen = sorted(clips.validation, key=lambda clip: clip.sha256)[:MAX_FORWARDS]
        per_clip = max(1, min(TIMESTEPS_PER_CLIP, MAX_FORWARDS // max(1, len(chosen))))
        pairs = []
        for number, clip in enumerate(chosen):
            for place in range(per_clip):
                # Stratified: the timesteps of all clips together are spread evenly from the first to the last.
                share = (place + (number + 0.5) / len(chosen)) / per_clip
                noise = torch.randn(clips.latents(clip).mean.shape, generator=generator(0, clip.sha256, place))
                pairs.append((clip, int(share * num_train_timesteps), noise))
        self.batches = []
        for start in range(0, len(pairs), config.train_batch_size):
            members = pairs[start : start + config.train_batch_size]
            captions = tuple(clip.caption for clip, _, _ in members)
            self.batches.append(
                Batch(
                    latents=torch.stack([clips.latents(clip).mean for clip, _, _ in members]) * scaling_factor,
                    noise=torch.stack([noise for _, _, noise in members]),
                    timesteps=torch.tensor([timestep for _, timestep, _ in members]),
                    embeds=collate([clips.embeds(caption) for caption in captions]),
                    captions=captions,
                )
            )

    def measure(self, module: Denoiser) -> dict[str, float]:
        """`loss`, and `loss_ema` where there is a moving average; nothing when no clip is held out."""
        if not self.batches:
            return {}
        training = module.unet.training
        module.unet.eval()
        try:
            metrics = {"loss": self._mean(module)}
            if module.ema is not None:
                with module.using_ema():
                    metrics["loss_ema"] = self._mean(module)
        finally:
            module.unet.train(training)
        return metrics

    @torch.no_grad()
    def _mean(self, module: Denoiser) -> float:
        total, count = 0.0, 0
        for batch in self.batches:
            batch = batch.to(module.unet.device)
            noisy = module.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
            pred = module.predict(noisy, batch.timesteps, batch.embeds)
            target = training_target(module.scheduler, batch.latents, batch.noise, batch.timesteps)
            loss = denoising_loss(pred, target, channels=module.channels, prediction_type=module.scheduler.config.prediction_type)
            total += float(loss) * len(batch.captions)
            count += len(batch.captions)
        return total / count


class Studio:
    """The whole model around the UNet that is trained, for when sounds are made. Large parts wait on the disk meanwhile."""

    def __init__(self, ref: ModelRef, loaded: LoadedPipeline, *, memo: Path) -> None:
        self._ref = ModelRef(base=ref.base, base_sha256=ref.base_sha256)
        self._unet = loaded.unet
        self._device = loaded.device
        self._memo = memo
        self._loaded: LoadedPipeline | None = loaded
        others = sum(count for part, count in loaded.facts.parameters.items() if part != "unet")
        self._keep = others * 4 <= KEEP_PARTS_BYTES

    def open(self) -> LoadedPipeline:
        if self._loaded is None:
            self._loaded = load_pipeline(self._ref, device=self._device, unet=self._unet, memo=self._memo)
        return self._loaded

    def close(self) -> None:
        """Free what training does not need."""
        if not self._keep:
            self._loaded = None
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


@dataclass(frozen=True, kw_only=True)
class SoundFigures:
    """What a validation's sounds come to, named as in its event. Each is the best of its candidates, so the CLAP score is a kind one.

    Args:
        clap_score: mean over the prompts, with its 95 % interval; None where the model cannot hear, or for one prompt the interval.
        kad: kernel audio distance to held-out clips (`gpu.evaluation.metrics`), None with fewer than `metrics.KAD_MIN_SOUNDS` of either.
        flagged: sounds that something is wrong with, of `sounds`.
    """

    sounds: int
    flagged: int
    clap_score: float | None = None
    clap_low: float | None = None
    clap_high: float | None = None
    kad: float | None = None
    kad_low: float | None = None
    kad_high: float | None = None
    kad_reference: int | None = None

    def as_data(self) -> dict[str, Any]:
        """What is known, for the event."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class ValidationSounds:
    """Sounds for fixed prompts with fixed seeds, by the same way as every generation.

    Args:
        held_out: real sounds to compare with.
    """

    def __init__(self, folder: Path, prompts: list[str], config: FinetuneConfig, studio: Studio, *, held_out: list[ManifestClip] | None = None) -> None:
        self.folder = folder
        self.held_out = sorted(held_out or [], key=lambda clip: clip.sha256)[:MAX_REFERENCE]
        self._reference: np.ndarray | None = None
        self.jobs = [
            GenerateConfig(
                prompt=prompt,
                seed=config.seed,
                num_inference_steps=config.num_inference_steps,
                sampler=config.sampler,
                guidance_scale=config.guidance_scale,
                audio_length_in_s=config.audio_length_in_s,
                num_waveforms_per_prompt=config.num_waveforms_per_prompt,
            )
            for prompt in prompts
        ]
        self.studio = studio
        self._embeds: dict[str, tuple[Embeds, Embeds]] = {}

    def make(
        self,
        module: Denoiser,
        *,
        say: Callable[[dict[str, Any]], None],
        report: Callable[[str, int, int], None],
        should_stop: Callable[[], bool],
    ) -> SoundFigures:
        """Make and write the best candidate for each prompt; return what they come to.

        Args:
            say: given the data of each `sample` event.
            report: told (stage, done, total) after every sampler step.
        Raises:
            gpu.sampling.Stopped: asked to stop; what was said stays.
        """
        loaded = self.studio.open()
        folder = self.folder / SAMPLES / checkpoint_name(module.step)
        folder.mkdir(parents=True, exist_ok=True)
        best: list[Candidate] = []
        embeds: list[np.ndarray] = []
        flagged = 0
        ears = Ears(name=loaded.facts.name, clap=loaded.ranker, sha256=loaded.base_sha256) if loaded.ranker else None
        try:
            with module.as_result():
                for index, job in enumerate(self.jobs):
                    if job.prompt not in self._embeds:
                        self._embeds[job.prompt] = encode_guided(loaded, job.prompt, job.negative_prompt)

                    def on_step(done: int, total: int, index: int = index) -> None:
                        report("sampling", index * total + done, len(self.jobs) * total)

                    best.append(sample_sounds(loaded, job, embeds=self._embeds[job.prompt], on_step=on_step, should_stop=should_stop)[0])
                    recipe = recipe_of(loaded, job, best[-1], provenance={"checkpoint_step": module.step})
                    said = write_candidate(folder, f"prompt={index}.wav", best[-1], loaded, recipe)
                    if ears:
                        embeds.append(ears.hear(best[-1].samples, loaded.mel.sample_rate_hz))
                        said["flags"] += self._duplicate_flag(embeds)
                    flagged += bool(said["flags"])
                    audio = f"{SAMPLES}/{folder.name}/prompt={index}.wav"
                    say({"step": module.step, "index": index, "prompt": job.prompt, **said, "audio": audio})
            return self._figures(best, embeds, ears, loaded, flagged=flagged, report=report)
        finally:
            self.studio.close()

    def _figures(
        self,
        best: list[Candidate],
        embeds: list[np.ndarray],
        ears: Ears | None,
        loaded: LoadedPipeline,
        *,
        flagged: int,
        report: Callable[[str, int, int], None],
    ) -> SoundFigures:
        prompts = [job.prompt for job in self.jobs]
        scores = [candidate.clap_score for candidate in best if candidate.clap_score is not None]
        if ears is None or len(scores) < len(best) or not np.isfinite(scores).all():
            return SoundFigures(sounds=len(best), flagged=flagged)
        score = metrics.mean_interval(scores, groups=prompts, seed=0)
        figures = {"clap_score": score.value, "clap_low": score.low, "clap_high": score.high}
        if min(len(best), len(self.held_out)) >= metrics.KAD_MIN_SOUNDS and (reference := self._hear_held_out(ears, loaded, report)) is not None:
            distance = metrics.kernel_distance(
                np.stack(embeds), reference, groups=prompts, reference_groups=[clip.caption for clip in self.held_out]
            )
            figures |= {"kad": distance.value, "kad_low": distance.low, "kad_high": distance.high, "kad_reference": len(reference)}
        return SoundFigures(sounds=len(best), flagged=flagged, **figures)

    def _duplicate_flag(self, embeds: list[np.ndarray]) -> list[str]:
        """Whether the newest sound is nearly the same as an earlier one for another prompt."""
        prompt = self.jobs[len(embeds) - 1].prompt
        others = [embed for job, embed in zip(self.jobs, embeds[:-1], strict=False) if job.prompt != prompt]
        return [NEAR_DUPLICATE] if others and metrics.nearest(embeds[-1][None], np.stack(others))[1][0] > SAME_SOUND else []

    def _hear_held_out(self, ears: Ears, loaded: LoadedPipeline, report: Callable[[str, int, int], None]) -> np.ndarray | None:
        """[N, D], heard once a run: at the model's rate and as long as its sounds are. None when a file is gone: no reason to end a run."""
        if self._reference is None:
            rows = []
            try:
                for index, clip in enumerate(self.held_out):
                    report("hearing held-out sounds", index, len(self.held_out))
                    rows.append(hear_clip(ears, Path(clip.audio), rate_hz=loaded.mel.sample_rate_hz, length_s=self.jobs[0].audio_length_in_s))
            except Fault as fault:
                log.warning("the sounds are not compared with held-out ones: %s", fault.message)
                self.held_out = []
                return None
            self._reference = np.stack(rows)
        return self._reference


def validation_prompts(config: FinetuneConfig, clips: Clips) -> list[str]:
    """The prompts chosen for the run, else captions of held-out clips, else of the clips trained on."""
    captions = [clip.caption for clip in [*clips.validation, *clips.train] if clip.caption.strip()]
    held_out = [clip.caption for clip in clips.validation if clip.caption.strip()]
    return config.validation_prompts or list(dict.fromkeys(held_out or captions))[:MAX_PROMPTS]
