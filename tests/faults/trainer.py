"""A trainer that trains nothing: it speaks the events protocol, obeys `stop` and `save`, and resumes, as `python -m gpu finetune` does.

    python trainer.py RUN_DIR        config.json there says how many `steps`, how long each takes, and what is to go wrong
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from gpu.events import EventWriter


def main(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    parent = os.getppid()
    events = EventWriter(folder, attempt=int(os.environ["JOB_ATTEMPT"]))
    first = max((int(path.name) for path in (folder / "checkpoints").glob("*")), default=0)
    events.write("started", step=first, max_steps=config["steps"], pid=os.getpid())
    print("trainer: started at", first, flush=True)
    for step in range(first + 1, config["steps"] + 1):
        time.sleep(config.get("step_s", 0.02))
        events.write("progress", step=step, max_steps=config["steps"], loss=1.0 / step)
        if step == config.get("die_at"):
            print("trainer: something went wrong here", flush=True)
            os.kill(os.getpid(), getattr(signal, config.get("die_of", "SIGKILL")))
        if step == config.get("fail_at"):
            events.write("failed", code="training.diverged", detail="the loss is not a number")
            return 1
        orphaned = os.getppid() != parent
        stop = _read(folder / "control" / "stop")
        if config.get("deaf"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            continue
        if stop == "save" or orphaned or step % config.get("save_every", 1_000_000) == 0:
            _save(folder, events, step)
        if stop:
            events.write("stopped", step=step, saved=stop == "save")
            return 3
        if orphaned:
            return 3
    events.write("finished", step=config["steps"], elapsed_s=1.0)
    return 0


def _save(folder: Path, events: EventWriter, step: int) -> None:
    (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    events.write("checkpoint", step=step, path=f"checkpoints/{step}", size_bytes=0, sha256="", best=False, reason="interval")


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
