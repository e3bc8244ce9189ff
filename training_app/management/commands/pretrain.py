"""Train a model from nothing, with a progress bar."""

from pathlib import Path

from audioldm_site.jobs import queue
from audioldm_site.jobs.models import Status
from audioldm_site.management.base import StudioCommand
from gpu.errors import Fault
from training_app import pretraining
from training_app.management.commands.finetune import perform, run_facts


class Command(StudioCommand):
    help = (
        "Train VAE, CLAP, UNet and text encoders from nothing, as a recipe says, and wait for the end. A running training worker takes the run"
        " (Ctrl-C then only stops watching); without one this command executes it (Ctrl-C stops and saves)."
    )

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("recipe", type=Path, help="JSON, as gpu/recipes/starter.json")
        parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="ZIP", help="zips of recordings; they are read where they lie")
        parser.add_argument("--registry", type=Path, nargs="+", metavar="CSV", help="of each zip; beside the zips when not given")
        parser.add_argument("--name", help="of the run and its model; the recipe's own when not given")
        parser.add_argument("--detach", action="store_true", help="put the run in line for a worker and return at once")

    def run(self, *, recipe, data, registry, name, detach, **options):
        here = not detach and not queue.workers_alive("training")
        run = pretraining.create_pretraining(owner=None, recipe=recipe, data=data, registries=registry, name=name, enqueue=not here)
        if not detach:
            perform(run, here=here)
        run.refresh_from_db()
        if run.status == Status.FAILED:
            raise Fault(run.error_code, run.error_detail)
        return run_facts(run)

    def describe(self, result) -> str:
        line = f"{result['name']} ({result['id']}): {result['status']} at step {result['global_step']} of {result['max_train_steps']}"
        return "\n".join([line, *(f"  model {item['name']}: {item['path']}" for item in result["checkpoints"])])
