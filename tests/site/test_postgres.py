"""The job tests once more on a real PostgreSQL, where locks and isolation differ from SQLite's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = ("tests/site/test_lifecycle.py", "tests/site/test_live.py")
NOBODY = 65534


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a server that lives as long as this module's tests."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="studio-postgres-"))
    # PostgreSQL refuses to run as root.
    as_other: list[str] = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("PostgreSQL does not run as root, and setpriv is missing")
        os.chown(folder, NOBODY, NOBODY)
        as_other = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    control = [*as_other, str(programs[-1] / "pg_ctl"), "-D", str(folder / "db"), "-w", "-s"]
    subprocess.run([*control, "init", "-o", "--username=studio --auth=trust --no-sync"], check=True, capture_output=True, cwd="/")
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
    subprocess.run([*control, "start", "-l", str(folder / "log"), "-o", options], check=True, cwd="/", stdout=subprocess.DEVNULL)
    try:
        yield f"postgres://studio@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "stop", "-m", "immediate"], check=True, cwd="/")
        shutil.rmtree(folder)


def test_jobs_and_their_feed_work_on_postgresql(postgres):
    pytest.importorskip("psycopg")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ds=tests.site.postgres_settings", "--create-db", *SUBJECTS]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "DATABASE_URL": postgres}, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_backups_go_from_one_postgresql_to_others(postgres, tmp_path):
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(postgres, autocommit=True) as connection:
        for name in ("source", "from_dump", "from_json"):
            connection.execute(f"CREATE DATABASE {name}")
    programs = str(sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1])

    def manage(database: str, *args: str, path: str = programs) -> subprocess.CompletedProcess[str]:
        places = {"DATABASE_URL": postgres.replace("/postgres", f"/{database}"), "DATA_DIR": str(tmp_path / database), "PATH": path}
        env = {**os.environ, **places, "DJANGO_SETTINGS_MODULE": "audioldm_site.settings"}
        return subprocess.run([sys.executable, "manage.py", *args], cwd=ROOT, env=env, capture_output=True, text=True)

    assert manage("source", "migrate", "-v0").returncode == 0
    # Without a PATH there is no pg_dump, and the database goes as JSON.
    for name, path in (("from_dump", programs), ("from_json", "")):
        made = manage("source", "backup", str(tmp_path / f"{name}.tar"), "--json", path=path)
        assert (made.returncode, name.removeprefix("from_") in made.stdout) == (0, True), made.stderr
        restored = manage(name, "restore", str(tmp_path / f"{name}.tar"), path=path)
        assert restored.returncode == 0, restored.stderr
        checked = manage(name, "check_storage")
        assert (checked.returncode, checked.stdout.strip()) == (0, "Rows and files agree."), checked.stdout + checked.stderr
