"""What a container starts, run as it is there: another user, and a DATA_DIR with nothing in it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import wait_for

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


@pytest.fixture
def empty_folder() -> Iterator[Path]:
    """Not below pytest's own, which is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="studio-entry-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(*command: str) -> list[str]:
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]


def a_python_for_nobody() -> tuple[str, dict[str, str]] | None:
    """An interpreter that another user may run (this one may live in somebody's home), and what it needs to find our packages."""
    packages = {"PYTHONPATH": sysconfig.get_path("purelib")}
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        probe = as_nobody(str(ROOT / "docker-entrypoint"), python, "-c", "import django, channels, numpy")
        found = subprocess.run(probe, env={**os.environ, **packages}, cwd=ROOT, capture_output=True)
        if found.returncode == 0:
            return python, packages
    return None


def answer(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="becoming another user needs root")
def test_the_entry_serves_from_an_empty_folder_as_another_user(empty_folder):
    found = a_python_for_nobody()
    if found is None:
        pytest.skip("no interpreter that another user may run")
    python, packages = found
    data_dir = empty_folder / "data"
    data_dir.mkdir()
    os.chown(data_dir, NOBODY, NOBODY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # As the Dockerfile sets them, and nothing of this process's own.
    environment = {"DATA_DIR": str(data_dir), "HOST": "0.0.0.0", "PORT": str(port), "PATH": os.environ["PATH"], "HOME": str(empty_folder), **packages}
    with open(empty_folder / "output.txt", "wb") as output:
        process = subprocess.Popen(
            as_nobody(str(ROOT / "docker-entrypoint"), python, "manage.py", "serve"), cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_for(lambda: process.poll() is not None or answer(port) == 200, seconds=90)
        printed = (empty_folder / "output.txt").read_text()
        assert process.poll() is None, printed
        assert f"http://127.0.0.1:{port}/setup/" in printed
        assert data_dir.joinpath("db.sqlite3").stat().st_uid == NOBODY
        assert data_dir.joinpath("secret_key").stat().st_mode & 0o077 == 0
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
