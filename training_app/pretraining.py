"""Runs that make a model from nothing: `python -m gpu pretrain`, as a job like every fine-tune.

The recordings stay where they are: a pretraining reads them by path, also when it goes on.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from audioldm_site.jobs import queue
from gpu.errors import Fault
from gpu.originals.contents import Digests
from gpu.pretrain.stages import Stages
from training_app import storage
from training_app.models import Checkpoint, TrainingRun

log = logging.getLogger(__name__)

RECIPE_FILE = "recipe.json"
REGISTRY_COLUMNS = {"audio", "caption", "category", "url", "in_demo"}
CLAP_FEATURE_BYTES = 1001 * 64 * 2
"""One CLAP picture on the disk, at half precision; the largest of what is prepared."""


def create_pretraining(
    *, owner, recipe: Path, data: Sequence[Path], registries: Sequence[Path] | None = None, name: str | None = None, enqueue: bool = True
) -> TrainingRun:
    """Freeze the recipe in the run's folder and put the run in line.

    Args:
        data: zips of recordings.
        registries: a CSV for each zip; None finds them beside the zips, NAME.csv for NAME.zip or NAME_ogg.zip.
        enqueue: False leaves the run waiting without a queue entry, for a caller that executes it itself.
    Raises:
        Fault: the recipe or the recordings cannot be used, as far as can be told without torch, or there is no room.
    """
    raw, stages = _read(recipe)
    data = [path.resolve() for path in data]
    registries = [path.resolve() for path in registries] if registries else [_beside(path) for path in data]
    if len(registries) != len(data):
        raise Fault("pretrain.data_unusable", f"{len(data)} zips and {len(registries)} registries were given: each zip needs one")
    clips = sum(_look_at(archive, registry) for archive, registry in zip(data, registries, strict=True))
    storage.require_space(stages.clap.num_examples * CLAP_FEATURE_BYTES, folder=settings.DATA_DIR, what="what pretraining prepares")

    run = TrainingRun(
        owner=owner,
        task=TrainingRun.Task.PRETRAIN,
        name=" ".join((name or str(stages.studio.get("name") or recipe.stem)).split())[:120],
        dataset_name=", ".join(path.name for path in data)[:120],
        clip_count=clips,
    )
    run.config = {
        "task": run.task,
        "recipe": raw,
        "data": [_relative(path) for path in data],
        "registries": [_relative(path) for path in registries],
        "stages": stages.steps,
        "max_train_steps": sum(stages.steps.values()),
        "model": f"checkpoints/{storage.slug(run.name)}-{run.id.hex[:8]}",
    }
    run.folder.mkdir(parents=True)
    try:
        (run.folder / RECIPE_FILE).write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (run.folder / "config.json").write_text(json.dumps(run.config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        with transaction.atomic():
            run.full_clean(exclude=["dataset", "base_checkpoint"])
            run.save()
            if enqueue:
                queue.enqueue(run)
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)
        raise
    log.info("pretraining %s (%s) is in line", run.id, run.name)
    return run


def command(run: TrainingRun) -> list[str]:
    """The command of its process."""
    config, home = run.config, settings.DATA_DIR
    data, registries = ([str(home / path) for path in config[name]] for name in ("data", "registries"))
    return [
        sys.executable, "-m", "gpu", "pretrain", str(run.folder / RECIPE_FILE), str(run.folder),
        "--data", *data, "--registry", *registries, "--model", str(home / config["model"]),
    ]  # fmt: skip


def register_model(run: TrainingRun, data: Mapping[str, Any]) -> Checkpoint:
    """The row of the finished model. Runs inside the transaction that records the event.

    A model of equal content that is there already stays, and the new copy goes.
    """
    folder = Path(data["path"])
    known = Digests(whole=data["sha256"], content=data["content_sha256"], weights=data["weights_sha256"])
    row = storage.register_checkpoint(folder, origin=Checkpoint.Origin.RUN, name=run.name, owner=run.owner, known_digests=known)
    if row.folder != folder:
        transaction.on_commit(partial(shutil.rmtree, folder, ignore_errors=True))
    elif row.run_id is None:
        row.run, row.global_step = run, data["step"]
        row.save(update_fields=["run", "global_step"])
    return row


def stage_list(run: TrainingRun, snapshot: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages in order, each with its range of the run's steps, what is done of it and its curve; `state`: done, active or waiting.

    js/stages.js draws them anew as events come.
    """
    points = list(zip(snapshot["progress"]["step"], snapshot["progress"]["loss_smooth"], strict=True))
    found, first = [], 0
    for name, count in run.config["stages"].items():
        last = first + count
        state = "done" if run.global_step >= last else "active" if run.global_step >= first and run.status == "running" else "waiting"
        done = min(max(run.global_step - first, 0), count)
        losses = [loss for step, loss in points if first < step <= last]
        found.append(
            {"name": name, "title": TITLES[name], "first": first, "last": last, "steps": count, "done": done, "state": state, "losses": losses}
        )
        first = last
    return found


TITLES = {
    "vae": "VAE: mel pictures in few numbers",
    "clap": "CLAP: which caption belongs to which sound",
    "diffusion": "UNet and text encoders: sound from noise and a caption",
}


def _read(path: Path) -> tuple[dict[str, Any], Stages]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw.get("architecture"), dict):
            raise ValueError("architecture is missing")
        return raw, Stages.parse(raw)
    except KeyError as error:
        raise Fault("pretrain.recipe_invalid", f"{path.name} says nothing about {error}") from error
    except (OSError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Fault("pretrain.recipe_invalid", f"{path.name}: {error}") from error


def _look_at(archive: Path, registry: Path) -> int:
    """How many recordings may be trained on, by the registry."""
    for path in (archive, registry):
        if not path.is_file():
            raise Fault("pretrain.data_unusable", f"there is no file {path}")
    if not zipfile.is_zipfile(archive):
        raise Fault("pretrain.data_unusable", f"{archive.name} is no zip")
    try:
        with open(registry, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if lacking := REGISTRY_COLUMNS - set(rows.fieldnames or []):
                raise Fault("pretrain.data_unusable", f"{registry.name} has no column {', '.join(sorted(lacking))}")
            return sum(row["in_demo"] == "0" for row in rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Fault("pretrain.data_unusable", f"{registry.name}: {error}") from error


def _relative(path: Path) -> str:
    """To DATA_DIR where it lies there, so that a backup may be restored elsewhere."""
    home = settings.DATA_DIR.resolve()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)


def _beside(archive: Path) -> Path:
    return archive.with_name(archive.stem.removesuffix("_ogg") + ".csv")
