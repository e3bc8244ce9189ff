"""A PostgreSQL of the tests' own: another user's, on a port of its own, gone with whoever started it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

NOBODY = 65534


class Server:
    """A cluster in a folder below the system's temporary one."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="studio-postgres-"))
        # PostgreSQL refuses to run as root.
        self._as_other: list[str] = []
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
            self._as_other = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgres://studio@127.0.0.1:{self.port}/postgres"
        self._control("init", "-o", "--username=studio --auth=trust --no-sync --encoding=UTF8 --locale=C")
        self.start()

    def start(self) -> None:
        """Also after `kill`, whose last children may hold the shared memory for a moment."""
        for attempt in range(20):
            try:
                return self._control("start", "-l", str(self.folder / "log"), "-o", f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off")
            except subprocess.CalledProcessError:
                if attempt == 19:
                    raise
                time.sleep(0.5)

    def stop(self, *, mode: str) -> None:
        """`fast` ends every connection in order; `immediate` is a crash, after which the next start recovers."""
        self._control("stop", "-m", mode)

    def kill(self) -> None:
        """SIGKILL to the main process; the others notice and leave."""
        pid = int((self.folder / "db" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        subprocess.run(["tail", f"--pid={pid}", "-f", "/dev/null"], check=True, timeout=60)

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # it was killed
            self.stop(mode="immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _control(self, *arguments: str) -> None:
        # Its children must not hold our pipes open, nor look like something of the studio's.
        command = [*self._as_other, str(programs() / "pg_ctl"), "-D", str(self.folder / "db"), "-w", "-s", *arguments]
        subprocess.run(command, check=True, cwd="/", env={"PATH": os.environ["PATH"]}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def programs() -> Path | None:
    """Where the newest installed version's programs are."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def why_not() -> str:
    """What is missing for a server of our own; "" where nothing is."""
    if programs() is None:
        return "PostgreSQL is not installed"
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        return "PostgreSQL does not run as root, and setpriv is missing"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    return ""
