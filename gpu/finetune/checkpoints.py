"""What a run saves, how it is read back, and which checkpoints stay.

A checkpoint appears whole: it is written to `.tmp-…`, synced to the disk and renamed. It holds

    checkpoint.json          `gpu.models.CheckpointFacts`, with the SHA-256 of every other file
    lora.safetensors         the result of training, fp32: the moving average where the run keeps one
    or unet.safetensors
    resume.pt                the weights as they are trained, moving average, optimizer, schedule: all that going on needs

A LoRA that was trained on top of another fine-tune has that one's whole UNet beside it (`unet.safetensors`, a hard link where
the file system can), so that every checkpoint is complete with its base model alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpu.cache import model_digest
from gpu.config import FinetuneJob
from gpu.device import versions
from gpu.errors import Fault
from gpu.events import now
from gpu.finetune.module import Denoiser
from gpu.lora import TARGET_MODULES, lora_state
from gpu.manifest import sha256_of
from gpu.models import CHECKPOINT_FILE, LORA_FILE, RESUME_FILE, UNET_FILE, CheckpointFacts, ModelFacts, read_checkpoint, verify_checkpoint
from gpu.originals.contents import weights_digest

CHECKPOINTS = "checkpoints"
PINNED_FILE = "pinned"
FREE_SPACE_MARGIN_BYTES = 64 * 2**20
RESUME_VERSION = 1
_NAME = re.compile(r"global_step=(\d+)")


@dataclass
class Progress:
    """What a run remembers beside weights and optimizer.

    Attributes:
        validated_at: step of the last validation, -1 for none.
        best_loss: lowest validation loss so far, None for none.
        metrics: of the last validation.
    """

    validated_at: int = -1
    best_loss: float | None = None
    metrics: dict[str, float] | None = None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        start_unet: the UNet that a LoRA lies on when that is not the base model's, else None.
        memo: folder where the digests of model folders are remembered.
    """

    def __init__(
        self, folder: Path, job: FinetuneJob, *, model: ModelFacts, base_sha256: str, start_unet: Path | None = None, memo: Path | None = None
    ) -> None:
        self.folder = folder
        self.job = job
        self.model = model
        self.base_sha256 = base_sha256
        self.start_unet = start_unet
        self.memo = memo
        self.saved_step: int | None = None

    def require_room(self, module: Denoiser) -> None:
        """Before the first step: whether one checkpoint would fit, so that nothing is learned that cannot be kept.

        Raises:
            Fault: `disk.full`.
        """
        trained = _size_bytes({name: weight.detach() for name, weight in module.trained().items()})
        # The weights twice (to hear, to go on with), AdamW's two moments, and the moving average.
        _require_space(self.folder, 4 * trained + _size_bytes(module.ema))

    def save(self, module: Denoiser, *, optimizer: Mapping[str, Any], scaler: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Save the current step and return what its event says, but the reason.

        Raises:
            Fault: `disk.full`, before anything is written.
        """
        home = self.folder / CHECKPOINTS
        home.mkdir(exist_ok=True)
        resume = resume_state(module, optimizer=optimizer, scaler=scaler, progress=progress)
        result = {name: weight.cpu().contiguous() for name, weight in module.result().items()}
        _require_space(home, _size_bytes(resume) + _size_bytes(result))

        final = home / checkpoint_name(module.step)
        temporary = home / f".tmp-{final.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            self._write_weights(temporary, module, result)
            # Through Python's file: a full disk is then the cause of torch's error, which alone says "unexpected pos 576 vs 534".
            with open(temporary / RESUME_FILE, "wb") as file:
                torch.save(resume, file)
            metrics = dict(progress.metrics or {}) if progress.validated_at == module.step else {}
            facts = self._facts(temporary, module, metrics)
            (temporary / CHECKPOINT_FILE).write_text(_to_json(facts), encoding="utf-8")
            _sync(temporary)
            # A damaged one of the same step, from which this attempt could not go on.
            shutil.rmtree(final, ignore_errors=True)
            temporary.replace(final)
            _sync_folder(home)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self.saved_step = module.step
        best = self.best()
        return {
            "step": module.step,
            "path": f"{CHECKPOINTS}/{final.name}",
            "size_bytes": sum(path.stat().st_size for path in final.iterdir()),
            "sha256": facts.files[facts.weights_file],
            "method": facts.method,
            "metrics": metrics,
            "best": best == module.step,
            "has_resume_state": True,
            "removed": self.retain(),
        }

    def steps(self) -> list[int]:
        return saved_steps(self.folder)

    def path(self, step: int) -> Path:
        return self.folder / CHECKPOINTS / checkpoint_name(step)

    def newest_whole(self, skipped: Callable[[Path, Fault], None]) -> Path | None:
        """The newest checkpoint that can be gone on from.

        Args:
            skipped: told about each newer one that is damaged.
        """
        for step in reversed(self.steps()):
            try:
                if RESUME_FILE in verify_checkpoint(self.path(step)).files:
                    return self.path(step)
            except Fault as fault:
                skipped(self.path(step), fault)
        return None

    def best(self) -> int | None:
        """The step with the lowest validation loss among those that were validated when they were saved."""
        losses = {}
        for step in self.steps():
            try:
                metrics = read_checkpoint(self.path(step)).metrics
            except Fault:
                continue
            if "loss" in metrics:
                losses[step] = metrics.get("loss_ema", metrics["loss"])
        return min(losses, key=lambda step: (losses[step], step)) if losses else None

    def retain(self) -> list[str]:
        """Remove all but the newest, the best and the pinned; return what was removed, relative to the run's folder."""
        steps = self.steps()
        kept = set(steps[-self.job.config.checkpoints_total_limit :]) | {self.best()} | self.pinned()
        removed = []
        for step in steps:
            if step not in kept:
                # Renamed first: a process killed in between leaves no half checkpoint under a good name.
                rubbish = self.path(step).with_name(f".tmp-removed-{checkpoint_name(step)}")
                self.path(step).replace(rubbish)
                shutil.rmtree(rubbish, ignore_errors=True)
                removed.append(f"{CHECKPOINTS}/{checkpoint_name(step)}")
        return removed

    def pinned(self) -> set[int]:
        """The steps in the run's `pinned` file, one a line: retention never removes them."""
        path = self.folder / PINNED_FILE
        lines = path.read_text(encoding="utf-8").split() if path.is_file() else []
        return {int(line) for line in lines if line.isdigit()}

    def clear_unfinished(self) -> None:
        """Remove what a killed process left half-written."""
        for path in (self.folder / CHECKPOINTS).glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _write_weights(self, folder: Path, module: Denoiser, result: dict[str, Tensor]) -> None:
        about = {"format": "pt", "base_sha256": self.base_sha256, "licence": self.model.licence, "step": str(module.step)}
        if self.job.config.method == "lora":
            rank = str(self.job.config.lora_rank)
            lora = {name: weight.contiguous() for name, weight in lora_state(module.unet, result).items()}
            save_tensors(
                lora, folder / LORA_FILE, metadata={**about, "rank": rank, "alpha": rank, "target_modules": ",".join(TARGET_MODULES)}
            )
            if self.start_unet:
                _link_or_copy(self.start_unet, folder / UNET_FILE)
        else:
            save_tensors({**_frozen_state(module), **result}, folder / UNET_FILE, metadata=about)

    def _facts(self, folder: Path, module: Denoiser, metrics: dict[str, float]) -> CheckpointFacts:
        base = Path(self.job.model.base)
        return CheckpointFacts(
            step=module.step,
            method=self.job.config.method,
            weights="ema" if module.ema is not None else "raw",
            base=os.path.relpath(base, self.folder),
            base_sha256=self.base_sha256,
            files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
            config=self.job.config.to_dict(),
            metrics=metrics,
            # By its weights the base is known again where it was converted anew, or is called otherwise.
            model={**self.model.as_dict(), "weights_sha256": model_digest(base, memo=self.memo, digest_of=weights_digest)},
            licence=self.model.licence,
            manifest_digest=self.job.manifest_digest,
            versions=versions(),
            created_at=now(),
        )


def saved_steps(folder: Path) -> list[int]:
    """The steps that a run has checkpoints of, whole or not, oldest first."""
    home = folder / CHECKPOINTS
    found = [_NAME.fullmatch(path.name) for path in (home.iterdir() if home.is_dir() else ())]
    return sorted(int(match[1]) for match in found if match)


def checkpoint_name(step: int) -> str:
    return f"global_step={step:06d}"


def resume_state(module: Denoiser, *, optimizer: Mapping[str, Any], scaler: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Plain values and tensors only, so that reading it back can refuse everything else."""
    return {
        "version": RESUME_VERSION,
        "step": module.step,
        "method": module.config.method,
        "weights": {name: weight.detach() for name, weight in module.trained().items()},
        "ema": module.ema,
        "optimizer": dict(optimizer),
        "scaler": dict(scaler),
        "plateau": module.plateau.state_dict(),
        "loss_smooth": module.loss_smooth,
        "progress": vars(progress).copy(),
    }


def save_tensors(tensors: dict[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    """Write safetensors so that equal content gives equal bytes: the library leaves the metadata in an order of chance."""
    save_file(tensors, path, metadata=metadata)
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def read_resume_state(folder: Path, *, method: str) -> dict[str, Any]:
    """The full state of a checkpoint that was verified before.

    Raises:
        Fault: `checkpoint.mismatch`, it was trained by another method; `checkpoint.no_resume_state`; `checkpoint.corrupt`.
    """
    path = folder / RESUME_FILE
    if not path.is_file():
        raise Fault("checkpoint.no_resume_state", f"{folder} holds weights only: a new run can start from it, but none can go on")
    try:
        # Mapped, not read: it is four times the weights, and each part is copied to its own place.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch and pickle raise a dozen types for a file that is not what it should be
        raise Fault("checkpoint.corrupt", f"{path} cannot be read: {type(error).__name__}") from error
    if state["version"] != RESUME_VERSION:
        raise Fault("checkpoint.mismatch", f"{path} has format {state['version']}; this version reads {RESUME_VERSION}")
    if state["method"] != method:
        raise Fault(
            "checkpoint.mismatch",
            f"{folder} was trained with method {state['method']}; a run that goes on from it cannot change to {method}",
        )
    return state


def load_resume_state(module: Denoiser, state: Mapping[str, Any]) -> Progress:
    """Put weights, moving average and schedule back; the optimizer has to wait for Lightning.

    Raises:
        Fault: `checkpoint.mismatch`, other weights are trained now than then (as with another LoRA rank).
    """
    trained = module.trained()
    if {name: weight.shape for name, weight in trained.items()} != {name: weight.shape for name, weight in state["weights"].items()}:
        raise Fault("checkpoint.mismatch", "the checkpoint to go on from trained other weights: method and lora_rank must stay the same")
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(state["weights"][name])
    if module.ema is not None:
        # A run that goes on with a moving average where the first had none starts it here.
        for name, weight in (state["ema"] or state["weights"]).items():
            module.ema[name].copy_(weight)
    module.step = state["step"]
    module.loss_smooth = state["loss_smooth"]
    module.plateau.load_state_dict(state["plateau"])
    return Progress(**state["progress"])


def _frozen_state(module: Denoiser) -> dict[str, Tensor]:
    trained = module.trained()
    return {name: value.cpu().contiguous() for name, value in module.unet.state_dict().items() if name not in trained}


def _require_space(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if size_bytes + FREE_SPACE_MARGIN_BYTES > free:
        raise Fault(
            "disk.full",
            f"a checkpoint of {size_bytes / 2**20:.0f} MB does not fit: {free / 2**20:.0f} MB are free under {folder}, of which {FREE_SPACE_MARGIN_BYTES / 2**20:.0f} MB stay free",
            operator=True,
        )


def _size_bytes(values: Any) -> int:
    if isinstance(values, Tensor):
        return values.nbytes
    if isinstance(values, Mapping):
        return sum(_size_bytes(value) for value in values.values())
    return 0


def _to_json(facts: CheckpointFacts) -> str:
    return json.dumps(facts.as_dict(), indent=1, ensure_ascii=False) + "\n"


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
