from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.fuzz.cases import tried
from tests.site.conftest import base_checkpoint  # noqa: F401

REPORT = "FUZZ_REPORT"
"""A file for the counts, e.g. benchmarks/results/fuzz.json."""


def pytest_terminal_summary(terminalreporter) -> None:
    if tried:
        terminalreporter.write_line(f"fuzz: {sum(tried.values())} cases: " + ", ".join(f"{name[5:]} {count}" for name, count in sorted(tried.items())))


def pytest_sessionfinish(session) -> None:
    if tried and os.environ.get(REPORT):
        report = {
            "command": "HYPOTHESIS_PROFILE=long FUZZ_REPORT=benchmarks/results/fuzz.json python -m pytest tests/fuzz",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "cases": sum(tried.values()),
            "failed": session.testsfailed,
            "memory_bytes": psutil.Process().memory_info().rss,
            "by_kind": {name[5:].replace("_", " "): count for name, count in sorted(tried.items())},
        }
        Path(os.environ[REPORT]).write_text(json.dumps(report, indent=1) + "\n")
