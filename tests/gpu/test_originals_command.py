"""`python -m gpu convert` as a process: what it says, what it obeys, how it ends; and downloads from a hub on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpu.config import ConvertJob, ExportJob, ModelRef
from gpu.errors import Fault
from gpu.events import read_events
from gpu.manifest import folder_digest
from gpu.models import describe
from gpu.originals.command import main
from gpu.originals.writing import FREE_SPACE_MARGIN_BYTES, appearing

ROOT = Path(__file__).parents[2]
COMMIT = "a" * 40


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gpu", "convert", *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def job_folder(folder: Path, job: ConvertJob | ExportJob) -> Path:
    folder.mkdir()
    job.write(folder)
    return folder


def test_a_job_says_what_it_does_and_what_came_out(tiny, tmp_path):
    folder = job_folder(tmp_path / "job", ConvertJob(source=str(tiny), destination=str(tmp_path / "m"), name="Mine"))
    done = run("--job", str(folder))

    events = list(read_events(folder))
    assert done.returncode == 0, done.stderr
    assert [events[0].type, events[-1].type] == ["started", "finished"]
    assert {event.data["stage"] for event in events if event.type == "waiting"} >= {"copying", "hashing"}
    said = events[-1].data
    assert said["path"] == str(tmp_path / "m")
    assert said["facts"]["name"] == "Mine"
    assert said["sha256"] == folder_digest(tmp_path / "m")
    assert said["size_bytes"] == describe(tmp_path / "m").size_bytes


def test_a_job_that_was_asked_to_stop_ends_with_3_and_leaves_nothing(tiny, tmp_path):
    folder = job_folder(tmp_path / "job", ConvertJob(source=str(tiny), destination=str(tmp_path / "out" / "m")))
    (folder / "control").mkdir()
    (folder / "control" / "stop").write_text("now")

    assert run("--job", str(folder)).returncode == 3
    assert list(read_events(folder))[-1].type == "stopped"
    assert not list((tmp_path).glob("out/*"))


def test_a_job_that_fails_says_the_fault_in_its_last_event(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"hello")
    folder = job_folder(tmp_path / "job", ConvertJob(source=str(tmp_path / "x.ckpt"), destination=str(tmp_path / "m")))

    assert run("--job", str(folder)).returncode == 1
    assert list(read_events(folder))[-1].data["code"] == "checkpoint.unrecognised"


def test_an_export_job_writes_its_file(tiny, tmp_path):
    job = ExportJob(model=ModelRef(base=str(tiny)), format="safetensors", destination=str(tmp_path / "one.safetensors"))
    folder = job_folder(tmp_path / "job", job)

    assert run("--job", str(folder)).returncode == 0
    said = list(read_events(folder))[-1].data
    assert said["sha256"] == hashlib.sha256((tmp_path / "one.safetensors").read_bytes()).hexdigest()


def test_a_configuration_that_is_no_such_job_is_said(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "config.json").write_text('{"job": "convert", "surprise": 1}')
    assert run("--job", str(tmp_path / "job")).returncode == 1
    assert list(read_events(tmp_path / "job"))[-1].data["code"] == "config.unreadable"


def test_in_a_terminal_the_summary_names_the_model_and_the_fault_its_code(tiny, tmp_path):
    done = run(str(tiny), str(tmp_path / "m"), "--name", "Mine")
    again = run(str(tiny), str(tmp_path / "m"))

    assert "Mine: AudioLDM 2" in done.stdout
    assert (done.returncode, again.returncode) == (0, 1)
    assert again.stderr.replace("\r", "\n").splitlines()[-1].startswith("file.unusable: ")
    alone = run(str(tiny))
    assert (alone.returncode, "DST must be named" in alone.stderr) == (2, True)


@pytest.mark.parametrize("where", ["below a file", "on a full disk", "where nothing may be written"])
def test_a_destination_that_cannot_be_written_is_said_and_nothing_is_left(tiny, tmp_path, capsys, where):
    place = tmp_path / "place"
    if where == "below a file":
        place.write_text("a file")
    else:
        place.mkdir()
        options = {"on a full disk": "size=1m", "where nothing may be written": "size=100m,ro"}[where]
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True).returncode:
            pytest.skip("this user may not mount")
    try:
        code = main([str(tiny), str(place / "m")])
        left = [path.name for path in place.iterdir()] if place.is_dir() else []
    finally:
        if place.is_dir():
            subprocess.run(["umount", str(place)], check=True)
    fault = "disk.full" if where == "on a full disk" else "file.unusable"
    words = {"below a file": "is no folder, or lies below a file", "on a full disk": "are free under", "where nothing may be written": "Read-only file system"}[where]
    said = capsys.readouterr().err
    assert (code, left) == (1, [])
    assert said.splitlines()[-1].startswith(f"{fault}: ")
    assert words in said
    assert "Traceback" not in said


def test_a_disk_that_fills_up_in_the_middle_is_said_and_nothing_is_left(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    try:
        with pytest.raises(Fault) as caught, appearing(place / "m", size_bytes=-FREE_SPACE_MARGIN_BYTES) as target:
            target.mkdir()
            for number in range(100):
                (target / f"{number}").write_bytes(bytes(2**15))
        left = list(place.iterdir())
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert (caught.value.code, left) == ("disk.full", [])


def test_a_converter_that_is_killed_leaves_nothing_that_looks_whole_and_the_next_one_succeeds(tiny, tmp_path):
    from safetensors.numpy import load_file, save_file

    # Values that are copied and not linked keep it busy long enough to be met in the middle.
    source = tmp_path / "whole.safetensors"
    assert main([str(tiny), str(source), "--format", "safetensors"]) == 0
    with open(source, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    save_file({**load_file(source), "unet.ballast": np.zeros(2**27, np.uint8)}, source, metadata=header["__metadata__"])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "gpu", "convert", str(source), str(out / "m")]
    killed = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while not list(out.glob(".tmp-*/unet")) and killed.poll() is None:
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert [path.name for path in out.iterdir()] == [f".tmp-{killed.pid}-m"]

    assert main([str(source), str(out / "m")]) == 0
    assert [path.name for path in out.iterdir()] == ["m"]
    assert describe(out / "m").parameters["vae"] == describe(tiny).parameters["vae"]


# --- the hub ---


class Hub(http.server.BaseHTTPRequestHandler):
    """The small part of the hub's interface that a download needs: what a model holds, and its files with ranges."""

    root: Path
    asked: list[str]
    breaks: str = ""
    """The file in whose middle the connection is lost, once."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        if self.path.startswith("/api/models/me/tiny"):
            files = [path.relative_to(self.root).as_posix() for path in sorted(self.root.rglob("*")) if path.is_file()]
            if "/tree/" in self.path:
                return self.send([{"type": "file", "path": name, "size": (self.root / name).stat().st_size, "oid": "0" * 40} for name in files])
            siblings = [{"rfilename": name, "size": (self.root / name).stat().st_size} for name in files]
            return self.send({"id": "me/tiny", "modelId": "me/tiny", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        match = re.fullmatch(rf"/me/tiny/resolve/{COMMIT}/(.+)", self.path)
        if not match or not (self.root / match[1]).is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if match else "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = (self.root / match[1]).read_bytes()
        start = int(asked[1]) if (asked := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body and (match[1] == self.breaks and not start and len(content) > 2000):
            type(self).breaks = ""
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(content[start:])

    def send(self, content: dict | list) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tiny, tmp_path) -> Iterator[tuple[dict[str, str], Path, list[str]]]:
    """(environment, the repository's folder, what was asked for)."""
    import shutil

    root = tmp_path / "repository"
    shutil.copytree(tiny, root)
    (root / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (root / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    handler = type("Handler", (Hub,), {"root": root, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    Hub.current = handler
    yield environment, root, handler.asked
    server.shutdown()


def test_a_model_comes_from_the_hub_without_pickles_and_half_copies_and_stays(hub, tiny, tmp_path):
    environment, _, asked = hub
    done = run("hub:me/tiny", str(tmp_path / "m"), **environment)

    assert done.returncode == 0, done.stderr
    assert describe(tmp_path / "m").parameters == describe(tiny).parameters
    assert not any(".bin" in line or ".fp16" in line for line in asked)
    asked.clear()
    assert run("hub:me/tiny", str(tmp_path / "again"), **environment).returncode == 0
    assert not any(line.startswith("GET /me/") for line in asked)


def test_a_name_that_the_hub_does_not_know_is_told_apart_from_a_hub_that_is_away(hub, tmp_path):
    environment, *_ = hub
    unknown = run("hub:me/nothing", str(tmp_path / "m"), **environment)
    away = run("hub:me/tiny", str(tmp_path / "m"), **{**environment, "HF_ENDPOINT": "http://127.0.0.1:9"})
    wrong = run("hub:no slash", str(tmp_path / "m"), **environment)

    assert [done.returncode for done in (unknown, away, wrong)] == [1, 1, 1]
    assert "hub.unknown" in unknown.stderr
    assert "hub.unreachable" in away.stderr
    assert "hub.unknown" in wrong.stderr


def test_a_download_that_breaks_off_in_a_file_goes_on_and_the_model_is_whole(hub, tiny, tmp_path):
    environment, *_ = hub
    name = "unet/diffusion_pytorch_model.safetensors"
    Hub.current.breaks = name
    done = run("hub:me/tiny", str(tmp_path / "m"), **environment)
    if done.returncode:
        assert "hub.unreachable" in done.stderr
        assert not (tmp_path / "m").exists()
        done = run("hub:me/tiny", str(tmp_path / "m"), **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m" / name).read_bytes() == (tiny / name).read_bytes()
    assert Hub.current.breaks == ""
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_a_download_that_is_killed_is_begun_again_and_the_model_is_whole(hub, tiny, tmp_path):
    environment, root, asked = hub
    (root / "vae" / "notes.txt").write_text("not asked for")
    command = [sys.executable, "-m", "gpu", "convert", "hub:me/tiny", str(tmp_path / "out" / "m")]
    killed = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stderr=subprocess.DEVNULL)
    while not any(line.startswith("GET /me/") for line in asked) and killed.poll() is None:
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out" / "m").exists()
    assert run("hub:me/tiny", str(tmp_path / "out" / "m"), **environment).returncode == 0
    assert describe(tmp_path / "out" / "m").parameters == describe(tiny).parameters
    assert not any("notes.txt" in line for line in asked if line.startswith("GET /me/"))
