"""A studio as a user starts it: `manage.py migrate`, `manage.py serve`, and a real browser in front of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.factories import tiny_model

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
USER, PASSWORD = "designer", "a long enough password"
START_WITHIN_S = 90


@dataclass(frozen=True)
class Studio:
    url: str
    data_dir: Path
    env: dict[str, str]

    def manage(self, *args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "manage.py", *args], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator[Studio]:
    data_dir = tmp_path_factory.mktemp("studio")
    port = _free_port()
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "audioldm_site.settings",
        "DATA_DIR": str(data_dir),
        "PORT": str(port),
        "ADMIN_USER": USER,
        "ADMIN_PASSWORD": PASSWORD,
        "OMP_NUM_THREADS": "1",
    }
    studio = Studio(f"http://127.0.0.1:{port}", data_dir, env)
    assert studio.manage("migrate", "-v0").returncode == 0
    assert studio.manage("import_checkpoint", str(tiny_model()), "--name", "tiny").returncode == 0
    with open(data_dir / "serve.log", "wb") as log:
        server = subprocess.Popen([sys.executable, "manage.py", "serve"], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_ready(studio, server)
        yield studio
    finally:
        family = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            raise
    left = [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"still running after the server ended: {left}"


@pytest.fixture
def page(studio) -> Iterator:
    """A browser page that is logged in; a console error or a failed request of the page fails the test."""
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed at /usr/bin/chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"],
        )
        page = browser.new_page(base_url=studio.url, viewport={"width": 1280, "height": 900})
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(60_000)
        page.goto("/login/")
        page.get_by_label("Name").fill(USER)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(studio.url + "/")
        yield page
        browser.close()
        assert not errors, errors


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(studio: Studio, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        assert server.poll() is None, (studio.data_dir / "serve.log").read_text()
        try:
            with urllib.request.urlopen(studio.url + "/health/ready", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError("not ready in time:\n" + (studio.data_dir / "serve.log").read_text())
