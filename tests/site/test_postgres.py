"""The job tests once more on a real PostgreSQL, where locks and isolation differ from SQLite's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Server, programs, why_not

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = ("tests/site/test_lifecycle.py", "tests/site/test_live.py")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a server that lives as long as this module's tests."""
    if missing := why_not():
        pytest.skip(missing)
    server = Server()
    try:
        yield server.url
    finally:
        server.remove()


def test_jobs_and_their_feed_work_on_postgresql(postgres):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ds=tests.site.postgres_settings", "--create-db", *SUBJECTS]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "DATABASE_URL": postgres}, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_backups_go_from_one_postgresql_to_others(postgres, tmp_path):
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        for name in ("source", "from_dump", "from_json"):
            connection.execute(f"CREATE DATABASE {name}")

    def manage(database: str, *args: str, path: str = str(programs())) -> subprocess.CompletedProcess[str]:
        places = {"DATABASE_URL": postgres.replace("/postgres", f"/{database}"), "DATA_DIR": str(tmp_path / database), "PATH": path}
        env = {**os.environ, **places, "DJANGO_SETTINGS_MODULE": "audioldm_site.settings"}
        return subprocess.run([sys.executable, "manage.py", *args], cwd=ROOT, env=env, capture_output=True, text=True)

    assert manage("source", "migrate", "-v0").returncode == 0
    # Without a PATH there is no pg_dump, and the database goes as JSON.
    for name, path in (("from_dump", str(programs())), ("from_json", "")):
        made = manage("source", "backup", str(tmp_path / f"{name}.tar"), "--json", path=path)
        assert (made.returncode, name.removeprefix("from_") in made.stdout) == (0, True), made.stderr
        restored = manage(name, "restore", str(tmp_path / f"{name}.tar"), path=path)
        assert restored.returncode == 0, restored.stderr
        checked = manage(name, "check_storage")
        assert (checked.returncode, checked.stdout.strip()) == (0, "Rows and files agree."), checked.stdout + checked.stderr
