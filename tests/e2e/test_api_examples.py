"""What the documentation prints for programs, run as it is printed against a live studio."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factories import write_dataset_zip

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def printed(document: str, heading: str, language: str) -> str:
    """The code below a heading of a document."""
    section = (ROOT / "docs" / document).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture(scope="module")
def env(studio, tmp_path_factory) -> dict[str, str]:
    """A shell in a folder with some sounds, and the variables that the examples name."""
    made = studio.manage("api_token", "create", "designer", "examples", "--scope", "write")
    token = re.search(r"studio_[\w-]{43}", made.stdout)
    assert token, made.stdout + made.stderr
    folder = tmp_path_factory.mktemp("examples")
    write_dataset_zip(folder / "my_sounds.zip")
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "PWD": str(folder), "STUDIO": studio.url, "TOKEN": token[0], "MODEL": "tiny", "LENGTH": "0.64", "STEPS": "24"}


def run(program: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(program, cwd=env["PWD"], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_example_brings_sounds_trains_and_fetches_a_sound(env):
    pytest.importorskip("requests")

    said = run([sys.executable, "-c", printed("api.md", "In Python", "python")], env)

    sound = (Path(env["PWD"]) / "door.wav").read_bytes()
    assert f"door.wav: {len(sound)} bytes" in said
    assert re.search(r"step 24, loss \d", said), said
    assert sound[:4] == b"RIFF"


def test_the_curl_examples_answer(env):
    said = run(["bash", "-euc", printed("api.md", "With curl", "sh")], env)

    assert '"name": "designer"' in said and '"status": "importing"' in said and '"items"' in said


def test_a_file_goes_up_piece_by_piece_with_curl(env):
    said = run(["bash", "-euc", printed("uploads.md", "In a program: the tus protocol 1.0.0", "sh")], env)

    answer = json.loads(said.strip().splitlines()[-1])
    assert answer["finished"] and answer["error"] is None and answer["location"].startswith("/datasets/")


def test_a_download_is_looked_at_first_and_goes_on_where_it_broke_off(env):
    ask = ["curl", "-sS", "-H", f"Authorization: Bearer {env['TOKEN']}"]
    made = json.loads(run([*ask, f"{env['STUDIO']}/api/v1/generations"], env))["items"]
    if not made:
        pytest.skip("the Python example has made no sound")
    address = f"{env['STUDIO']}/api/v1/generations/{made[0]['id']}/files/{made[0]['sounds'][0]['file']}"

    head = run([*ask, "-I", address], env).lower()
    run([*ask, "-o", "whole.wav", address], env)
    run([*ask, "-r", "0-99", "-o", "part.wav", address], env)
    run([*ask, "-C", "-", "-o", "part.wav", address], env)

    whole = (Path(env["PWD"]) / "whole.wav").read_bytes()
    assert "200 ok" in head and f"content-length: {len(whole)}" in head and "etag: " in head and "accept-ranges: bytes" in head
    assert (Path(env["PWD"]) / "part.wav").read_bytes() == whole
