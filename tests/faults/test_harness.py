"""The short form of the random faults; docs/faults.md says how the long one is run and what it found."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.faults.harness import COUNTS, ROOT

pytestmark = pytest.mark.faults


def test_random_faults_lose_double_and_damage_nothing(tmp_path):
    output = tmp_path / "faults.json"

    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.harness", "--faults", "6", "--seed", "1", "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=280
    )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    report = json.loads(output.read_text())
    assert report["faults"] == 6
    assert {kind: report[kind] for kind in COUNTS} == dict.fromkeys(COUNTS, 0)
    assert report["jobs"] and report["attempts"] > sum(report["jobs"].values())
