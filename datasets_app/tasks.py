"""What the datasets worker does."""

from __future__ import annotations

from datasets_app import services
from datasets_app.models import Dataset


def import_dataset(dataset_id: str) -> None:
    """Import a waiting dataset; one that was deleted, or is finished, is left alone."""
    dataset = Dataset.objects.filter(pk=dataset_id).first()
    if dataset:
        services.import_dataset(dataset)


def recover_imports() -> None:
    """Put imports that died in line again."""
    services.recover_imports()
