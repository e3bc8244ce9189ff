"""The short form of the random faults; docs/faults.md says how the long one is run and what it found.

Its tests stand in files of their own, because tests of one file run one after another.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

from tests.faults.harness import COUNTS, ROOT


def play(tmp_path, *arguments: str) -> dict:
    """One run of the harness; what it had to leave out is said where everybody sees it."""
    output = tmp_path / "faults.json"
    command = [sys.executable, "-m", "tests.faults.harness", "--seed", "1", "--output", str(output), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    report = json.loads(output.read_text())
    assert {kind: report[kind] for kind in COUNTS} == dict.fromkeys(COUNTS, 0)
    for name, words in report["skipped"].items():
        warnings.warn(f"{name} was not tried: {words}", stacklevel=1)
    return report


def one_of_each_kind(tmp_path, share: str) -> None:
    report = play(tmp_path, "--each", "--share", share, "--postgres", "0")

    assert report["faults"] >= 8
    jobs = report["parts"]["SQLite"]["jobs"]
    assert jobs and report["parts"]["SQLite"]["attempts"] > sum(jobs.values())
