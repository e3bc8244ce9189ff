"""Figures with their uncertainty for a checkpoint, beside another one and real sounds."""

from pathlib import Path

from audioldm_site.jobs import lifecycle, queue
from audioldm_site.jobs.models import Status
from audioldm_site.jobs.terminal import execute_here, follow
from audioldm_site.management.base import StudioCommand
from audioldm_site.management.parameters import add_parameters, given
from audioldm_site.templatetags.studio import duration
from datasets_app.models import Dataset
from generation_app import evaluations, tasks
from generation_app.evaluation_selectors import FIGURE_WORDS
from generation_app.models import Evaluation
from gpu.config import EvaluateConfig
from gpu.errors import Fault
from gpu.evaluation.report import Figure, Report
from training_app.lookup import by_name_or_id
from training_app.models import Checkpoint

BASE, NONE = "base", "none"


class Command(StudioCommand):
    help = (
        "Make sounds for captions of held-out clips and measure them: CLAP score, kernel audio distance and Fréchet distance with their"
        " intervals, bad audio, and copies of training sounds. A running generation worker does it; without one this command does."
    )

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--checkpoint", required=True, help="name or id")
        parser.add_argument("--dataset", required=True, help="name or id; its held-out clips are what is compared with")
        parser.add_argument("--against", default=BASE, help=f"name or id of another checkpoint; {BASE} is what it was trained from (the default), {NONE} is nothing")
        parser.add_argument("--clap", help="whose CLAP judges: name or id of a checkpoint, or a folder; default: the checkpoint's own")
        add_parameters(parser, EvaluateConfig)

    def run(self, *, checkpoint, dataset, against, clap, **options):
        here = not queue.workers_alive("generation")
        chosen = by_name_or_id(Checkpoint.objects.usable(), checkpoint, what="checkpoint")
        evaluation = evaluations.create_evaluation(
            owner=None,
            checkpoint=chosen,
            dataset=by_name_or_id(Dataset.objects.all(), dataset, what="dataset"),
            against=_against(against, chosen),
            ears=_ears(clap),
            values=given(options, EvaluateConfig),
            enqueue=not here,
        )
        perform(evaluation, here=here)
        report = Report.read(evaluation.folder)
        return {"id": str(evaluation.pk), "folder": str(evaluation.folder), "elapsed_s": evaluation.elapsed_s, "dataset": report.dataset,
                **report.summary(), "names": {subject.key: subject.name for subject in report.subjects}, "notes": report.notes}  # fmt: skip

    def describe(self, result) -> str:
        lines = [f"{result['prompts']} sounds each, heard by {result['embedding']}, against {result['dataset']}, seed {result['seed']}"]
        for key, figures in result["subjects"].items():
            lines.append(f"\n{result['names'][key]}")
            lines += [_line(FIGURE_WORDS[name][0], Figure(**figures[name])) for name in FIGURE_WORDS if name in figures]
            if key in ("checkpoint", "against"):
                lines.append(f"  {'flagged sounds':<24}{figures['flagged']} of {result['prompts']}")
        if result["differences"]:
            lines.append("\ndifference")
            lines += [_line(FIGURE_WORDS[name][0], Figure(**figure)) for name, figure in result["differences"].items()]
        return "\n".join([*lines, "", *result["notes"], f"{result['folder']}/report.json, {duration(result['elapsed_s'])}"])


def perform(evaluation: Evaluation, *, here: bool) -> None:
    """Show the evaluation until it has ended: executed by this process, or by a worker.

    Raises:
        Fault: it failed or was stopped.
    """

    def on_interrupt() -> bool:
        return evaluations.request_stop(evaluation)

    def ended() -> bool:
        evaluation.refresh_from_db(fields=["status"])
        return not evaluation.is_active

    if here:
        name = queue.current_worker_name()
        if not lifecycle.claim(evaluation, worker_name=name):
            raise Fault("run.taken", "the evaluation was taken by a worker at the same moment")
        execute_here(evaluation, lambda: tasks.execute_evaluation(evaluation, worker_name=name), on_interrupt=on_interrupt)
    else:
        follow(evaluation, until=ended, on_interrupt=on_interrupt)
    evaluation.refresh_from_db()
    if evaluation.status != Status.SUCCEEDED:
        raise Fault(evaluation.error_code or "run.stopped", evaluation.error_detail or "the evaluation was stopped; its page goes on with it")


def _against(wanted: str, checkpoint: Checkpoint) -> Checkpoint | None:
    if wanted == BASE:
        return evaluations.base_of(checkpoint)
    return None if wanted == NONE else by_name_or_id(Checkpoint.objects.usable(), wanted, what="checkpoint")


def _ears(wanted: str | None) -> Checkpoint | Path | None:
    """A folder where there is one of that name: a checkpoint of the same name is still reached by its id."""
    if not wanted:
        return None
    return Path(wanted).resolve() if Path(wanted).is_dir() else by_name_or_id(Checkpoint.objects.usable(), wanted, what="checkpoint")


def _line(label: str, figure: Figure) -> str:
    if figure.value is None:
        return f"  {label:<24}not given: {figure.why_not}"
    interval = "" if figure.low is None else f"  [{figure.low:.4g}, {figure.high:.4g}]"
    size = f"  N {figure.n}" + (f" against {figure.reference_n}" if figure.reference_n else "")
    return f"  {label:<24}{figure.value:.4g}{interval}{size}{'  (' + figure.warning + ')' if figure.warning else ''}"
