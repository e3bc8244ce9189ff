"""Everything that changes generations."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from audioldm_site.jobs import lifecycle, queue
from generation_app.models import Generation, Waveform
from gpu.config import GenerateConfig, GenerateJob
from gpu.errors import Fault
from gpu.events import FINISHED, WAVEFORM, Event
from training_app import storage
from training_app.models import Checkpoint

log = logging.getLogger(__name__)


def create_generation(*, owner, checkpoint: Checkpoint, values: Mapping[str, Any], enqueue: bool = True) -> Generation:
    """Freeze a request for sounds and put it in line.

    Args:
        values: parameters by name; what is absent comes from the checkpoint's own recommendation, then from the configuration.
        enqueue: False leaves it waiting without a queue entry, for a caller that executes it itself.
    Raises:
        ConfigError: wrong values, by name.
        Fault: the checkpoint cannot be used.
    """
    if checkpoint.retired:
        raise Fault("checkpoint.retired", f"checkpoint {checkpoint.name} is retired; choose another or bring it back in the admin")
    if not checkpoint.can_generate:
        raise Fault("checkpoint.not_playable", f"{checkpoint.name} cannot make sounds: {checkpoint.why_not or 'its kind is not known'}")
    config = GenerateConfig.parse({**GenerateConfig.known(storage.recommended(checkpoint)), **values})
    generation = Generation(owner=owner, checkpoint=checkpoint, prompt=config.prompt, config=config.to_dict())
    job = GenerateJob(config=config, model=storage.model_ref(checkpoint), provenance=storage.provenance(checkpoint))
    generation.folder.mkdir(parents=True)
    try:
        job.write(generation.folder)
        with transaction.atomic():
            generation.full_clean()
            generation.save()
            if enqueue:
                queue.enqueue(generation)
    except BaseException:
        shutil.rmtree(generation.folder, ignore_errors=True)
        raise
    return generation


def request_stop(generation: Generation) -> bool:
    """Ask a waiting or running generation to end; False when it had ended already."""
    return lifecycle.request_stop(generation, save=False)


def retry(generation: Generation) -> bool:
    """Put a stopped or failed generation back in line; False when it is not one."""
    with transaction.atomic():
        if not lifecycle.requeue(generation):
            return False
        (generation.folder / "control" / "stop").unlink(missing_ok=True)
        queue.enqueue(generation)
    return True


def set_favourite(generation: Generation, *, favourite: bool) -> None:
    Generation.objects.filter(pk=generation.pk).update(favourite=favourite)
    generation.favourite = favourite


def delete_generation(generation: Generation) -> None:
    """Remove a generation that has ended, with its sounds.

    Raises:
        Fault: it is still waiting or running.
    """
    if generation.is_active:
        raise Fault("run.active", "this generation has not ended; stop it first")
    folder = generation.folder
    generation.delete()
    shutil.rmtree(folder, ignore_errors=True)


def apply_event(generation: Generation, event: Event) -> None:
    """What an event means for the generation's rows. Runs inside the transaction that records the event."""
    data = event.data
    if event.type == WAVEFORM:
        fields = ("seed", "audio", "sha256", "duration_s", "sample_rate_hz", "clap_score", "flags", "peaks")
        Waveform.objects.update_or_create(
            generation=generation, index=data["index"], defaults={name: data[name] for name in fields if name in data}
        )
    elif event.type == FINISHED:
        Generation.objects.filter(pk=generation.pk).update(elapsed_s=data.get("elapsed_s"))
        generation.elapsed_s = data.get("elapsed_s")
