"""Sounds made from a prompt, with everything needed to make them again; and what judges the checkpoints that make them."""

from __future__ import annotations

import secrets
from pathlib import Path

from django.conf import settings
from django.db import models
from django.utils import timezone

from audioldm_site.jobs.models import Job, JobEvent
from datasets_app.models import Dataset
from gpu.events import Event
from training_app.models import Checkpoint

EVALUATION, LISTENING = "evaluation", "listening"


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


class Evaluation(Job):
    """Figures for a checkpoint, with another one and real sounds beside it. The report is a file; `summary` holds its figures for lists."""

    kind = EVALUATION
    queue = "generation"

    checkpoint = models.ForeignKey(Checkpoint, null=True, on_delete=models.PROTECT, related_name="evaluations")
    against = models.ForeignKey(Checkpoint, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    dataset = models.ForeignKey(Dataset, null=True, on_delete=models.SET_NULL, related_name="evaluations")
    dataset_name = models.CharField(max_length=120, help_text="As it was when the evaluation was made.")
    ears_name = models.CharField(max_length=160, help_text="Whose CLAP judges.")
    manifest_digest = models.CharField(max_length=64, blank=True)
    summary = models.JSONField(default=dict, blank=True, help_text="The report's figures; empty until it has finished.")
    elapsed_s = models.FloatField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.checkpoint} on {self.dataset_name}"

    @property
    def folder(self) -> Path:
        return settings.DATA_DIR / "evaluations" / str(self.id)

    def apply_event(self, event: Event) -> None:
        from generation_app import evaluations

        evaluations.apply_event(self, event)


class EvaluationEvent(JobEvent):
    job = models.ForeignKey(Evaluation, on_delete=models.CASCADE, related_name="events")

    class Meta(JobEvent.Meta):
        constraints = [models.UniqueConstraint(fields=["job", "seq"], name="evaluation_event_once")]


class Listening(Job):
    """A blind comparison of two checkpoints by ear. Its name says nothing about them: it is read before anybody may know."""

    kind = LISTENING
    queue = "generation"

    name = models.CharField(max_length=120)
    checkpoint = models.ForeignKey(Checkpoint, null=True, on_delete=models.PROTECT, related_name="listenings")
    against = models.ForeignKey(Checkpoint, null=True, on_delete=models.PROTECT, related_name="+")
    pair_count = models.PositiveIntegerField()
    elapsed_s = models.FloatField(null=True, blank=True)

    class Meta(Job.Meta):
        abstract = False
        verbose_name = "listening test"

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        return settings.DATA_DIR / "listenings" / str(self.id)

    def apply_event(self, event: Event) -> None:
        from generation_app import listenings

        listenings.apply_event(self, event)


class ListeningEvent(JobEvent):
    job = models.ForeignKey(Listening, on_delete=models.CASCADE, related_name="events")

    class Meta(JobEvent.Meta):
        constraints = [models.UniqueConstraint(fields=["job", "seq"], name="listening_event_once")]


def new_secret() -> str:
    return secrets.token_hex(16)


class ListeningSession(models.Model):
    """One listener's way through a test. `secret` decides the order of the pairs and which side each checkpoint is on."""

    listening = models.ForeignKey(Listening, on_delete=models.CASCADE, related_name="sessions")
    listener = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    secret = models.CharField(max_length=32, default=new_secret)
    started_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["started_at"]
        constraints = [models.UniqueConstraint(fields=["listening", "listener"], name="one_session_a_listener")]

    def __str__(self) -> str:
        return f"{self.listener} in {self.listening}"


class Preference(models.TextChoices):
    CHECKPOINT = "checkpoint", "the checkpoint"
    AGAINST = "against", "the other"
    NEITHER = "neither", "no preference"


class ListeningAnswer(models.Model):
    """What a listener preferred in one pair: never changed once given."""

    session = models.ForeignKey(ListeningSession, on_delete=models.CASCADE, related_name="answers")
    pair = models.PositiveIntegerField(help_text="Index of the prompt.")
    preference = models.CharField(max_length=10, choices=Preference)
    answered_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["answered_at"]
        constraints = [models.UniqueConstraint(fields=["session", "pair"], name="one_answer_a_pair")]

    def __str__(self) -> str:
        return f"pair {self.pair}: {self.preference}"
