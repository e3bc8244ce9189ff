"""Captioned sounds that a model can be fine-tuned on."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Self

from django.conf import settings
from django.db import models
from django.utils import timezone

from audioldm_site.jobs.models import OwnedQuerySet


class DatasetStatus(models.TextChoices):
    IMPORTING = "importing", "being imported"
    READY = "ready", "ready"
    FAILED = "failed", "refused"


class Split(models.TextChoices):
    TRAIN = "train", "train"
    VALIDATION = "validation", "validation"


class Origin(models.TextChoices):
    BUILTIN = "builtin", "built in"
    UPLOADED = "uploaded", "uploaded"
    IMPORTED = "imported", "imported in the terminal"
    SCANNED = "scanned", "found in the incoming folder"


class Dataset(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    name = models.CharField(max_length=120, unique=True)
    status = models.CharField(max_length=10, choices=DatasetStatus, default=DatasetStatus.IMPORTING, db_index=True)
    origin = models.CharField(max_length=10, choices=Origin)
    source_name = models.CharField(max_length=255, help_text="Name of the file that it came from.")
    source_sha256 = models.CharField(max_length=64, blank=True)
    problems = models.JSONField(default=list, help_text="What the import found: [{file, line, code, message}].")
    error_code = models.CharField(max_length=60, blank=True)
    error_detail = models.TextField(blank=True)
    split_seed = models.PositiveIntegerField(default=0)
    validation_share = models.FloatField(default=0.1)
    licence = models.CharField(max_length=200, blank=True)
    notes = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    objects = OwnedQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        return settings.DATA_DIR / "datasets" / str(self.id)


class ClipQuerySet(models.QuerySet):
    def usable(self) -> Self:
        """Clips that a run would take: decoded, captioned and not excluded."""
        return self.filter(excluded=False).exclude(caption="")


class Clip(models.Model):
    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="clips")
    position = models.PositiveIntegerField(help_text="Order in metadata.csv, from 0.")
    path = models.CharField(max_length=500, help_text="Relative to the dataset's folder.")
    original_name = models.CharField(max_length=500, help_text="As metadata.csv wrote it.")
    caption = models.TextField(blank=True)
    original_caption = models.TextField(blank=True)
    sha256 = models.CharField(max_length=64, db_index=True)
    size_bytes = models.PositiveBigIntegerField()
    duration_s = models.FloatField()
    sample_rate_hz = models.PositiveIntegerField()
    channels = models.PositiveSmallIntegerField()
    subtype = models.CharField(max_length=20, blank=True, help_text="soundfile's name of the sample format, e.g. PCM_16.")
    peak_dbfs = models.FloatField(null=True, help_text="None for digital silence.")
    loudness_lufs = models.FloatField(null=True, help_text="Integrated loudness (ITU-R BS.1770), None when too short or silent.")
    silence_share = models.FloatField(default=0.0, help_text="Share of the clip below -60 dBFS.")
    flags = models.JSONField(default=list, help_text="Codes: duplicate, silent, clipped, very_short, very_long, no_caption ...")
    peaks = models.JSONField(default=list, help_text="Waveform for drawing: whole numbers 0..100, evenly spaced in time.")
    split = models.CharField(max_length=10, choices=Split, default=Split.TRAIN, db_index=True)
    excluded = models.BooleanField(default=False)

    objects = ClipQuerySet.as_manager()

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["dataset", "position"], name="clip_position_once")]

    def __str__(self) -> str:
        return self.original_name

    @property
    def file(self) -> Path:
        return self.dataset.folder / self.path
