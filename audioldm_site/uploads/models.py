"""What is known about an upload. Its bytes lie in `DATA_DIR/parts/<id>/`, under names of ours."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from django.conf import settings
from django.db import models
from django.utils import timezone

FOLDER = "parts"
PART_FILE = "part"


class UploadQuerySet(models.QuerySet):
    def of(self, user) -> Self:
        """Uploads are never shared: not even staff go on with another's."""
        return self.filter(owner=user)

    def unfinished(self) -> Self:
        return self.filter(finished_at=None)


class Upload(models.Model):
    """One file on its way. `offset` counts the bytes that are safe on the disk, so it is what a client may rely on after any crash."""

    class Kind(models.TextChoices):
        DATASET = "dataset", "dataset"
        CHECKPOINT = "checkpoint", "model"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="uploads")
    kind = models.CharField(max_length=10, choices=Kind)
    filename = models.CharField(max_length=255, help_text="As its owner calls it; never a path here.")
    label = models.CharField(max_length=115, blank=True, help_text="The name that what comes of it shall have.")
    metadata = models.CharField(max_length=4000, blank=True, help_text="As the client sent it.")
    length = models.BigIntegerField(help_text="Bytes in all.")
    offset = models.BigIntegerField(default=0, help_text="Bytes that are safe on the disk.")
    created_at = models.DateTimeField(default=timezone.now)
    touched_at = models.DateTimeField(default=timezone.now, db_index=True, help_text="When bytes came last.")
    finished_at = models.DateTimeField(null=True, blank=True)
    location = models.CharField(max_length=200, blank=True, help_text="The address of what came of it.")
    error_code = models.CharField(max_length=60, blank=True)
    error_detail = models.TextField(blank=True)

    objects = UploadQuerySet.as_manager()

    class Meta:
        ordering = ["-touched_at"]

    def __str__(self) -> str:
        return f"{self.filename} ({self.offset} of {self.length} bytes)"

    @property
    def folder(self) -> Path:
        return settings.DATA_DIR / FOLDER / str(self.pk)

    @property
    def part(self) -> Path:
        return self.folder / PART_FILE

    @property
    def expires_at(self) -> datetime:
        return self.touched_at + timedelta(hours=settings.ENVIRONMENT.upload_keep_hours)

    @property
    def is_complete(self) -> bool:
        return self.offset >= self.length

    @property
    def percent(self) -> int:
        return int(100 * self.offset / self.length) if self.length else 100
