"""Which checkpoint of a run to use, with the reasons."""

from audioldm_site.management.base import StudioCommand
from generation_app.best import suggest
from gpu.events import STARTED
from training_app import services
from training_app.lookup import by_name_or_id
from training_app.models import TrainingRun


class Command(StudioCommand):
    help = "Suggest the best checkpoint of a run from blind listening, CLAP scores and validation losses, and say what speaks against it."

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("run_name", metavar="run", help="name or id")
        parser.add_argument("--pin", action="store_true", help="keep the suggested checkpoint for good")

    def run(self, *, run_name, pin, **options):
        run = by_name_or_id(TrainingRun.objects.all(), run_name, what="run")
        started = run.events.filter(type=STARTED).order_by("-seq").first()
        found = suggest(run, validation_clips=started.data.get("validation_clips") if started else None)
        best = found.checkpoint if found else None
        if best and pin:
            services.set_pinned(best, pinned=True)
        return {
            "run": run.name,
            "checkpoint": best.name if best else None,
            "id": str(best.pk) if best else None,
            "global_step": best.global_step if best else None,
            "pinned": best.pinned if best else False,
            "decided_by": found.decided_by if found else "",
            "ties": [row.global_step for row in found.ties] if found else [],
            "reasons": found.reasons if found else [],
            "doubts": found.doubts if found else ["The run has fewer than two checkpoints whose files are there."],
        }

    def describe(self, result) -> str:
        head = f"{result['checkpoint']}{' (pinned)' if result['pinned'] else ''}" if result["checkpoint"] else "no suggestion"
        return "\n".join([head, *(f"  + {line}" for line in result["reasons"]), *(f"  ? {line}" for line in result["doubts"])])
