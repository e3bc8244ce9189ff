"""What is kept about accounts beside Django's own: tokens, attempts to log in, and what is shared."""

from __future__ import annotations

from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone


class ApiTokenQuerySet(models.QuerySet):
    def valid(self) -> Self:
        """Tokens that open something now."""
        unexpired = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
        return self.filter(unexpired, revoked_at=None, user__is_active=True)


class ApiToken(models.Model):
    """A key for programs. The key itself is shown once and kept nowhere: `digest` is its SHA-256."""

    class Scope(models.TextChoices):
        READ = "read", "look only"
        WRITE = "write", "look and change"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80, help_text="What uses it.")
    prefix = models.CharField(max_length=16, help_text="How it begins, to tell it from others.")
    digest = models.CharField(max_length=64, unique=True)
    scope = models.CharField(max_length=5, choices=Scope, default=Scope.READ)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "API token"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def is_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= timezone.now()

    @property
    def may_write(self) -> bool:
        return self.scope == self.Scope.WRITE


class LoginAttempts(models.Model):
    """Attempts in a row by one account from one address (or one known browser). `key` is a digest of both: neither is kept."""

    key = models.CharField(max_length=64, unique=True)
    count = models.PositiveIntegerField(default=0)
    last_at = models.DateTimeField(default=timezone.now, db_index=True)
    blocked_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "login attempts"


class Share(models.Model):
    """What its owner lets everybody here see and hear, and not change: one object, or all that is theirs (`object_id` None)."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="shares")
    object_id = models.UUIDField(null=True, blank=True, help_text="Of a dataset, a checkpoint or a job; empty for everything.")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["object_id"], name="share_object_once"),
            models.UniqueConstraint(fields=["owner"], condition=Q(object_id=None), name="share_everything_once"),
        ]

    def __str__(self) -> str:
        return f"{self.owner}: {self.object_id or 'everything'}"
