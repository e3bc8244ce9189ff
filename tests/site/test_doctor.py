from __future__ import annotations

import json
import subprocess
import sys

import pytest
from django.core.management import call_command

from audioldm_site import checks, doctor, hardware
from audioldm_site.environment import Environment
from audioldm_site.jobs import queue
from audioldm_site.jobs.models import Worker


@pytest.fixture
def look(capsys, db):
    """Run `doctor`; exit code, findings by name, stderr."""

    def run() -> tuple[int, dict[str, dict], str]:
        capsys.readouterr()
        code = 0
        try:
            call_command("doctor", "--json")
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, {finding["name"]: finding for finding in json.loads(captured.out)["findings"]}, captured.err

    return run


def test_a_studio_in_order_passes(look, base_checkpoint):
    for name in queue.QUEUES:
        queue.seen(name=name, queue=name, device="CPU")

    code, found, errors = look()

    assert (code, errors) == (0, "")
    assert "Django 5" in found["versions"]["value"]
    assert "free" in found["data"]["value"]


def test_what_fails_is_named_with_its_code_and_remedy(look):
    code, found, errors = look()

    assert code == 1
    assert found["training worker"]["state"] == "failing"
    assert "worker.missing: training worker: none. Start the studio" in errors
    assert "checkpoint.none" in errors


def test_a_dead_worker_is_told_from_one_that_never_was(look):
    queue.seen(name="w", queue="training")
    Worker.objects.update(seen_at="2026-01-02T03:04:05Z")

    _, found, _ = look()

    assert found["training worker"]["value"] == "last seen 2026-01-02 03:04:05 UTC"


def test_a_screen_for_people_says_the_same(capsys, db):
    with pytest.raises(SystemExit):
        call_command("doctor")

    lines = capsys.readouterr().out.splitlines()

    assert any(line.startswith("ok ") and "versions" in line for line in lines)
    assert any(line.startswith("failing") and "training worker" in line for line in lines)


def test_neither_pages_nor_workers_parents_load_torch():
    program = """
import sys
from audioldm_site import asgi, doctor, hardware, urls
from audioldm_site.jobs import cluster
from django.urls import get_resolver
get_resolver().url_patterns
hardware.device()
print([name for name in ("torch", "diffusers", "transformers", "pytorch_lightning") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert printed.stdout.strip() == "[]"


def test_a_device_is_always_named():
    assert hardware.device()


# --- settings


def environment(settings, **values: str) -> None:
    settings.ENVIRONMENT = Environment.read(values)


def ids(messages) -> list[str]:
    return [message.id for message in messages]


def test_a_public_address_with_weak_secrets_is_refused(settings):
    environment(settings, HOST="0.0.0.0", ADMIN_PASSWORD="short")
    settings.SECRET_KEY = "guess"
    settings.DEBUG = True

    assert ids(checks.public_address(None)) == ["studio.E002", "studio.E003", "studio.E004"]


def test_the_same_at_home_is_fine(settings):
    environment(settings, HOST="127.0.0.1", ADMIN_PASSWORD="short")
    settings.SECRET_KEY = "guess"

    assert checks.public_address(None) == []


def test_a_missing_data_dir_is_an_error(settings, tmp_path):
    settings.DATA_DIR = tmp_path / "gone"

    assert ids(checks.data_dir(None)) == ["studio.E001"]


def test_low_space_fails(monkeypatch, settings, tmp_path):
    monkeypatch.setattr(doctor.machine, "LOW_SPACE_BYTES", 10**18)
    settings.DATA_DIR = tmp_path

    assert doctor._data_dir().code == "disk.low"
