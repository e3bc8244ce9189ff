"""Stop a waiting or running run."""

import time

from audioldm_site.management.base import StudioCommand
from gpu.errors import Fault
from training_app import services
from training_app.lookup import by_name_or_id
from training_app.management.commands.finetune import run_facts
from training_app.models import TrainingRun


class Command(StudioCommand):
    help = "Stop a run: it saves a checkpoint first, unless --now is given."

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("run", help="name or id")
        parser.add_argument("--now", action="store_true", help="do not save what was learned since the last checkpoint")
        parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="how long to wait for the end (default: 60; 0: not at all)")

    def run(self, *, run, now, wait, **options):
        run = by_name_or_id(TrainingRun.objects.all(), run, what="run")
        if not services.request_stop(run, save=not now):
            raise Fault("run.ended", f"{run.name} has ended already: {run.get_status_display()}")
        deadline = time.monotonic() + wait
        run.refresh_from_db()
        while run.is_active and time.monotonic() < deadline:
            time.sleep(0.2)
            run.refresh_from_db()
        return run_facts(run)

    def describe(self, result) -> str:
        return f"{result['name']}: {result['status']} at step {result['global_step']}"
