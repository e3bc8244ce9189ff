"""A database server that goes and comes, and what the harness can draw at all."""

import pytest

from tests.faults.harness import FAULTS, POSTGRESQL
from tests.faults.playing import play

pytestmark = pytest.mark.faults


@pytest.mark.timeout(600)
def test_a_restarted_postgresql_loses_and_doubles_nothing(tmp_path):
    report = play(tmp_path, "--faults", "2", "--postgres", "2", "--only", "database restarted")

    assert report["faults"] == 2 or report["skipped"][POSTGRESQL]


def test_every_harm_that_was_asked_for_can_be_drawn():
    families = {fault.family for fault in FAULTS}

    assert {"trainer", "worker", "monitor", "pusher", "cluster", "web", "serve", "all", "stop", "sleep", "starved:", "power"} <= families
    assert {"disk", "full checkpoint", "full log", "full upload", "database", "database lock", "database restart", "clock", "three", "newest"} <= families
