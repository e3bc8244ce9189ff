"""Bring a model into the registry."""

from pathlib import Path

from django.template.defaultfilters import filesizeformat

from audioldm_site.management.base import StudioCommand
from training_app import storage
from training_app.models import Checkpoint


class Command(StudioCommand):
    help = "Register a model folder (diffusers layout) as a checkpoint; it is copied into DATA_DIR/checkpoints."

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("path", type=Path)
        parser.add_argument("--name")

    def run(self, *, path, name, **options):
        checkpoint = storage.register_checkpoint(path, origin=Checkpoint.Origin.IMPORTED, name=name)
        return checkpoint_facts(checkpoint)

    def describe(self, result) -> str:
        return f"{result['name']}: {result['family']}, {filesizeformat(result['size_bytes'])}, licence: {result['licence'] or 'not stated'}"


def checkpoint_facts(checkpoint: Checkpoint) -> dict:
    return {
        "id": str(checkpoint.pk),
        "name": checkpoint.name,
        "family": checkpoint.family,
        "format": checkpoint.format,
        "size_bytes": checkpoint.size_bytes,
        "sha256": checkpoint.sha256,
        "licence": checkpoint.licence,
        "path": checkpoint.path,
    }
