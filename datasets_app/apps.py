from __future__ import annotations

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
        post_migrate.connect(_offer_demo, sender=self)


def _offer_demo(**kwargs: object) -> None:
    """Import the dataset that ships with the project, so that a new installation can train at once."""
    if not settings.BUILTINS:
        return
    from datasets_app import services

    services.ensure_demo(DEMO)
