"""A large file up and down, interrupted at random, and what the web process needs of memory meanwhile.

    python -m benchmarks.big_files [--gb 2] [--seed 0]

A studio of its own (`serve --no-workers` in a temporary folder, removed afterwards) gets a file of random bytes by the tus protocol in pieces
of 16 MB. About one connection in twenty is cut in the middle of a piece, and three times the web process is killed. Then the file comes back:
by ranges that are cut at random, and by `curl -C -` where that is installed. Both must have the SHA-256 of what was sent. Besides: strangers who
send a multipart form, a raw body and an upload of the same size without a login, and a reader who takes a byte now and then. The memory is the
web process's own peak (VmHWM of /proc/PID/status, reset before each part).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "big_files.json"
PIECE_BYTES = 16 * 1024**2
BLOCK_BYTES = 1024**2
CUT_SHARE = 0.05
KILLS = 3
LIMIT_BYTES = 200 * 10**6
CREATE_TOKEN = "from django.contrib.auth.models import User; from audioldm_site.accounts.tokens import create_token; print(create_token(user=User.objects.get(username='admin'), name='bench', scope='write')[1])"


@dataclass
class Studio:
    port: int
    data_dir: Path
    process: subprocess.Popen
    token: str

    def web(self) -> psutil.Process:
        """The web process; a new one is awaited after a kill."""
        for _ in range(600):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "audioldm_site.web" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                        return child
            time.sleep(0.1)
        raise SystemExit("the web process does not come back")

    def connect(self, *, timeout_s: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: object) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request with the token; waits for a studio that is just coming back."""
        named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        for attempt in range(100):
            connection = self.connect()
            try:
                connection.request(method, path, body, {"Authorization": f"Bearer {self.token}", "Tus-Resumable": "1.0.0", **named})
                answer = connection.getresponse()
                return answer.status, answer.headers, answer.read()
            except OSError:
                if attempt == 99:
                    raise
                time.sleep(0.2)
            finally:
                connection.close()
        raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0, help="size of the file, in 10^9 bytes; 8 is the long form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    size, chance = int(arguments.gb * 10**9), random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="studio-big-files-"))
    try:
        digest = _write_random(folder / "sent", size)
        with _studio(folder) as studio:
            rows = list(_parts(studio, folder, size=size, digest=digest, chance=chance))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _report(rows, size=size, command=f"python -m benchmarks.big_files --gb {arguments.gb:g} --seed {arguments.seed}", output=arguments.output)
    if any(row["peak_bytes"] > LIMIT_BYTES or row["equal"] is False for row in rows):
        raise SystemExit("the web process took too much, or a file arrived changed")


def _parts(studio: Studio, folder: Path, *, size: int, digest: str, chance: random.Random) -> Iterator[dict]:
    yield _measured(studio, "nothing, for comparison", lambda: {})
    yield _measured(studio, "upload in pieces, interrupted", lambda: _upload(studio, folder / "sent", digest=digest, chance=chance))
    yield _measured(studio, "upload in one request", lambda: _upload(studio, folder / "sent", digest=digest, chance=chance, piece_bytes=size, kills=0, cut_share=0))
    yield _measured(studio, "anonymous multipart form", lambda: _attack(studio, "POST", "/datasets/upload/", "multipart/form-data; boundary=x", size))
    yield _measured(studio, "anonymous multipart form, length unsaid", lambda: _attack(studio, "POST", "/login/", "multipart/form-data; boundary=x", size, chunked=True))
    yield _measured(studio, "anonymous raw body", lambda: _attack(studio, "PUT", "/", "application/octet-stream", size))
    yield _measured(studio, "anonymous upload", lambda: _attack(studio, "PATCH", "/uploads/00000000-0000-4000-8000-000000000000/", "application/offset+octet-stream", size))
    address = _offer(studio, folder / "sent")
    yield _measured(studio, "download by ranges, interrupted", lambda: _download(studio, address, digest=digest, chance=chance, folder=folder))
    if shutil.which("curl"):
        yield _measured(studio, "download by curl -C -, interrupted", lambda: _curl(studio, address, digest=digest, folder=folder))
    yield _measured(studio, "ten slow readers of a download", lambda: _slow_readers(studio, address))


def _measured(studio: Studio, name: str, work: Callable[[], dict]) -> dict:
    _reset_peak(studio.web().pid)
    began = time.monotonic()
    found = {"part": name, "equal": None, "interruptions": 0, **work()}
    found |= {"seconds": time.monotonic() - began, "peak_bytes": max([*found.pop("peaks", []), _peak(studio.web().pid)])}
    print(f"{name:42}  {found['seconds']:7.1f} s  {found['interruptions']:4} interruptions  {found['peak_bytes'] / 1e6:6.0f} MB  {found.get('answer', '')}", flush=True)
    return found


def _upload(
    studio: Studio, path: Path, *, digest: str, chance: random.Random, piece_bytes: int = PIECE_BYTES, kills: int = KILLS, cut_share: float = CUT_SHARE
) -> dict:
    size = path.stat().st_size
    metadata = f"kind {_b64(b'dataset')},filename {_b64(b'big.zip')}"
    status, headers, body = studio.request("POST", "/uploads/", Upload_Length=size, Upload_Metadata=metadata)
    assert status == 201, body
    address = headers["Location"]
    kill_at = sorted(chance.randrange(size) for _ in range(kills))
    peaks: list[int] = []
    interruptions = at = 0
    with open(path, "rb") as file:
        while at < size:
            length = min(piece_bytes, size - at)
            kill = bool(kill_at and at >= kill_at[0])
            cut = chance.randrange(1, length) if kill or chance.random() < cut_share else None
            if kill:
                kill_at.pop(0)
            file.seek(at)
            if cut is None:
                at = _send_piece(studio, address, file, at=at, length=length)
                continue
            interruptions += 1
            with contextlib.suppress(OSError):
                _break_off(studio, address, file, at=at, length=length, cut=cut, kill=peaks if kill else None)
            at = int(studio.request("HEAD", address)[1]["Upload-Offset"])
    about = json.loads(studio.request("GET", address)[2])
    source = studio.data_dir / "uploads" / about["id"] / "source"
    is_equal = about["finished"] and _sha256(source) == digest
    source.unlink()  # 8 GB each; nobody imports them
    return {"interruptions": interruptions, "equal": is_equal, "peaks": peaks}


def _send_piece(studio: Studio, address: str, file, *, at: int, length: int) -> int:
    connection = studio.connect(timeout_s=300)
    try:
        _start(connection, studio, address, at=at, length=length)
        for piece in _blocks(file, length):
            connection.send(piece)
        answer = connection.getresponse()
        answer.read()
        if answer.status == 204:
            return int(answer.headers["Upload-Offset"])
        if answer.status not in (409, 423):
            raise SystemExit(f"the studio answered {answer.status}")
    finally:
        connection.close()
    time.sleep(0.1)  # the broken request, which had more than it had said, is still being put away
    return int(studio.request("HEAD", address)[1]["Upload-Offset"])


def _break_off(studio: Studio, address: str, file, *, at: int, length: int, cut: int, kill: list[int] | None) -> None:
    """Send the beginning of a piece; then the connection ends, or (where its peak shall be noted) the web process does, by SIGKILL."""
    connection = studio.connect()
    try:
        _start(connection, studio, address, at=at, length=length)
        for piece in _blocks(file, cut):
            connection.send(piece)
        if kill is not None:
            web = studio.web()
            kill.append(_peak(web.pid))
            web.send_signal(signal.SIGKILL)
    finally:
        connection.close()


def _start(connection: http.client.HTTPConnection, studio: Studio, address: str, *, at: int, length: int) -> None:
    connection.putrequest("PATCH", address)
    for name, value in {
        "Authorization": f"Bearer {studio.token}",
        "Tus-Resumable": "1.0.0",
        "Content-Type": "application/offset+octet-stream",
        "Content-Length": length,
        "Upload-Offset": at,
    }.items():
        connection.putheader(name, str(value))
    connection.endheaders()


def _attack(studio: Studio, method: str, path: str, content_type: str, size: int, *, chunked: bool = False) -> dict:
    """Somebody without a login sends; how far they get and what they are told."""
    connection = studio.connect()
    sent, answer = 0, "cut off"
    block = os.urandom(BLOCK_BYTES)
    try:
        connection.putrequest(method, path)
        connection.putheader("Content-Type", content_type)
        connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))))
        connection.endheaders()
        while sent < size:
            connection.send(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            sent += len(block)
        answer = str(connection.getresponse().status)
    except OSError:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answer = str(connection.getresponse().status)
    finally:
        connection.close()
    return {"answer": answer, "sent_bytes": sent}


def _offer(studio: Studio, path: Path) -> str:
    """Make the file what an export wrote, which a page offers."""
    code = (
        "import sys; from pathlib import Path; from django.contrib.auth.models import User; from training_app.models import Conversion; "
        "c = Conversion(owner=User.objects.get(username='admin'), direction='export', name='big', format='ckpt', status='succeeded'); "
        "from django.conf import settings; f = settings.DATA_DIR / 'exports' / str(c.pk); f.mkdir(parents=True); "
        f"import os; os.link({str(path)!r}, f / 'big.ckpt'); c.result = f'exports/{{c.pk}}/big.ckpt'; c.save(); print(c.pk)"
    )
    return f"/api/v1/conversions/{_shell(studio, code)}/file"


def _download(studio: Studio, address: str, *, digest: str, chance: random.Random, folder: Path) -> dict:
    """As a browser goes on: a range from what is there, on condition that the file is still the same."""
    _, headers, _ = studio.request("GET", address, Range="bytes=0-0")
    size, etag = int(headers["Content-Range"].rpartition("/")[2]), headers["ETag"]
    cuts = sorted(chance.randrange(size) for _ in range(20))
    target = folder / "back"
    with open(target, "wb") as file:
        for end in [*cuts, size]:
            connection = studio.connect()
            connection.request("GET", address, headers={"Authorization": f"Bearer {studio.token}", "Range": f"bytes={file.tell()}-", "If-Range": etag})
            answer = connection.getresponse()
            assert answer.status == 206, answer.status
            while file.tell() < end and (block := answer.read(min(BLOCK_BYTES, end - file.tell()))):
                file.write(block)
            connection.close()
    return {"interruptions": len(cuts), "equal": _taken(target) == digest}


def _curl(studio: Studio, address: str, *, digest: str, folder: Path) -> dict:
    target = folder / "curled"
    command = ["curl", "-s", "-C", "-", "-o", str(target), "-H", f"Authorization: Bearer {studio.token}", f"http://127.0.0.1:{studio.port}{address}"]
    kills = 0
    for wait_s in (0.3, 0.4, 0.2, None):
        process = subprocess.Popen(command)
        try:
            process.wait(wait_s)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    return {"interruptions": kills, "equal": _taken(target) == digest}


def _slow_readers(studio: Studio, address: str, *, seconds: float = 5.0) -> dict:
    readers = []
    for _ in range(10):
        reader = socket.create_connection(("127.0.0.1", studio.port))
        reader.sendall(f"GET {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {studio.token}\r\n\r\n".encode())
        readers.append(reader)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for reader in readers:
            reader.recv(1000)
        time.sleep(0.05)
    for reader in readers:
        reader.close()
    return {}


@contextlib.contextmanager
def _studio(folder: Path) -> Iterator[Studio]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "DATA_DIR": str(folder / "data"), "PORT": str(port), "ADMIN_PASSWORD": "a long enough password", "API_RATE_PER_MINUTE": "1000000"}
    env["DJANGO_SETTINGS_MODULE"] = "audioldm_site.settings"
    os.environ.update({name: env[name] for name in ("DATA_DIR", "PORT", "DJANGO_SETTINGS_MODULE")})
    subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=env, check=True)
    with open(folder / "serve.log", "wb") as log:
        process = subprocess.Popen([sys.executable, "manage.py", "serve", "--no-workers"], cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=2).status == 200:
                    break
            time.sleep(0.2)
        studio = Studio(port=port, data_dir=folder / "data", process=process, token="")
        studio.token = _shell(studio, CREATE_TOKEN)
        yield studio
    finally:
        process.terminate()
        process.wait(30)


def _shell(studio: Studio, code: str) -> str:
    env = {**os.environ, "DATA_DIR": str(studio.data_dir), "PORT": str(studio.port)}
    answer = subprocess.run([sys.executable, "manage.py", "shell", "-v0", "-c", code], cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    return answer.stdout.strip().splitlines()[-1]


def _write_random(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        left = size
        while left:
            block = os.urandom(min(BLOCK_BYTES * 8, left))
            digest.update(block)
            left -= file.write(block)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _taken(path: Path) -> str:
    """The hash of what came back, which has no further use."""
    digest = _sha256(path)
    path.unlink()
    return digest


def _blocks(file, length: int) -> Iterator[bytes]:
    while length and (block := file.read(min(BLOCK_BYTES, length))):
        length -= len(block)
        yield block


def _reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _report(rows: list[dict], *, size: int, command: str, output: Path) -> None:
    from benchmarks.report import machine

    output.write_text(json.dumps({"command": command, "machine": machine(), "size_bytes": size, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
