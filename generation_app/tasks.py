"""What the generation worker executes. Its last pipeline stays in memory, so that the next sound starts at once."""

from __future__ import annotations

from audioldm_site.jobs import lifecycle, runner
from audioldm_site.jobs.queue import current_worker_name
from generation_app.models import Evaluation, Generation, Listening
from gpu.config import EvaluateJob, GenerateJob, ListenJob

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


def run_evaluation(evaluation_id: str) -> None:
    evaluation = Evaluation.objects.filter(pk=evaluation_id).first()
    if evaluation is None or not lifecycle.claim(evaluation, worker_name=current_worker_name()):
        return
    execute_evaluation(evaluation, worker_name=current_worker_name())


def execute_evaluation(evaluation: Evaluation, *, worker_name: str) -> None:
    """Make and judge the sounds of a claimed evaluation in this process."""

    def work(events, should_stop) -> None:
        from gpu.evaluation.run import evaluate

        evaluate(EvaluateJob.read(evaluation.folder), evaluation.folder, events, should_stop, generator=warm_generator())

    runner.execute(evaluation, work, worker_name=worker_name)


def run_listening(listening_id: str) -> None:
    listening = Listening.objects.filter(pk=listening_id).first()
    if listening is None or not lifecycle.claim(listening, worker_name=current_worker_name()):
        return

    def work(events, should_stop) -> None:
        from gpu.evaluation.listen import make_pairs

        make_pairs(ListenJob.read(listening.folder), listening.folder, events, should_stop, generator=warm_generator())

    runner.execute(listening, work, worker_name=current_worker_name())


def warm_generator():
    """The process's one `Generator`. Imported here: torch must not be loaded before the worker has been forked."""
    global _generator
    if _generator is None:
        from gpu.generate import Generator

        _generator = Generator()
    return _generator
