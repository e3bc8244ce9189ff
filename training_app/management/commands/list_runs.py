"""The run history in a terminal."""

from audioldm_site.jobs.models import Status
from audioldm_site.management.base import StudioCommand
from training_app.management.commands.finetune import describe
from training_app.models import TrainingRun


class Command(StudioCommand):
    help = "List runs, the newest first."

    def add_options(self, parser) -> None:
        parser.add_argument("--status", choices=Status.values)
        parser.add_argument("--limit", type=int, default=50)

    def run(self, *, status, limit, **options):
        runs = TrainingRun.objects.select_related("base_checkpoint").prefetch_related("checkpoints")
        if status:
            runs = runs.filter(status=status)
        return {"runs": [describe(run) | {"created_at": run.created_at.isoformat()} for run in runs[:limit]]}

    def show(self, result) -> None:
        if not result["runs"]:
            self.stdout.write("No runs yet. Start one: manage.py finetune --dataset demo --checkpoint starter --preset quick")
        for run in result["runs"]:
            self.stdout.write(f"{run['id']}  {run['status']:<9}  step {run['global_step']}/{run['max_train_steps']}  {run['name']}  {run['error_detail'][:80]}")
