"""Make sounds from a prompt, with a progress bar."""

import shutil
from pathlib import Path

from audioldm_site.jobs import lifecycle, queue
from audioldm_site.jobs.models import Status
from audioldm_site.jobs.terminal import execute_here, follow
from audioldm_site.management.base import StudioCommand
from audioldm_site.management.parameters import add_parameters, given
from audioldm_site.templatetags.studio import duration
from generation_app import services, tasks
from generation_app.models import Generation
from gpu.config import GenerateConfig
from gpu.errors import Fault
from training_app.lookup import by_name_or_id
from training_app.models import Checkpoint


class Command(StudioCommand):
    help = "Make sounds from a prompt and wait for them. A running generation worker makes them; without one this command does."

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("prompt")
        parser.add_argument("--checkpoint", required=True, help="name or id")
        parser.add_argument("--out", type=Path, help="also copy the sounds into this folder")
        add_parameters(parser, GenerateConfig, leave_out=("prompt",))

    def run(self, *, prompt, checkpoint, out, **options):
        if out:
            out.mkdir(parents=True, exist_ok=True)
        here = not queue.workers_alive("generation")
        generation = services.create_generation(
            owner=None,
            checkpoint=by_name_or_id(Checkpoint.objects.usable(), checkpoint, what="checkpoint"),
            values={**given(options, GenerateConfig), "prompt": prompt},
            enqueue=not here,
        )
        perform(generation, here=here)
        return generation_facts(generation, out=out)

    def describe(self, result) -> str:
        lines = []
        for waveform in result["waveforms"]:
            score = "" if waveform["clap_score"] is None else f"  CLAP score {waveform['clap_score']:.3f}"
            lines.append(f"{waveform['path']}{score}")
        return "\n".join([*lines, duration(result["elapsed_s"])])


def perform(generation: Generation, *, here: bool) -> None:
    """Show the generation until it has ended: executed by this process, or by a worker.

    Raises:
        Fault: it failed or was stopped.
    """
    if here:
        if not lifecycle.claim(generation, worker_name=queue.current_worker_name()):
            raise Fault("run.taken", "the generation was taken by a worker at the same moment")
        execute_here(
            generation,
            lambda: tasks.execute_generation(generation, worker_name=queue.current_worker_name()),
            on_interrupt=lambda: services.request_stop(generation),
        )
    else:
        follow(generation, until=lambda: not _refreshed(generation).is_active, on_interrupt=lambda: services.request_stop(generation))
    generation.refresh_from_db()
    if generation.status != Status.SUCCEEDED:
        raise Fault(generation.error_code or "run.stopped", generation.error_detail or "the generation was stopped")


def generation_facts(generation: Generation, *, out: Path | None = None) -> dict:
    """The generation as `--json` prints it; with `out` its sounds are copied there, named by prompt and rank."""
    waveforms = []
    for waveform in generation.waveforms.all():
        path = waveform.file
        if out:
            path = out / f"{_file_stem(generation.prompt)}-{waveform.index}.wav"
            shutil.copyfile(waveform.file, path)
        waveforms.append(
            {
                "path": str(path),
                "index": waveform.index,
                "seed": waveform.seed,
                "clap_score": waveform.clap_score,
                "duration_s": waveform.duration_s,
                "sha256": waveform.sha256,
            }
        )
    return {"id": str(generation.pk), "waveforms": waveforms, "elapsed_s": generation.elapsed_s}


def _refreshed(generation: Generation) -> Generation:
    generation.refresh_from_db(fields=["status"])
    return generation


def _file_stem(prompt: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in prompt).split()
    return "-".join(words)[:60] or "sound"
