from __future__ import annotations

from tests.fuzz.cases import tried
from tests.site.conftest import base_checkpoint  # noqa: F401


def pytest_terminal_summary(terminalreporter) -> None:
    if tried:
        terminalreporter.write_line(f"fuzz: {sum(tried.values())} cases: " + ", ".join(f"{name[5:]} {count}" for name, count in sorted(tried.items())))
