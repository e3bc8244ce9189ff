from __future__ import annotations

import os
from pathlib import Path

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_migrate

DEMO = Path(__file__).parent / "builtin" / "demo.zip"


class DatasetsAppConfig(AppConfig):
    name = "datasets_app"
    verbose_name = "Datasets"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_q.signals import post_spawn  # needs the models

        post_migrate.connect(_offer_demo, sender=self)
        post_spawn.connect(_recover_imports)


def _offer_demo(**kwargs: object) -> None:
    """Import the dataset that ships with the project, so that a new installation can train at once."""
    if not settings.BUILTINS:
        return
    from datasets_app import services

    services.ensure_demo(DEMO)


def _recover_imports(**kwargs: object) -> None:
    """A starting datasets worker looks after imports that died with the one before."""
    if os.environ.get("Q_CLUSTER_NAME") != "datasets":
        return
    from datasets_app import services

    services.recover_imports()
