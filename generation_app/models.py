"""Sounds made from a prompt, with everything needed to make them again."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.db import models

from audioldm_site.jobs.models import Job, JobEvent
from gpu.events import Event
from training_app.models import Checkpoint


class Generation(Job):
    kind = "generation"

    checkpoint = models.ForeignKey(Checkpoint, null=True, on_delete=models.PROTECT, related_name="generations")
    prompt = models.TextField(help_text="Also in config; here for searching.")
    favourite = models.BooleanField(default=False)
    notes = models.TextField(blank=True)
    elapsed_s = models.FloatField(null=True, blank=True)

    def __str__(self) -> str:
        return self.prompt[:80]

    @property
    def folder(self) -> Path:
        return settings.DATA_DIR / "generations" / str(self.id)

    def apply_event(self, event: Event) -> None:
        from generation_app import services

        services.apply_event(self, event)


class GenerationEvent(JobEvent):
    job = models.ForeignKey(Generation, on_delete=models.CASCADE, related_name="events")

    class Meta(JobEvent.Meta):
        constraints = [models.UniqueConstraint(fields=["job", "seq"], name="generation_event_once")]


class Waveform(models.Model):
    """One candidate of a generation. `index` 0 is the one that CLAP ranks best."""

    generation = models.ForeignKey(Generation, on_delete=models.CASCADE, related_name="waveforms")
    index = models.PositiveSmallIntegerField()
    seed = models.PositiveBigIntegerField()
    audio = models.CharField(max_length=300, help_text="Relative to the generation's folder.")
    sha256 = models.CharField(max_length=64)
    duration_s = models.FloatField()
    sample_rate_hz = models.PositiveIntegerField()
    clap_score = models.FloatField(null=True, blank=True)
    flags = models.JSONField(default=list, blank=True, help_text="What sounds wrong: silent, clipped, dc_offset, constant_noise.")
    peaks = models.JSONField(default=list, blank=True)
    favourite = models.BooleanField(default=False)

    class Meta:
        ordering = ["index"]
        constraints = [models.UniqueConstraint(fields=["generation", "index"], name="waveform_index_once")]

    @property
    def file(self) -> Path:
        return self.generation.folder / self.audio
