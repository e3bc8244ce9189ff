"""Fine-tuning runs, the checkpoints that they start from and produce, and how checkpoints come in and go out."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Self

from django.conf import settings
from django.db import models
from django.utils import timezone

from audioldm_site.accounts.models import Share
from audioldm_site.jobs.models import Job, JobEvent, OwnedQuerySet, Status
from datasets_app.models import Dataset
from gpu.events import Event
from gpu.models import is_non_commercial


class CheckpointQuerySet(OwnedQuerySet):
    def _shared(self) -> models.Q:
        """A shared run's checkpoints are shared with it."""
        return super()._shared() | models.Q(run__in=Share.objects.exclude(object_id=None).values("object_id"))

    def usable(self) -> Self:
        """Checkpoints whose files are there and that nobody retired."""
        return self.filter(retired=False, missing=False)

    def playable(self) -> Self:
        """Checkpoints that sounds can be made with."""
        return self.usable().filter(can_generate=True)

    def trainable(self) -> Self:
        """Checkpoints that runs can start from."""
        return self.usable().filter(can_finetune=True)


class Checkpoint(models.Model):
    """Weights that sounds can be made with and runs can start from.

    `path` is relative to DATA_DIR. A `diffusers` checkpoint is a whole model folder; a `run` checkpoint is a folder with the trained UNet
    or LoRA on top of `base`.
    """

    class Family(models.TextChoices):
        AUDIOLDM2 = "audioldm2", "AudioLDM 2"
        AUDIOLDM = "audioldm", "AudioLDM"
        AUDIOLDM_T5 = "audioldm_t5", "AudioLDM with T5"

    class Format(models.TextChoices):
        DIFFUSERS = "diffusers", "diffusers folder"
        RUN = "run", "run checkpoint"

    class Origin(models.TextChoices):
        BUILTIN = "builtin", "built in"
        UPLOADED = "uploaded", "uploaded"
        IMPORTED = "imported", "imported in the terminal"
        SCANNED = "scanned", "found in the incoming folder"
        HUB = "hub", "from the model hub"
        RUN = "run", "made by a run"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    name = models.CharField(max_length=160, unique=True)
    family = models.CharField(max_length=20, choices=Family)
    format = models.CharField(max_length=12, choices=Format)
    origin = models.CharField(max_length=10, choices=Origin)
    run = models.ForeignKey("TrainingRun", null=True, blank=True, on_delete=models.SET_NULL, related_name="checkpoints")
    base = models.ForeignKey("self", null=True, blank=True, on_delete=models.PROTECT, related_name="descendants")
    method = models.CharField(max_length=8, blank=True, help_text="lora or full, for a run checkpoint.")
    global_step = models.PositiveIntegerField(null=True, blank=True)
    metrics = models.JSONField(default=dict, blank=True)
    facts = models.JSONField(default=dict, blank=True, help_text="What the model says of itself: sample_rate_hz, n_mels, parameters, prediction_type ...")
    defaults = models.JSONField(default=dict, blank=True, help_text="Parameters that suit this model, e.g. audio_length_in_s.")
    path = models.CharField(max_length=500, unique=True)
    size_bytes = models.PositiveBigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True)
    licence = models.CharField(max_length=200, blank=True)
    notes = models.TextField(blank=True)
    can_generate = models.BooleanField(default=True)
    can_finetune = models.BooleanField(default=True)
    has_resume_state = models.BooleanField(default=False)
    is_best = models.BooleanField(default=False)
    pinned = models.BooleanField(default=False)
    retired = models.BooleanField(default=False)
    missing = models.BooleanField(default=False, help_text="Its files were not there at the last look.")
    damaged = models.BooleanField(default=False, help_text="Its files were not the recorded ones at the last look.")
    verified_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    objects = CheckpointQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        return settings.DATA_DIR / self.path

    @property
    def why_not(self) -> str:
        """Why sounds cannot be made with it, or runs cannot start from it; "" when both can."""
        return self.facts.get("why_not") or ""

    @property
    def is_non_commercial(self) -> bool:
        """Whether its licence says that it may not be used commercially."""
        return is_non_commercial(self.licence)


class TrainingRun(Job):
    kind = "training"

    class Task(models.TextChoices):
        FINETUNE = "finetune", "fine-tune"
        PRETRAIN = "pretrain", "pretraining"

    task = models.CharField(max_length=10, choices=Task, default=Task.FINETUNE)
    name = models.CharField(max_length=120)
    dataset = models.ForeignKey(Dataset, null=True, on_delete=models.SET_NULL, related_name="runs")
    dataset_name = models.CharField(max_length=120, help_text="As it was when the run was made.")
    base_checkpoint = models.ForeignKey(Checkpoint, null=True, on_delete=models.PROTECT, related_name="runs")
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="children", help_text="The run that this one continues.")
    resume_from = models.ForeignKey(Checkpoint, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    manifest_digest = models.CharField(max_length=64, blank=True)
    clip_count = models.PositiveIntegerField(default=0)
    versions = models.JSONField(default=dict, blank=True, help_text="Of the program and its libraries, as the trainer reported them.")
    global_step = models.PositiveIntegerField(default=0)
    epoch = models.PositiveIntegerField(default=0)
    latest_loss = models.FloatField(null=True, blank=True)
    best_validation_loss = models.FloatField(null=True, blank=True)
    tags = models.CharField(max_length=300, blank=True, help_text="Separated by commas.")
    notes = models.TextField(blank=True)
    archived = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        return settings.DATA_DIR / "runs" / str(self.id)

    @property
    def is_pretraining(self) -> bool:
        """Whether it makes a model from nothing: then it has no dataset and no base checkpoint, and its `config` names a recipe."""
        return self.task == self.Task.PRETRAIN

    @property
    def max_train_steps(self) -> int:
        return self.config["max_train_steps"]

    def apply_event(self, event: Event) -> None:
        from training_app import services

        services.apply_event(self, event)


class TrainingEvent(JobEvent):
    job = models.ForeignKey(TrainingRun, on_delete=models.CASCADE, related_name="events")

    class Meta(JobEvent.Meta):
        constraints = [models.UniqueConstraint(fields=["job", "seq"], name="training_event_once")]
        indexes = [models.Index(fields=["job", "type", "seq"], name="training_event_by_type")]


class Conversion(Job):
    """A model that comes in from elsewhere, or a checkpoint that is written in the form that another tool reads."""

    kind = "conversion"
    queue = "datasets"

    class Direction(models.TextChoices):
        IMPORT = "import", "import"
        EXPORT = "export", "export"

    class Format(models.TextChoices):
        CKPT = "ckpt", "original .ckpt"
        DIFFUSERS = "diffusers", "diffusers folder"
        SAFETENSORS = "safetensors", "one safetensors file"
        LORA = "lora", "LoRA only"

    direction = models.CharField(max_length=6, choices=Direction)
    name = models.CharField(max_length=160, help_text="Of the checkpoint that it makes, or that it writes out.")
    source = models.CharField(max_length=500, help_text="What people call what it reads: a file, a folder, hub:OWNER/NAME, or a checkpoint.")
    format = models.CharField(max_length=12, choices=Format, blank=True, help_text="Of an export.")
    checkpoint = models.ForeignKey(
        Checkpoint, null=True, blank=True, on_delete=models.SET_NULL, related_name="conversions", help_text="What an import made, or an export writes."
    )
    base = models.ForeignKey(
        Checkpoint, null=True, blank=True, on_delete=models.PROTECT, related_name="+", help_text="The whole model that an imported LoRA lies on."
    )
    result = models.CharField(max_length=500, blank=True, help_text="File of an export, relative to DATA_DIR where it lies there; empty when it is gone.")
    size_bytes = models.PositiveBigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True)
    elapsed_s = models.FloatField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.get_direction_display()} of {self.name}"

    @property
    def folder(self) -> Path:
        return settings.DATA_DIR / "conversions" / str(self.id)

    @property
    def is_export(self) -> bool:
        return self.direction == self.Direction.EXPORT

    @property
    def already_here(self) -> bool:
        """Whether an import found its model registered already, so that nothing was stored twice."""
        return bool(self.config.get("already_here"))

    @property
    def is_downloadable(self) -> bool:
        """Whether a page may offer its file: what a command wrote elsewhere is for whoever typed it."""
        return self.is_export and self.status == Status.SUCCEEDED and self.result.startswith(f"exports/{self.id}/")

    @property
    def result_path(self) -> Path | None:
        """What the export wrote; None when there is none, or none any more. May be anywhere, when a command wrote it."""
        return settings.DATA_DIR / self.result if self.result else None

    def apply_event(self, event: Event) -> None:
        from training_app import conversions

        conversions.apply_event(self, event)


class ConversionEvent(JobEvent):
    job = models.ForeignKey(Conversion, on_delete=models.CASCADE, related_name="events")

    class Meta(JobEvent.Meta):
        constraints = [models.UniqueConstraint(fields=["job", "seq"], name="conversion_event_once")]
