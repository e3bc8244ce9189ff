"""The run history in a terminal."""

from audioldm_site.jobs.models import Status
from audioldm_site.management.base import StudioCommand
from training_app.management.commands.finetune import run_facts
from training_app.models import TrainingRun


class Command(StudioCommand):
    help = "List runs, the newest first."

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--status", choices=Status.values)
        parser.add_argument("--limit", type=int, default=50)

    def run(self, *, status, limit, **options):
        runs = TrainingRun.objects.select_related("base_checkpoint").prefetch_related("checkpoints")
        if status:
            runs = runs.filter(status=status)
        return {"runs": [run_facts(run) | {"created_at": run.created_at.isoformat()} for run in runs[:limit]]}

    def describe(self, result) -> str:
        if not result["runs"]:
            return "No runs yet. Start one: ./manage.py finetune --dataset demo --checkpoint starter --preset quick"
        return "\n".join(
            f"{run['id']}  {run['status']:<9}  step {run['global_step']}/{run['max_train_steps']}  {run['name']}  {run['error_detail'][:80]}"
            for run in result["runs"]
        )
