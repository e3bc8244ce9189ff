"""Bring a model in: a checkpoint file, a model folder, a zip of one, a LoRA, or a repository of the model hub."""

from pathlib import Path

from django.conf import settings
from django.template.defaultfilters import filesizeformat

from audioldm_site.jobs import lifecycle, queue
from audioldm_site.jobs.models import Status
from audioldm_site.jobs.terminal import execute_here
from audioldm_site.management.base import StudioCommand
from gpu.errors import Fault
from training_app import conversions, sources, storage, tasks
from training_app.lookup import by_name_or_id
from training_app.models import Checkpoint, Conversion


class Command(StudioCommand):
    help = (
        "Bring a model in and wait for it: an original checkpoint (.ckpt, .pth, .safetensors, no ending), a diffusers folder or a zip of one,"
        " a run's checkpoint, a LoRA (with --base), or hub:OWNER/NAME. Ctrl-C stops and leaves nothing."
    )

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("path", help="file, folder, or hub:OWNER/NAME[@REVISION]")
        parser.add_argument("--name")
        weights = parser.add_mutually_exclusive_group()
        weights.add_argument("--ema", action="store_const", const="ema", dest="weights", help="take the moving average of the weights")
        weights.add_argument("--raw", action="store_const", const="raw", dest="weights", help="take the weights as the last step left them")
        parser.add_argument("--base", help="name or id of the whole model that a LoRA lies on")
        parser.add_argument("--tokenizers", type=Path, help="folder with the vocabularies, which original files do not carry")
        parser.add_argument("--slim", action="store_true", help="keep only what the model uses; it cannot be written as .ckpt again then")
        parser.add_argument("--licence", default="", help="on what terms it may be used, when you know better than the file")

    def run(self, *, path, name, weights, base, tokenizers, slim, licence, **options):
        if tokenizers and not tokenizers.is_dir():
            raise Fault("file.unusable", f"{tokenizers} is no folder")
        from_hub = path.startswith("hub:")
        found = sources.look_at_hub(path) if from_hub else sources.look_at(Path(path), follow_links=True)
        if found.path and found.path.parent == settings.DATA_DIR / "checkpoints":
            before = set(Checkpoint.objects.values_list("pk", flat=True))
            row = storage.register_checkpoint(found.path, origin=Checkpoint.Origin.IMPORTED, name=name)
            return checkpoint_facts(row, already_here=row.pk in before)
        conversion = conversions.import_model(
            found,
            owner=None,
            origin=Checkpoint.Origin.HUB if from_hub else Checkpoint.Origin.IMPORTED,
            name=name or "",
            weights=weights or "auto",
            keep_original=not slim,
            licence=licence,
            base=by_name_or_id(Checkpoint.objects.usable(), base, what="checkpoint") if base else None,
            tokenizers=tokenizers.resolve() if tokenizers else None,
            enqueue=False,
        )
        perform(conversion)
        return checkpoint_facts(conversion.checkpoint, already_here=conversion.already_here)

    def describe(self, result) -> str:
        what = result["variant"] or result["family"]
        lines = [f"This model is already here as {result['name']}; nothing was stored twice."] if result["already_here"] else []
        lines += [f"{result['name']}: {what}, {filesizeformat(result['size_bytes'])}, licence: {result['licence'] or 'not stated'}"]
        return "\n".join([*lines, f"  {result['why_not']}"] if result["why_not"] else lines)


def perform(conversion: Conversion) -> None:
    """Carry a conversion out in this process and show how far it is.

    Raises:
        Fault: it failed or was stopped.
    """
    if not lifecycle.claim(conversion, worker_name=queue.current_worker_name()):
        raise Fault("run.taken", f"{conversion} was taken by a worker at the same moment")
    execute_here(
        conversion,
        lambda: tasks.execute_conversion(conversion, worker_name=queue.current_worker_name()),
        on_interrupt=lambda: conversions.request_stop(conversion),
    )
    conversion.refresh_from_db()
    if conversion.status != Status.SUCCEEDED:
        raise Fault(conversion.error_code or "run.stopped", conversion.error_detail or f"{conversion} was stopped; nothing half done was kept")


def checkpoint_facts(checkpoint: Checkpoint, *, already_here: bool = False) -> dict:
    return {
        "already_here": already_here,
        "id": str(checkpoint.pk),
        "name": checkpoint.name,
        "family": checkpoint.family,
        "variant": checkpoint.facts.get("variant") or "",
        "format": checkpoint.format,
        "size_bytes": checkpoint.size_bytes,
        "sha256": checkpoint.sha256,
        "licence": checkpoint.licence,
        "path": checkpoint.path,
        "can_generate": checkpoint.can_generate,
        "can_finetune": checkpoint.can_finetune,
        "why_not": checkpoint.why_not,
    }
