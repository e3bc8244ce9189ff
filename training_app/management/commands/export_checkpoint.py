"""Write a checkpoint in the form that another tool reads."""

import sys
from pathlib import Path

from django.template.defaultfilters import filesizeformat
from tqdm import tqdm

from audioldm_site.management.base import StudioCommand
from training_app import conversions
from training_app.lookup import by_name_or_id
from training_app.management.commands.import_checkpoint import perform
from training_app.models import Checkpoint, Conversion


class Command(StudioCommand):
    help = "Write a checkpoint as an original .ckpt, a diffusers folder, one safetensors file, or a LoRA. Nothing is ever overwritten."

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("checkpoint", help="name or id")
        parser.add_argument("--format", required=True, choices=Conversion.Format.values)
        parser.add_argument("--out", required=True, type=Path, help="file or folder to write; it must not exist yet")
        parser.add_argument("--dtype", choices=conversions.DTYPES, default="fp32", help="fp16 takes half the room (default: fp32)")

    def run(self, *, checkpoint, format, out, dtype, **options):
        row = by_name_or_id(Checkpoint.objects.all(), checkpoint, what="checkpoint")
        for choice in conversions.export_choices(row):
            if choice.format == format and not choice.why_not:
                tqdm.write(f"{row.name} as {choice.label}, {dtype}: about {filesizeformat(choice.size(dtype))}", file=sys.stderr)
        destination = Path.cwd() / out
        made = conversions.export_model(row, owner=None, format=format, dtype=dtype, destination=destination, enqueue=False)
        perform(made)
        return {
            "id": str(made.pk),
            "checkpoint": row.name,
            "format": format,
            "dtype": dtype,
            "path": str(made.result_path),
            "size_bytes": made.size_bytes,
            "sha256": made.sha256,
            "licence": row.licence,
        }

    def describe(self, result) -> str:
        return f"{result['path']}: {filesizeformat(result['size_bytes'])}, licence: {result['licence'] or 'not stated'}"
