"""The course of a fine-tune, from `config.json` to its last event."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from gpu.announcer import Announcer
from gpu.config import FinetuneJob, ModelRef
from gpu.device import choose_device, device_name, fault_of, precision_words, prepare_device, require_precision, versions
from gpu.errors import Fault
from gpu.events import FAILED, FINISHED, STARTED, STOPPED, EventWriter, read_events
from gpu.finetune.callbacks import Obey, Report, Save, Validate, clips_per_step
from gpu.finetune.checkpoints import Checkpoints, Progress, load_resume_state, read_resume_state, saved_steps
from gpu.finetune.control import Control
from gpu.finetune.data import Clips, TrainingBatches, cache_clips, read_clips
from gpu.finetune.dry_run import DryRun, offering_less
from gpu.finetune.module import Denoiser
from gpu.finetune.validation import Studio, ValidationLoss, ValidationSounds, validation_prompts
from gpu.lora import inject_lora, load_lora, lora_rank
from gpu.models import LORA_FILE, UNET_FILE, describe, require_trainable, verify_checkpoint
from gpu.pipelines import LoadedPipeline, load_pipeline, require_base

FINISHED_CODE, FAILED_CODE, STOPPED_CODE = 0, 1, 3
ATTEMPT = "JOB_ATTEMPT"


class StopRequested(Exception):
    """Asked to stop before training had begun."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gpu finetune", description="Fine-tune as RUN_DIR/config.json says; a run that was interrupted goes on."
    )
    parser.add_argument(
        "folder", type=Path, metavar="RUN_DIR", help="holds config.json and manifest.jsonl; everything else is written here"
    )
    parser.add_argument("--progress", action="store_true", help="show a progress bar also where standard output is not a terminal")
    parser.add_argument("--without-preflight", action="store_true", help="leave out the step before the first that proves that one fits")
    arguments = parser.parse_args(argv)
    folder = arguments.folder.resolve()
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")

    control = Control(folder)
    with control.listening(), EventWriter(folder, attempt=attempt_number(folder)) as events:
        announcer = Announcer(events)
        try:
            show_bar = arguments.progress or sys.stdout.isatty()
            return finetune(folder, announcer, control, show_bar=show_bar, preflight=not arguments.without_preflight)
        except Exception as error:  # the process's boundary: whatever went wrong becomes the run's last event
            fault = fault_of(error)
            if fault.code == "internal":
                traceback.print_exc()
            print(f"{fault.code}: {fault.message}", file=sys.stderr)
            announcer.say(FAILED, **fault.as_data())
            return FAILED_CODE


def finetune(folder: Path, announcer: Announcer, control: Control, *, show_bar: bool = False, preflight: bool = True) -> int:
    """Train to the end or until asked to stop; return the exit code.

    Raises:
        Fault: anything that the user or the operator can mend.
    """
    began = time.monotonic()
    job = FinetuneJob.read(folder)
    config = job.config
    device = choose_device()
    prepare_device(device)
    precision = require_precision(config, device)
    cache_folder = Path(job.cache_dir) if job.cache_dir else folder / "cache"

    def report(stage: str, done: int, total: int) -> None:
        if control.stop():
            raise StopRequested
        announcer.waiting(stage, done=done, total=total)

    try:
        require_trainable(describe(Path(job.model.base)), audio_conditioning=config.audio_conditioning)
        clips_read = read_clips(folder, expected_digest=job.manifest_digest, report=report)
        announcer.waiting("loading", message=Path(job.model.base).name)
        loaded, start_unet = load_trainable(job, folder, device=device, memo=cache_folder)
        listen = config.audio_conditioning > 0
        clips = cache_clips(clips_read, loaded, cache_folder, duration_s=config.audio_length_in_s, report=report, listen=listen)
    except StopRequested:
        steps = saved_steps(folder)
        return _stopped(control, announcer, step=steps[-1] if steps else 0, saved=bool(steps))

    module = Denoiser(loaded.unet, loaded.pipeline.scheduler, config)
    checkpoints = Checkpoints(folder, job, model=loaded.facts, base_sha256=loaded.base_sha256, start_unet=start_unet, memo=cache_folder)
    state = resume_from(job, checkpoints, announcer)
    progress = load_resume_state(module, state) if state else Progress()
    first_step = module.step
    if first_step >= config.max_train_steps:
        return _nothing_left(first_step, job, checkpoints, announcer)
    checkpoints.require_room(module)

    studio = Studio(job.model, loaded, memo=cache_folder)
    prompts = validation_prompts(config, clips)
    announcer.say(STARTED, **_started(module, job, loaded, clips, prompts, precision=precision))
    latents = {
        "scaling_factor": loaded.pipeline.vae.config.scaling_factor,
        "num_train_timesteps": module.scheduler.config.num_train_timesteps,
    }
    del loaded
    studio.close()

    validate = Validate(
        announcer, control, config, ValidationLoss(clips, config, **latents),
        ValidationSounds(folder, prompts, config, studio, held_out=clips.validation), progress, num_clips=len(clips.train),
    )  # fmt: skip
    resumed, restore = state is not None, _RestoreOptimizer(state)
    del state  # three times the weights
    save = Save(announcer, control, config, checkpoints, validate)
    accumulate = config.gradient_accumulation_steps
    batches = TrainingBatches(clips, config, start=module.step * accumulate, stop=config.max_train_steps * accumulate, **latents)
    dry_run = DryRun()
    if preflight and not resumed and not control.stop():
        dry_run.rehearse(module, batches, announcer, precision=precision)
    trainer = quiet_trainer(
        folder,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        precision=precision,
        max_steps=config.max_train_steps - module.step,
        accumulate_grad_batches=accumulate,
        callbacks=[
            restore,
            Report(announcer, config, num_clips=len(clips.train), show_bar=show_bar),
            validate,
            dry_run,
            save,
            Obey(control, save),
        ],
    )
    with offering_less(config):
        trainer.fit(module, DataLoader(batches, batch_size=None))

    if module.step >= config.max_train_steps and checkpoints.saved_step == module.step:
        announcer.say(FINISHED, step=module.step, elapsed_s=round(time.monotonic() - began, 3))
        return FINISHED_CODE
    saved = checkpoints.saved_step == module.step or (resumed and module.step == first_step)
    return _stopped(control, announcer, step=module.step, saved=saved)


def load_trainable(job: FinetuneJob, folder: Path, *, device: torch.device, memo: Path) -> tuple[LoadedPipeline, Path | None]:
    """Open the model that the run starts from, with exactly the trained part requiring gradients.

    A LoRA that starts from a LoRA of the same rank goes on with that one. On top of anything else that was trained it is a new
    one, and what it lies on is written to `start/unet.safetensors` for its checkpoints.

    Returns:
        The model, and that file or None.
    """
    config = job.config
    if config.method == "full":
        loaded = load_pipeline(job.model, device=device, memo=memo)
        loaded.unet.requires_grad_(True)
        return loaded, None

    earlier = verify_checkpoint(Path(job.model.weights), only=(UNET_FILE, LORA_FILE)) if job.model.weights else None
    if (
        earlier
        and UNET_FILE not in earlier.files
        and lora_rank(state := load_file(Path(job.model.weights) / LORA_FILE)) == config.lora_rank
    ):
        loaded = load_pipeline(ModelRef(base=job.model.base, base_sha256=job.model.base_sha256), device=device, memo=memo)
        require_base(earlier, loaded.base_sha256, Path(job.model.weights))
        inject_lora(loaded.unet, rank=config.lora_rank)
        load_lora(loaded.unet, state)
        return loaded, None

    loaded = load_pipeline(job.model, device=device, memo=memo)
    start_unet = _keep_start(loaded, folder / "start" / UNET_FILE) if earlier else None
    inject_lora(loaded.unet, rank=config.lora_rank, seed=config.seed)
    return loaded, start_unet


def resume_from(job: FinetuneJob, checkpoints: Checkpoints, announcer: Announcer) -> dict[str, Any] | None:
    """The state to go on from: of this run's newest whole checkpoint, else of the run that this one continues, else None.

    Raises:
        Fault: there are checkpoints and none is whole, or the other run's is damaged.
    """
    checkpoints.clear_unfinished()

    def skipped(path: Path, fault: Fault) -> None:
        announcer.waiting("loading", message=f"{path.name} is damaged and left out ({fault.message})")

    own = checkpoints.newest_whole(skipped)
    if own:
        return read_resume_state(own, method=job.config.method)
    if job.resume_from:
        verify_checkpoint(Path(job.resume_from))
        return read_resume_state(Path(job.resume_from), method=job.config.method)
    return None


def quiet_trainer(folder: Path, **settings: Any) -> pl.Trainer:
    """A Trainer that trains and nothing else: no files, no log, no bar, no checks of its own."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    return pl.Trainer(
        default_root_dir=folder,
        devices=1,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **settings,
    )


class _RestoreOptimizer(pl.Callback):
    """Gives the optimizer (and the loss scale of fp16) back what the checkpoint remembers of it."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        self.state = state

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.state is None:
            return
        optimizer = trainer.optimizers[0]
        # The moments are the checkpoint's; weight decay and the like are this run's. Copied, so that the file is let go of: what
        # retention removes would else keep its place on the disk for as long as the run lives.
        moments = {index: {name: _own(value) for name, value in state.items()} for index, state in self.state["optimizer"]["state"].items()}
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.state["scaler"]:
            trainer.precision_plugin.load_state_dict(self.state["scaler"])
        self.state = None


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _nothing_left(step: int, job: FinetuneJob, checkpoints: Checkpoints, announcer: Announcer) -> int:
    """The run was interrupted between its last checkpoint and its last word, or was never given a step to do."""
    if checkpoints.steps():
        announcer.say(FINISHED, step=step, elapsed_s=0.0)
        return FINISHED_CODE
    raise Fault(
        "config.invalid",
        f"max_train_steps ({job.config.max_train_steps}) must be more than the {step} steps of {job.resume_from}, which this run goes on from",
    )


def _stopped(control: Control, announcer: Announcer, *, step: int, saved: bool) -> int:
    if control.orphaned:
        # No ending: whoever finds the run goes on from its last checkpoint.
        announcer.waiting("stopping", message="the worker that started this run is gone")
    else:
        announcer.say(STOPPED, step=step, saved=saved)
    return STOPPED_CODE


def _started(
    module: Denoiser, job: FinetuneJob, loaded: LoadedPipeline, clips: Clips, prompts: list[str], *, precision: str
) -> dict[str, Any]:
    return {
        "step": module.step,
        "max_steps": job.config.max_train_steps,
        "steps_per_epoch": math.ceil(len(clips.train) / clips_per_step(job.config)),
        "device": device_name(loaded.device),
        "precision": precision_words(precision),
        "trainable_parameters": sum(weight.numel() for weight in module.trained().values()),
        "total_parameters": sum(loaded.facts.parameters.values()),
        "clips": len(clips.train),
        "validation_clips": len(clips.validation),
        "prompts": prompts,
        "versions": versions(),
        "pid": os.getpid(),
    }


def _keep_start(loaded: LoadedPipeline, path: Path) -> Path:
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        save_file({name: value.cpu().contiguous() for name, value in loaded.unet.state_dict().items()}, temporary)
        temporary.replace(path)
    return path


def attempt_number(folder: Path) -> int:
    """As the supervisor counts, else one more than the last that wrote here."""
    if ATTEMPT in os.environ:
        return int(os.environ[ATTEMPT])
    return max((event.attempt for event in read_events(folder)), default=0) + 1
