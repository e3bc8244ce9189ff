"""What happens between steps, in this order: say how far it is, validate, save, obey."""

from __future__ import annotations

import math
import time
from typing import Any

import pytorch_lightning as pl
from tqdm import tqdm

from gpu.announcer import INTERVAL_S, Announcer
from gpu.config import FinetuneConfig
from gpu.device import usage
from gpu.events import CHECKPOINT, SAMPLE, VALIDATED
from gpu.finetune.checkpoints import Checkpoints, Progress
from gpu.finetune.control import NOW, Control
from gpu.finetune.module import Denoiser
from gpu.finetune.validation import SoundFigures, ValidationLoss, ValidationSounds
from gpu.sampling import Stopped

SPEED_SMOOTHING = 0.9


class StepCallback(pl.Callback):
    """Called once per global step, after the update of the weights."""

    def on_step(self, trainer: pl.Trainer, module: Denoiser) -> None:
        raise NotImplementedError

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step(trainer, module)


class Report(StepCallback):
    """Progress events, and a bar for whoever sits at the terminal."""

    def __init__(self, announcer: Announcer, config: FinetuneConfig, *, num_clips: int, show_bar: bool) -> None:
        self.announcer = announcer
        self.config = config
        self.num_clips = num_clips
        self.show_bar = show_bar
        self._bar: tqdm | None = None
        self._seconds_per_step: float | None = None
        self._usage: dict[str, float] = {}
        self._looked_at = -math.inf

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.show_bar:
            self._bar = tqdm(total=self.config.max_train_steps, initial=module.step, unit="step", dynamic_ncols=True)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._began = time.monotonic()

    def on_step(self, trainer: pl.Trainer, module: Denoiser) -> None:
        now = time.monotonic()
        spent = now - self._began
        before = self._seconds_per_step
        self._seconds_per_step = spent if before is None else SPEED_SMOOTHING * before + (1 - SPEED_SMOOTHING) * spent
        if now - self._looked_at >= INTERVAL_S:
            self._usage, self._looked_at = usage(module.device), now
        self.announcer.progress(
            step=module.step,
            max_steps=self.config.max_train_steps,
            epoch=epoch_at(module.step, self.config, self.num_clips),
            loss=module.loss,
            loss_smooth=module.loss_smooth,
            learning_rate=module.learning_rate,
            grad_norm=module.grad_norm,
            clips_per_second=round(clips_per_step(self.config) / self._seconds_per_step, 3),
            seconds_left=round((self.config.max_train_steps - module.step) * self._seconds_per_step, 1),
            **self._usage,
        )
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(loss=f"{module.loss_smooth:.4f}", refresh=False)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Validate(StepCallback):
    """The fixed-noise loss and the sounds: at step 0, every `validation_epochs` epochs, at the end, and sounds on request."""

    def __init__(
        self,
        announcer: Announcer,
        control: Control,
        config: FinetuneConfig,
        loss: ValidationLoss,
        sounds: ValidationSounds,
        progress: Progress,
        *,
        num_clips: int,
    ) -> None:
        self.announcer = announcer
        self.control = control
        self.config = config
        self.loss = loss
        self.sounds = sounds
        self.progress = progress
        self.num_clips = num_clips

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        # Also after a stop at a step whose validation was still to come: the plateau must have seen what it would have seen.
        if self._is_due(module.step) and self.progress.validated_at != module.step:
            self.validate(module)

    def on_step(self, trainer: pl.Trainer, module: Denoiser) -> None:
        if self.control.stop():
            return
        if self._is_due(module.step):
            self.validate(module)
        if self.control.wants("sample"):
            self._make_sounds(module)
            self.control.obeyed("sample")

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if module.step >= self.config.max_train_steps and self.progress.validated_at != module.step and self.control.stop() != NOW:
            self.validate(module)

    def validate(self, module: Denoiser) -> None:
        """Measure, adjust the learning rate where it follows the result, make the sounds, and say all of it."""
        metrics = self.measure(module)
        if metrics:
            module.plateau.update(deciding_loss(metrics))
        figures = self._make_sounds(module)
        if figures and figures.clap_score is not None:
            metrics["clap_score"] = figures.clap_score
        self._say(module, metrics, figures)

    def measure_for_checkpoint(self, module: Denoiser) -> None:
        """The loss alone, said too: a point more on the curve. The learning rate follows full validations only."""
        if self.progress.validated_at != module.step and (metrics := self.measure(module)):
            self._say(module, metrics)

    def _say(self, module: Denoiser, metrics: dict[str, float], figures: SoundFigures | None = None) -> None:
        best = self._is_best(metrics)
        self.announcer.say(
            VALIDATED,
            step=module.step,
            epoch=epoch_at(module.step, self.config, self.num_clips),
            **({name: metrics.get(name) for name in ("loss", "loss_ema", "clap_score")} | (figures.as_data() if figures else {})),
            best=best,
            learning_rate=module.learning_rate,
            **({} if self.loss.batches else {"message": "no clip is held out, so there is no validation loss"}),
        )

    def measure(self, module: Denoiser) -> dict[str, float]:
        """The loss at this step, remembered for its checkpoint."""
        if self.progress.validated_at != module.step:
            if self.loss.batches:
                self.announcer.waiting("validating")
            self.progress.metrics = self.loss.measure(module)
            self.progress.validated_at = module.step
        return self.progress.metrics

    def _make_sounds(self, module: Denoiser) -> SoundFigures | None:
        # They have done their work, and the rest of the model needs the room: with every weight trained they are as large as the UNet.
        module.zero_grad(set_to_none=True)
        try:
            return self.sounds.make(
                module,
                say=lambda data: self.announcer.say(SAMPLE, **data),
                report=lambda stage, done, total: self.announcer.waiting(stage, done=done, total=total),
                should_stop=lambda: self.control.stop() is not None,
            )
        except Stopped:
            return None

    def _is_due(self, step: int) -> bool:
        def rounds(step: int) -> int:
            return epoch_at(step, self.config, self.num_clips) // self.config.validation_epochs

        return step == 0 or rounds(step) > rounds(step - 1)

    def _is_best(self, metrics: dict[str, float]) -> bool:
        if "loss" not in metrics:
            return False
        loss, best = deciding_loss(metrics), self.progress.best_loss
        if best is None or loss < best:
            self.progress.best_loss = loss
            return True
        return False


class Save(StepCallback):
    """A checkpoint every `checkpointing_steps`, on request, and at the end.

    One that is saved on schedule is measured first, or the best could not be known; one that somebody waits for is not.
    """

    def __init__(
        self, announcer: Announcer, control: Control, config: FinetuneConfig, checkpoints: Checkpoints, validate: Validate
    ) -> None:
        self.announcer = announcer
        self.control = control
        self.config = config
        self.checkpoints = checkpoints
        self.validate = validate

    def on_step(self, trainer: pl.Trainer, module: Denoiser) -> None:
        if module.step % self.config.checkpointing_steps == 0 and module.step < self.config.max_train_steps:
            self.save(trainer, module, reason="interval")
        if self.control.wants("save"):
            self.save(trainer, module, reason="requested")
            self.control.obeyed("save")

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if module.step >= self.config.max_train_steps and self.control.stop() != NOW:
            self.save(trainer, module, reason="final")

    def save(self, trainer: pl.Trainer, module: Denoiser, *, reason: str) -> None:
        if self.checkpoints.saved_step == module.step:
            return
        if reason == "interval" and not self.control.stop():
            self.validate.measure_for_checkpoint(module)
        self.announcer.waiting("saving")
        data = self.checkpoints.save(
            module,
            optimizer=trainer.optimizers[0].state_dict(),
            scaler=trainer.precision_plugin.state_dict(),
            progress=self.validate.progress,
        )
        self.announcer.say(CHECKPOINT, **data, reason=reason)


class Obey(StepCallback):
    """Ends the run when it is asked to: at once for `now`, else after the step, with a checkpoint."""

    def __init__(self, control: Control, save: Save) -> None:
        self.control = control
        self.save = save

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        # fit() has just put its own handlers in their place.
        self.control.listen()
        if self.control.stop():
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.control.stop() == NOW:
            trainer.should_stop = True
            return
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def on_step(self, trainer: pl.Trainer, module: Denoiser) -> None:
        if self.control.stop():
            trainer.should_stop = True
            if module.step < self.save.config.max_train_steps:
                self.save.save(trainer, module, reason="stopped")


def deciding_loss(metrics: dict[str, float]) -> float:
    """The loss that the best checkpoint and the plateau are judged by: that of the weights one listens to."""
    return metrics.get("loss_ema", metrics["loss"])


def clips_per_step(config: FinetuneConfig) -> int:
    return config.train_batch_size * config.gradient_accumulation_steps


def epoch_at(step: int, config: FinetuneConfig, num_clips: int) -> int:
    """Whole passes over the training clips that are behind step `step`."""
    return step * clips_per_step(config) // num_clips
