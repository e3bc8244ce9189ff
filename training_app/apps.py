from __future__ import annotations

import os
from pathlib import Path

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_migrate

STARTER = Path(__file__).parent / "builtin" / "starter"


class TrainingAppConfig(AppConfig):
    name = "training_app"
    verbose_name = "Training"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_q.signals import post_spawn  # needs the models

        post_migrate.connect(_offer_starter, sender=self)
        post_spawn.connect(_sweep)


def _offer_starter(**kwargs: object) -> None:
    """Register the checkpoint that ships with the project, so that a new installation can make a sound at once."""
    if not settings.BUILTINS:
        return
    from training_app import storage

    storage.ensure_starter(STARTER)


def _sweep(**kwargs: object) -> None:
    """A starting datasets worker removes old exports, and what killed conversions left."""
    if os.environ.get("Q_CLUSTER_NAME") != "datasets":
        return
    from training_app import conversions

    conversions.sweep()
