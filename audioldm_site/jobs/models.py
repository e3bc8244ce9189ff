"""A job is a row with a small state machine; what it said is numbered rows beside it.

Only `audioldm_site.jobs.lifecycle` moves `status`, by compare-and-set UPDATEs. The queue delivers; it is never the truth.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import ClassVar, Self

from django.conf import settings
from django.db import models
from django.utils import timezone

from audioldm_site.accounts.models import Share
from gpu.events import Event


class Status(models.TextChoices):
    QUEUED = "queued", "waiting"
    RUNNING = "running", "running"
    SUCCEEDED = "succeeded", "finished"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "stopped"


ACTIVE = (Status.QUEUED, Status.RUNNING)
ENDED = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


class OwnedQuerySet(models.QuerySet):
    """Rows that belong to somebody. Every object that a view or a consumer fetches starts from `visible_to(user)`."""

    def visible_to(self, user) -> Self:
        """Own rows, rows of nobody (built in, or made in the terminal) and what others share; staff see all."""
        if not user.is_authenticated:
            return self.none()
        if user.is_staff:
            return self
        return self.filter(models.Q(owner=user) | models.Q(owner=None) | self._shared())

    def _shared(self) -> models.Q:
        """What is shared with everybody here: the row itself, or all of its owner's."""
        everything = Share.objects.filter(object_id=None).values("owner")
        return models.Q(pk__in=Share.objects.exclude(object_id=None).values("object_id")) | models.Q(owner__in=everything)


class JobQuerySet(OwnedQuerySet):
    def active(self) -> Self:
        return self.filter(status__in=ACTIVE)

    def in_line(self) -> Self:
        """Waiting jobs, the next one first."""
        return self.filter(status=Status.QUEUED).order_by("queued_at", "created_at")


class Job(models.Model):
    """One piece of work for a worker. Subclasses say which: `kind`, `folder_name` and what an event means to them."""

    kind: ClassVar[str]
    """`training`, `generation` or `conversion`: in socket addresses and messages."""
    queue: ClassVar[str] = ""
    """Whose worker executes it; that of the same name as its kind where this is empty."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    status = models.CharField(max_length=10, choices=Status, default=Status.QUEUED, db_index=True)
    config = models.JSONField(default=dict, help_text="Validated parameters, frozen when the job was made.")
    last_seq = models.PositiveIntegerField(default=0, help_text="Number of the newest recorded event.")
    attempt = models.PositiveIntegerField(default=0)
    attempts_without_progress = models.PositiveIntegerField(default=0)
    error_code = models.CharField(max_length=60, blank=True)
    error_detail = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    queued_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    stop_requested_at = models.DateTimeField(null=True, blank=True)
    stop_without_saving = models.BooleanField(default=False)
    worker_name = models.CharField(max_length=120, blank=True)
    child_pid = models.PositiveIntegerField(null=True, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        abstract = True
        ordering = ["-created_at"]

    @property
    def folder(self) -> Path:
        """Where the job's files lie, under DATA_DIR."""
        raise NotImplementedError

    @property
    def queue_name(self) -> str:
        return self.queue or self.kind

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE

    def apply_event(self, event: Event) -> None:
        """What an event means beyond being recorded, e.g. a checkpoint row. Runs inside the recording transaction."""


class JobEvent(models.Model):
    """A copy of one line of the job's events.jsonl."""

    seq = models.PositiveIntegerField()
    attempt = models.PositiveIntegerField()
    type = models.CharField(max_length=12)
    at = models.DateTimeField()
    data = models.JSONField(default=dict)

    class Meta:
        abstract = True
        ordering = ["seq"]

    def as_message(self) -> dict:
        """The event without its job, as the socket and the page's first state send it."""
        return {"seq": self.seq, "attempt": self.attempt, "type": self.type, "at": self.at.isoformat(), "data": self.data}


class Worker(models.Model):
    """A living worker process; rows that have not been seen lately are dead."""

    name = models.CharField(max_length=120, unique=True)
    queue = models.CharField(max_length=40)
    pid = models.PositiveIntegerField()
    host = models.CharField(max_length=120)
    device = models.CharField(max_length=120, blank=True)
    started_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.name
