"""The whole studio in the foreground: the web process and a worker for each queue. Ctrl-C ends all of it and loses nothing."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from audioldm_site import first_run
from audioldm_site.environment import LOCAL_HOSTS
from audioldm_site.jobs.queue import QUEUES

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
END_WITHIN_S = 90.0
"""Longer than a cluster needs to save a running job."""
RESTART_PAUSES_S = (0.0, 1.0, 2.0, 5.0, 15.0, 30.0)
STEADY_AFTER_S = 60.0
SERVE_PID = "SERVE_PID"


class Command(BaseCommand):
    help = "Run the web site and all workers until Ctrl-C."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--no-migrate", action="store_true", help="Leave the database's tables as they are.")
        parser.add_argument("--no-workers", action="store_true", help="The web process alone; workers run elsewhere.")

    def handle(self, *, no_migrate: bool, no_workers: bool, **options) -> None:
        environment = settings.ENVIRONMENT
        _require_free_port(environment.host, environment.port)
        if not no_migrate:
            call_command("migrate", verbosity=0, interactive=False)
        self._greet()
        connections.close_all()
        children = [Child("web", [sys.executable, "-m", "audioldm_site.web"])]
        if not no_workers:
            children += [Child(queue, [sys.executable, "manage.py", "qcluster"], Q_CLUSTER_NAME=queue) for queue in QUEUES]
        Family(children).run()
        self.stdout.write("Everything has ended; what was running goes on at the next start.")

    def _greet(self) -> None:
        environment = settings.ENVIRONMENT
        shown = "127.0.0.1" if environment.host in (*LOCAL_HOSTS, "0.0.0.0", "::") else environment.host
        address = f"http://{shown}:{environment.port}/"
        created = first_run.create_admin_from_environment()
        token = first_run.new_setup_token()
        self.stdout.write(f"\n  The studio is at {address}")
        if token:
            self.stdout.write(f"  First start: choose your name and password at {address}setup/{token}/")
        elif created:
            self.stdout.write(f"  Log in as {environment.admin_user} with the password in ADMIN_PASSWORD.")
        self.stdout.write(f"  Everything is kept in {settings.DATA_DIR}. Ctrl-C ends it.\n")
        self.stdout.flush()


class Child:
    """One of the processes, started again whenever it ends unasked."""

    def __init__(self, name: str, command: list[str], **environment: str) -> None:
        self.name, self.command = name, command
        # DATA_DIR may have been given relative to where the command was typed; the children start elsewhere.
        self.environment = {**os.environ, SERVE_PID: str(os.getpid()), "STUDIO_PROCESS": name, "DATA_DIR": str(settings.DATA_DIR), **environment}
        self.process: subprocess.Popen | None = None
        self._started, self._deaths, self._start_at = 0.0, 0, 0.0

    def look(self) -> None:
        """Start it when it is due."""
        now = time.monotonic()
        if self.process is not None and (code := self.process.poll()) is not None:
            self._deaths = 1 if now - self._started > STEADY_AFTER_S else self._deaths + 1
            pause_s = RESTART_PAUSES_S[min(self._deaths, len(RESTART_PAUSES_S)) - 1]
            log.error("%s ended with code %d; starting it again in %g s", self.name, code, pause_s)
            self.process, self._start_at = None, now + pause_s
        if self.process is None and now >= self._start_at:
            self._started = now
            # A session of its own: a terminal's Ctrl-C reaches `serve` alone, which then ends the others in good order.
            self.process = subprocess.Popen(self.command, cwd=settings.BASE_DIR, env=self.environment, start_new_session=True)

    def signal(self, number: int) -> None:
        if self.is_running:
            self.process.send_signal(number)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Family:
    """The processes together: started, looked after, ended."""

    def __init__(self, children: list[Child]) -> None:
        self.children = children
        self._signals = 0

    def run(self) -> None:
        """Return after SIGTERM or SIGINT, when every child has ended."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # `nohup` ignores SIGHUP on purpose.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        while not self._signals:
            for child in self.children:
                child.look()
            time.sleep(LOOK_EVERY_S)
        self._end()

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1

    def _end(self) -> None:
        log.info("ending; running jobs are saved first (Ctrl-C again does not wait for that)")
        sent = 0
        deadline = time.monotonic() + END_WITHIN_S
        while any(child.is_running for child in self.children) and time.monotonic() < deadline:
            if sent < min(self._signals, 2):
                sent += 1
                for child in self.children:
                    child.signal(signal.SIGTERM)
            time.sleep(0.05)
        for child in self.children:
            child.signal(signal.SIGKILL)
            if child.process is not None:
                child.process.wait()


def _require_free_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(f"HOST ({host}) and PORT ({port}) cannot be listened on: {error.strerror}. Set PORT to another one.") from None
