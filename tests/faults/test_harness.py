"""The short form of the random faults; docs/faults.md says how the long one is run and what it found."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest

from tests.faults.harness import COUNTS, FAULTS, POSTGRESQL, ROOT

pytestmark = pytest.mark.faults


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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", ["0/2", "1/2"])
def test_one_fault_of_each_kind_loses_doubles_and_damages_nothing(tmp_path, share):
    report = play(tmp_path, "--each", "--share", share, "--postgres", "0")

    assert report["faults"] >= 8
    jobs = report["parts"]["SQLite"]["jobs"]
    assert jobs and report["parts"]["SQLite"]["attempts"] > sum(jobs.values())


@pytest.mark.timeout(600)
def test_a_restarted_postgresql_loses_and_doubles_nothing(tmp_path):
    report = play(tmp_path, "--faults", "2", "--postgres", "2", "--only", "database restarted")

    assert report["faults"] == 2 or report["skipped"][POSTGRESQL]


def test_every_harm_that_was_asked_for_can_be_drawn():
    families = {fault.family for fault in FAULTS}

    assert {"trainer", "worker", "monitor", "pusher", "cluster", "web", "serve", "all", "stop", "sleep", "starved:", "power"} <= families
    assert {"disk", "full checkpoint", "full log", "full upload", "database", "database lock", "database restart", "clock", "three", "newest"} <= families
