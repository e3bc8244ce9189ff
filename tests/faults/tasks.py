from __future__ import annotations

import sys
import time
from pathlib import Path

from audioldm_site.jobs import lifecycle, runner
from audioldm_site.jobs.queue import current_worker_name
from training_app.models import Conversion, TrainingRun

TRAINER = Path(__file__).with_name("trainer.py")
SMALL_TRAINER = Path(__file__).with_name("small_trainer.py")


def command(run: TrainingRun) -> list[str]:
    return [sys.executable, str(TRAINER), str(run.folder)]


def run_training(run_id: str) -> None:
    run = TrainingRun.objects.get(pk=run_id)
    if lifecycle.claim(run, worker_name=current_worker_name()):
        runner.supervise(run, command(run), worker_name=current_worker_name())


def write_file(path: str, seconds: float = 0.0) -> None:
    """What the datasets queue is asked to do."""
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write("done\n")


def harness_training(run_id: str) -> None:
    _supervise(TrainingRun.objects.get(pk=run_id))


def harness_conversion(conversion_id: str) -> None:
    _supervise(Conversion.objects.get(pk=conversion_id))


def harness_generation(generation_id: str) -> None:
    """Tones instead of sounds, by the way of a real generation: in the worker itself."""
    import numpy as np

    from generation_app.models import Generation
    from gpu.events import FINISHED, STARTED, STOPPED, WAVEFORM
    from gpu.sound import write_wav
    from tests.faults.small_trainer import only_one

    generation = Generation.objects.get(pk=generation_id)
    if not lifecycle.claim(generation, worker_name=current_worker_name()):
        return

    def work(events, should_stop) -> None:
        with only_one(generation.folder):
            events.write(STARTED, device="cpu")
            for index in range(generation.config["sounds"]):
                time.sleep(generation.config["step_s"])
                samples = np.full((1600, 1), index / 100, np.float32)
                digest = write_wav(generation.folder / f"{index}.wav", samples, 16_000, recipe={"index": index})
                events.write(WAVEFORM, index=index, seed=index, audio=f"{index}.wav", sha256=digest, duration_s=0.1, sample_rate_hz=16_000)
                if should_stop():
                    events.write(STOPPED, step=index)
                    return
            events.write(FINISHED, elapsed_s=1.0)

    runner.execute(generation, work, worker_name=current_worker_name())


def _supervise(job) -> None:
    if lifecycle.claim(job, worker_name=current_worker_name()):
        runner.supervise(job, [sys.executable, str(SMALL_TRAINER), str(job.folder)], worker_name=current_worker_name(), shutdown_grace_s=20.0)
