"""Look through DATA_DIR/incoming for datasets and checkpoints that were dropped there."""

from audioldm_site.management.base import StudioCommand
from datasets_app import services as datasets
from training_app import storage
from training_app.management.commands.import_checkpoint import checkpoint_facts


class Command(StudioCommand):
    help = "Register what lies in DATA_DIR/incoming/{datasets,checkpoints}, and mark checkpoints whose files are gone."

    def run(self, **options):
        imported, ignored_datasets = datasets.scan_incoming()
        checkpoints, ignored_checkpoints = storage.scan_checkpoints()
        return {
            "datasets": [{"id": str(dataset.pk), "name": dataset.name, "status": dataset.status} for dataset in imported],
            "checkpoints": [checkpoint_facts(checkpoint) for checkpoint in checkpoints],
            "ignored": [*ignored_datasets, *ignored_checkpoints],
        }

    def describe(self, result) -> str:
        lines = []
        for kind in ("datasets", "checkpoints"):
            lines += [f"{len(result[kind])} new {kind}", *(f"  {item['name']}" for item in result[kind])]
        return "\n".join([*lines, *(f"left alone: {item['path']}: {item['message']}" for item in result["ignored"])])
