"""What the generation worker executes. Its last pipeline stays in memory, so that the next sound starts at once."""

from __future__ import annotations

from audioldm_site.jobs import lifecycle, runner
from audioldm_site.jobs.queue import current_worker_name
from generation_app.models import Generation
from gpu.config import GenerateJob

_generator = None


def run_generation(generation_id: str) -> None:
    generation = Generation.objects.filter(pk=generation_id).select_related("checkpoint").first()
    if generation is None or not lifecycle.claim(generation, worker_name=current_worker_name()):
        return
    execute_generation(generation, worker_name=current_worker_name())


def execute_generation(generation: Generation, *, worker_name: str) -> None:
    """Make the sounds of a claimed generation in this process."""

    def work(events, should_stop) -> None:
        job = GenerateJob.read(generation.folder)
        warm_generator().generate(job, generation.folder, events, should_stop)

    runner.execute(generation, work, worker_name=worker_name)


def warm_generator():
    """The process's one `Generator`. Imported here: torch must not be loaded before the worker has been forked."""
    global _generator
    if _generator is None:
        from gpu.generate import Generator

        _generator = Generator()
    return _generator
