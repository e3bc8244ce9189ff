"""A real process that the system gives no more memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from gpu.events import read_events

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 4 * 2**30
"""Torch and its libraries map some gigabytes of addresses before anything is computed."""


def test_a_run_that_does_not_fit_into_memory_says_so(make_run):
    # The activations of 1,024 sounds at once are far more than there is.
    run = make_run(audio_length_in_s=4.0, train_batch_size=1024)
    ended = subprocess.run(
        [sys.executable, "-m", "gpu", "finetune", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES)),
    )
    last = list(read_events(run))[-1]
    assert ended.returncode == 1
    assert (last.type, last.data["code"]) == ("failed", "memory.exhausted"), ended.stderr[-2000:]
    assert ended.stderr.splitlines()[-1].startswith("memory.exhausted: ")
