"""Look through DATA_DIR/incoming for datasets and checkpoints that were dropped there."""

import shlex

from audioldm_site.management.base import StudioCommand
from datasets_app import services as datasets
from training_app import conversions
from training_app.management.commands.import_checkpoint import checkpoint_facts


class Command(StudioCommand):
    help = (
        "Register what lies in DATA_DIR/incoming/{datasets,checkpoints}, say what the files there are (import_checkpoint brings them in),"
        " and mark checkpoints whose files are gone."
    )

    def run(self, **options):
        imported, ignored_datasets = datasets.scan_incoming()
        found = conversions.scan(here=True)
        return {
            "datasets": [{"id": str(dataset.pk), "name": dataset.name, "status": dataset.status} for dataset in imported],
            "checkpoints": [checkpoint_facts(checkpoint) for checkpoint in found.registered],
            "files": [
                {"path": str(seen.path), "title": seen.title, "kind": seen.kind, "size_bytes": seen.size_bytes, "licence": seen.licence}
                | {"can_generate": seen.can_generate, "can_finetune": seen.can_finetune, "why_not": seen.why_not}
                for seen in found.offered
            ],
            "ignored": [*ignored_datasets, *found.ignored],
        }

    def describe(self, result) -> str:
        lines = []
        for kind in ("datasets", "checkpoints"):
            lines += [f"{len(result[kind])} new {kind}", *(f"  {item['name']}" for item in result[kind])]
        lines += [f"recognised: {item['title']}: {shlex.join(['./manage.py', 'import_checkpoint', item['path']])}" for item in result["files"]]
        return "\n".join([*lines, *(f"left alone: {item['path']}: {item['message']}" for item in result["ignored"])])
