"""The web process's memory, whatever is sent or fetched, by whomever: the benchmark in small. docs/uploads.md has its figures for 8 GB."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.big_files import LIMIT_BYTES, ROOT

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def test_a_file_larger_than_the_limit_goes_up_and_down_bit_equal_within_it(tmp_path):
    output = tmp_path / "big_files.json"

    done = subprocess.run([sys.executable, "-m", "benchmarks.big_files", "--gb", "0.25", "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=280)

    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["part"]: row for row in json.loads(output.read_text())["results"]}
    assert len(rows) >= 9
    assert all(row["peak_bytes"] < LIMIT_BYTES for row in rows.values())
    assert [row["answer"] for name, row in rows.items() if name.startswith("anonymous")] == ["413", "413", "413", "401"]
    assert rows["upload in pieces, interrupted"]["equal"] and rows["download by ranges, interrupted"]["equal"]
