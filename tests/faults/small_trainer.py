"""A program that trains a vector instead of a model, in seconds and without torch, and keeps every promise that the real one keeps.

    python small_trainer.py FOLDER

It writes the true events and the true checkpoint folders (hashes, a temporary name, synced, renamed), obeys the true control files and
signals, and goes on from its newest whole checkpoint. Step n depends on every step before it, so its last weights tell whether
a run that was interrupted equals one that was not. A folder whose config.json is that of a real run is given to the real trainer.

Two of these at work on one folder at once are written down in LEDGER.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LEDGER = "HARNESS_LEDGER"
SIZE = 32_768
KEPT = 2


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Note in the ledger when somebody else is at work on this folder at this moment. A lock ends with the process that holds it."""
    ledger = Path(os.environ[LEDGER])
    with open(ledger / f"{folder.name}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with open(ledger / "doubled.txt", "a") as doubled:
                doubled.write(f"{folder.name} pid {os.getpid()}\n")
        yield


def main(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    with only_one(folder):
        if "small" not in config:
            from gpu.finetune import main as finetune

            return finetune([str(folder)])
        return {"training": train, "conversion": convert}[config["small"]](folder, config)


def train(folder: Path, config: dict) -> int:
    from gpu.announcer import Announcer
    from gpu.events import FAILED, FINISHED, STARTED, STOPPED, EventWriter

    control = _control()(folder)
    with control.listening(), EventWriter(folder, attempt=int(os.environ["JOB_ATTEMPT"])) as events:
        announcer = Announcer(events)
        doing = "its start"
        try:
            for rubbish in (folder / "checkpoints").glob(".tmp-*"):
                shutil.rmtree(rubbish)
            step, weights = _newest(folder, announcer, seed=config["seed"])
            steps = config["max_train_steps"]
            announcer.say(STARTED, step=step, max_steps=steps, pid=os.getpid())
            saved = step
            while step < steps:
                time.sleep(config["step_s"])
                step += 1
                weights = after(weights, step, seed=config["seed"])
                doing = "a log line"
                print("step", step, "of", steps, "." * config.get("chatter_bytes", 0), flush=True)
                doing = "an event"
                announcer.progress(step=step, max_steps=steps, loss=float(abs(weights).mean()))
                stop = control.stop()
                if stop == "now":
                    break
                if step % config["checkpointing_steps"] == 0 or step == steps or stop:
                    doing = "a checkpoint"
                    _save(folder, announcer, step, weights, reason="stopped" if stop else "interval")
                    saved = step
                if stop:
                    break
            if step >= steps and saved == step:
                announcer.say(FINISHED, step=step, elapsed_s=1.0)
                return 0
            if control.orphaned:
                announcer.waiting("stopping")
            else:
                announcer.say(STOPPED, step=step, saved=saved == step)
            return 3
        except OSError as error:
            code = "disk.full" if error.errno == errno.ENOSPC else "internal"
            announcer.say(FAILED, code=code, detail=f"{doing}: {error}")
            return 1


def after(weights, step: int, *, seed: int):
    """One step: [S] float64, from the one before and the step's own noise."""
    import numpy as np

    return np.sin(1.7 * weights + np.random.default_rng((seed, step)).standard_normal(len(weights)))


def trained(*, steps: int, seed: int):
    """The weights of a run that nothing interrupted."""
    import numpy as np

    weights = np.zeros(SIZE // 8)
    for step in range(1, steps + 1):
        weights = after(weights, step, seed=seed)
    return weights


def convert(folder: Path, config: dict) -> int:
    """Copies its source piece by piece; the result appears whole."""
    from gpu.events import FINISHED, STARTED, STOPPED, WAITING, EventWriter

    control = _control()(folder)
    with control.listening(), EventWriter(folder, attempt=int(os.environ["JOB_ATTEMPT"])) as events:
        events.write(STARTED, source="made up", pid=os.getpid())
        pieces = config["pieces"]
        draft = folder / ".tmp-result"
        with open(draft, "wb") as file:
            for piece in range(pieces):
                time.sleep(config["step_s"])
                file.write(bytes([piece]) * 1000)
                events.write(WAITING, stage="writing", done=piece + 1, total=pieces)
                if control.stop():
                    draft.unlink()
                    events.write(STOPPED)
                    return 3
        draft.replace(folder / "result")
        events.write(FINISHED, path="result", size_bytes=1000 * pieces, elapsed_s=1.0)
        return 0


def _newest(folder: Path, announcer, *, seed: int):
    import numpy as np

    from gpu.errors import Fault
    from gpu.models import verify_checkpoint

    for path in sorted((folder / "checkpoints").glob("global_step=*"), reverse=True):
        try:
            facts = verify_checkpoint(path)
            return facts.step, np.load(path / "resume.pt.npy")
        except Fault as fault:
            announcer.waiting("loading", message=f"{path.name} is damaged and left out ({fault.message})")
    return 0, np.zeros(SIZE // 8)


def _save(folder: Path, announcer, step: int, weights, *, reason: str) -> None:
    import numpy as np

    from gpu.events import CHECKPOINT
    from gpu.manifest import sha256_of
    from gpu.models import CHECKPOINT_FILE, UNET_FILE, CheckpointFacts

    home = folder / "checkpoints"
    home.mkdir(exist_ok=True)
    final = home / f"global_step={step:06d}"
    draft = home / f".tmp-{final.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        (draft / UNET_FILE).write_bytes(weights.astype(np.float32).tobytes())
        whole = io.BytesIO()
        np.save(whole, weights)
        # Not numpy's own file: of a full disk it tells without the system's number.
        (draft / "resume.pt.npy").write_bytes(whole.getvalue())
        files = {path.name: sha256_of(path) for path in sorted(draft.iterdir())}
        facts = CheckpointFacts(step=step, method="full", weights="raw", base=".", base_sha256="", files=files, config={}, metrics={}, model={})
        (draft / CHECKPOINT_FILE).write_text(json.dumps(facts.as_dict()))
        for path in draft.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        draft.replace(final)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    removed = []
    for path in sorted(home.glob("global_step=*"))[:-KEPT]:
        rubbish = path.with_name(f".tmp-removed-{path.name}")
        path.replace(rubbish)
        shutil.rmtree(rubbish, ignore_errors=True)
        removed.append(f"checkpoints/{path.name}")
    announcer.say(
        CHECKPOINT,
        step=step,
        path=f"checkpoints/{final.name}",
        size_bytes=sum(path.stat().st_size for path in final.iterdir()),
        sha256=facts.files[UNET_FILE],
        method="full",
        best=False,
        has_resume_state=True,
        reason=reason,
        removed=removed,
    )


def _control():
    """The real `Control`, without its package's torch."""
    spec = importlib.util.spec_from_file_location("control_alone", ROOT / "gpu" / "finetune" / "control.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Control


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
