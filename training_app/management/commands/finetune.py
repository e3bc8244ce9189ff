"""Fine-tune a checkpoint on a dataset, with a progress bar."""

import sys

from tqdm import tqdm

from audioldm_site.jobs import lifecycle, queue
from audioldm_site.jobs.models import Status
from audioldm_site.jobs.terminal import execute_here, follow
from audioldm_site.management.base import StudioCommand
from audioldm_site.management.parameters import add_parameters, given
from datasets_app.models import Dataset
from gpu.config import PRESETS, FinetuneConfig
from gpu.errors import Fault
from training_app import preflight, services, tasks
from training_app.lookup import by_name_or_id
from training_app.models import Checkpoint, TrainingRun


class Command(StudioCommand):
    help = (
        "Fine-tune a checkpoint on a dataset and wait for the end. A running training worker takes the run (Ctrl-C then only stops watching);"
        " without one this command executes it (Ctrl-C stops and saves)."
    )

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--dataset", required=True, help="name or id")
        parser.add_argument("--checkpoint", required=True, help="name or id of the checkpoint to start from")
        parser.add_argument("--name", help="of the run")
        parser.add_argument("--preset", choices=PRESETS, help="start from these values; flags change them")
        parser.add_argument("--detach", action="store_true", help="put the run in line for a worker and return at once")
        parser.add_argument("--force", action="store_true", help="start also where memory or disk seem too small")
        add_parameters(parser, FinetuneConfig)

    def run(self, *, dataset, checkpoint, name, preset, detach, force, **options):
        here = not detach and not queue.workers_alive("training")
        run = services.create_run(
            owner=None,
            dataset=by_name_or_id(Dataset.objects.all(), dataset, what="dataset"),
            base_checkpoint=by_name_or_id(Checkpoint.objects.usable(), checkpoint, what="checkpoint"),
            values={**PRESETS.get(preset, {}), **given(options, FinetuneConfig)},
            name=name,
            enqueue=not here,
            force=force,
        )
        tqdm.write(preflight.of_run(run), file=sys.stderr)
        if not detach:
            perform(run, here=here)
        run.refresh_from_db()
        if run.status == Status.FAILED:
            raise Fault(run.error_code, run.error_detail)
        return run_facts(run)

    def describe(self, result) -> str:
        line = f"{result['name']} ({result['id']}): {result['status']} at step {result['global_step']} of {result['max_train_steps']}"
        return "\n".join([line, *(f"  checkpoint {item['name']}: {item['path']}" for item in result["checkpoints"])])


def perform(run: TrainingRun, *, here: bool) -> None:
    """Show the run until it has ended: executed by this process, or by a worker (then Ctrl-C only stops watching)."""
    if here:
        if not lifecycle.claim(run, worker_name=queue.current_worker_name()):
            raise Fault("run.taken", f"{run.name} was taken by a worker at the same moment")
        execute_here(
            run,
            lambda: tasks.execute_run(run, worker_name=queue.current_worker_name()),
            on_interrupt=lambda: services.request_stop(run),
        )
        return

    def ended() -> bool:
        run.refresh_from_db(fields=["status"])
        return not run.is_active

    tqdm.write(f"in line for the training worker: {run.pk}", file=sys.stderr)
    try:
        follow(run, until=ended)
    except KeyboardInterrupt:
        tqdm.write(f"no longer watching; the run goes on. Stop it with: manage.py stop_run {run.pk}", file=sys.stderr)


def run_facts(run: TrainingRun) -> dict:
    return {
        "id": str(run.pk),
        "name": run.name,
        "status": run.status,
        "dataset": run.dataset_name,
        "base_checkpoint": run.base_checkpoint.name if run.base_checkpoint else None,
        "global_step": run.global_step,
        "max_train_steps": run.max_train_steps,
        "latest_loss": run.latest_loss,
        "best_validation_loss": run.best_validation_loss,
        "error_code": run.error_code,
        "error_detail": run.error_detail,
        "folder": str(run.folder),
        "checkpoints": [
            {"id": str(item.pk), "name": item.name, "global_step": item.global_step, "path": str(item.folder), "sha256": item.sha256}
            for item in run.checkpoints.order_by("global_step")
        ],
    }
