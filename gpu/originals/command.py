"""`python -m gpu convert`: brings a model in, or writes one out in the form that another tool reads.

    python -m gpu convert audioldm-m-full.ckpt models/audioldm-m --tokenizers tokenizers/
    python -m gpu convert hub:cvssp/audioldm2 models/audioldm2
    python -m gpu convert models/audioldm-m audioldm-m.ckpt                          the original layout again
    python -m gpu convert models/audioldm-m tuned.ckpt --weights RUN/checkpoints/global_step=005000
    python -m gpu convert --job FOLDER                                               as FOLDER/config.json says
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpu.announcer import Announcer
from gpu.config import ConvertJob, ExportJob, ModelRef
from gpu.errors import Fault
from gpu.events import FAILED, FINISHED, STARTED, STOPPED, EventWriter, read_events
from gpu.finetune.control import Control
from gpu.manifest import folder_digest, sha256_of
from gpu.models import INDEX_FILE
from gpu.originals.contents import digests

FORMATS = ("ckpt", "diffusers", "safetensors", "lora")
STOPPED_CODE, FAILED_CODE, WRONG_ARGUMENTS = 3, 1, 2


class Stopped(Exception):
    """Somebody asked to stop. Raised inside a report, so that the work ends between two pieces and removes what it has begun."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", metavar="SRC", help="a checkpoint file, a model folder, or hub:OWNER/NAME[@REVISION]")
    parser.add_argument("destination", nargs="?", metavar="DST", help="a folder; or a file ending in .ckpt or .safetensors, to write a model out")
    parser.add_argument("--job", type=Path, metavar="FOLDER", help="do what FOLDER/config.json says, with events.jsonl and control/stop")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_const", const="ema", dest="weights_copy", help="take the moving average of a file's UNet")
    which.add_argument("--raw", action="store_const", const="raw", dest="weights_copy", help="take the weights of a file's UNet as they were trained")
    parser.add_argument("--tokenizers", metavar="DIR", help="where the vocabularies lie that original files do not carry (roberta/ and t5/)")
    parser.add_argument("--name", default="", help="what the model is called")
    parser.add_argument("--licence", default="", help="its licence, where it is another than the authors' own")
    parser.add_argument("--slim", action="store_true", help="leave out what only an export to the original layout needs")
    parser.add_argument("--weights", metavar="CHECKPOINT", help="writing out: a run's checkpoint that lies on top of SRC")
    parser.add_argument("--format", choices=FORMATS, help="writing out: which form; else DST's ending says")
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32", help="writing out: how exact (safetensors is always fp16)")
    args = parser.parse_args(argv)
    if args.job:
        return run_job(args.job)
    if not args.source or not args.destination:
        parser.print_usage(sys.stderr)
        print(f"python -m gpu convert: {'DST' if args.source else 'SRC and DST'} must be named, or --job FOLDER", file=sys.stderr)
        return WRONG_ARGUMENTS
    return _run_in_terminal(_job_of(args))


def run_job(folder: Path) -> int:
    """Do the job in a folder, saying everything in `events.jsonl`."""
    control = Control(folder)
    began = time.monotonic()
    attempt = max((event.attempt for event in read_events(folder)), default=0) + 1
    with EventWriter(folder, attempt=attempt) as events, control.listening():
        announcer = Announcer(events)
        try:
            job = read_job(folder)
            source = job.source if isinstance(job, ConvertJob) else (job.model.weights or job.model.base)
            announcer.say(STARTED, source=source, destination=job.destination, pid=os.getpid(),
                          job="convert" if isinstance(job, ConvertJob) else "export")  # fmt: skip

            def report(stage: str, done: int, total: int) -> None:
                if control.stop():
                    raise Stopped
                announcer.waiting(stage, done=done, total=total, message=_WORDS.get(stage, ""))

            told = work(job, report)
            announcer.say(FINISHED, **told, elapsed_s=round(time.monotonic() - began, 3))
        except Stopped:
            announcer.say(STOPPED)
            return STOPPED_CODE
        except Exception as error:  # the process's boundary: whatever went wrong becomes its last event
            fault = _fault_of(error)
            print(f"{fault.code}: {fault.message}", file=sys.stderr)
            announcer.say(FAILED, **fault.as_data())
            return FAILED_CODE
    return 0


def read_job(folder: Path) -> ConvertJob | ExportJob:
    """Raises Fault `config.unreadable`, also for a name in it that no such job has."""
    try:
        try:
            return ConvertJob.read(folder)
        except Fault:
            return ExportJob.read(folder)
    except (TypeError, KeyError) as error:
        raise Fault("config.unreadable", f"{folder / 'config.json'}: {error}") from error


def work(job: ConvertJob | ExportJob, report: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Do the job; what its last event says: path, size_bytes, sha256 and the facts of a model that was brought in."""
    report("opening", 0, 0)
    # Here: the torch half takes seconds to import, and a job that cannot be read should fail at once.
    if isinstance(job, ConvertJob):
        from gpu.originals.convert import convert

        facts: dict[str, Any] = convert(job, report).as_dict()
        path = Path(job.destination)
    else:
        from gpu.originals.export import export

        path, facts = export(job, report), {}
    report("hashing", 0, 0)
    if path.is_dir():
        size = sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
        if not (path / INDEX_FILE).is_file():  # a LoRA's
            return {"path": str(path), "size_bytes": size, "sha256": folder_digest(path), "facts": facts}
        found = digests(path)
        told = {"sha256": found.whole, "content_sha256": found.content, "weights_sha256": found.weights}
        return {"path": str(path), "size_bytes": size, **told, "facts": facts}
    return {"path": str(path), "size_bytes": path.stat().st_size, "sha256": sha256_of(path), "facts": facts}


_WORDS = {
    "opening": "Reading what the file is", "downloading": "Downloading from the hub", "checking": "Comparing the file with its own checksums",
    "comparing": "Looking for what the file holds twice", "converting": "Writing the model folder", "copying": "Copying the folder",
    "merging": "Merging what was trained into the model", "exporting": "Writing the result", "packing": "Packing the folder into one file", "hashing": "Computing its digest",
}  # fmt: skip


def _job_of(args: argparse.Namespace) -> ConvertJob | ExportJob:
    format = args.format or {".ckpt": "ckpt", ".safetensors": "safetensors"}.get(Path(args.destination).suffix, "")
    if format or args.weights:
        return ExportJob(
            model=ModelRef(base=args.source, weights=args.weights),
            format=format or "diffusers",
            destination=args.destination,
            dtype=args.dtype,
            provenance={key: value for key, value in (("name", args.name), ("licence", args.licence)) if value},
        )
    return ConvertJob(
        source=args.source,
        destination=args.destination,
        name=args.name,
        weights=args.weights_copy or "auto",
        keep_original=not args.slim,
        tokenizers=args.tokenizers,
        licence=args.licence,
    )


def _run_in_terminal(job: ConvertJob | ExportJob) -> int:
    stop: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: stop.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    bar: tqdm | None = None
    failure: str | None = None
    code = 0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal bar
        if stop:
            raise Stopped
        if bar is None or bar.desc.rstrip(": ") != stage:
            if bar is not None:
                bar.close()
            bar = tqdm(desc=stage, total=total or None, unit="B", unit_scale=True, file=sys.stderr, leave=total > 0)
        bar.update(done - bar.n)

    try:
        told = work(job, report)
    except Stopped:
        code, failure = STOPPED_CODE, "stopped; nothing was left behind"
    except Exception as error:  # the process's boundary
        fault = _fault_of(error)
        code, failure = FAILED_CODE, f"{fault.code}: {fault.message}"
    finally:
        # Before any words: they would stand behind the bar, on its line.
        if bar is not None:
            bar.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if failure is None:
        print(_summary(told))
    else:
        print(failure, file=sys.stderr)
    return code


def _summary(told: dict[str, Any]) -> str:
    facts = told["facts"]
    lines = [f"{told['path']}  {told['size_bytes'] / 2**20:.1f} MB  SHA-256 {told['sha256'][:16]}…"]
    if facts:
        original = facts.get("original") or {}
        lines.append(f"{facts['name']}: {facts.get('variant') or facts['family']}, {facts['sample_rate_hz']} Hz, licence {facts['licence'] or 'not told'}")
        if original:
            lines.append(f"from layout {original.get('layout')}, {original.get('weights')} weights, heads {original.get('heads')}")
        lines += [f"note: {text}" for text in (original.get("facts") or {}).get("warnings", [])]
        if facts.get("why_not"):
            lines.append(f"note: {facts['why_not']}")
    return "\n".join(lines)


def _fault_of(error: Exception) -> Fault:
    """`gpu.device.fault_of` without torch, for what happens before torch is needed."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, MemoryError):
        return Fault("memory.exhausted", "the process ran out of memory", operator=True)
    if isinstance(error, OSError) and error.errno == 28:
        return Fault("disk.full", f"no space is left: {error}", operator=True)
    traceback.print_exc()
    return Fault("internal", f"{type(error).__name__}: {error}")
