"""The studio as a whole: `manage.py serve`, its web process and its workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import urllib.error
import urllib.request
from http.client import HTTPConnection

import psutil
import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone
from websockets.asyncio.client import connect

from audioldm_site.jobs.models import Status
from tests.faults.conftest import family, is_running, kill, reached, status_is, wait_for
from training_app.models import TrainingEvent, TrainingRun

pytestmark = pytest.mark.faults


class Studio:
    """A running `serve` and its address."""

    def __init__(self, start, *arguments: str, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = start("serve", *arguments, PORT=str(self.port), **environment)

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def wait_until_ready(self) -> Studio:
        wait_for(lambda: self.process.poll() is not None or self.get("/health/ready")[0] == 200)
        assert self.process.poll() is None, self.output
        return self

    @property
    def output(self) -> str:
        return self.process.output.read_text()

    def child(self, words: str, **environment: str) -> int:
        """The process started directly by `serve` whose command line and environment fit."""
        return wait_for(lambda: self._child(words, environment))

    def _child(self, words: str, environment: dict[str, str]) -> int | None:
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if words in " ".join(process.cmdline()) and environment.items() <= process.environ().items():
                    return process.pid
        return None


@pytest.fixture
def studio(start, alice) -> Studio:
    return Studio(start).wait_until_ready()


@pytest.fixture
def web_only(start, alice) -> Studio:
    studio = Studio(start, "--no-workers")
    wait_for(lambda: studio.get("/health/live")[0] == 200)
    return studio


def test_a_stop_ends_everything_in_seconds_and_loses_nothing(studio, make_run, start):
    run = make_run(steps=120)
    wait_for(reached(run, 5))
    everything = family(studio.process.pid)

    kill(studio.process.pid, signal.SIGTERM)
    assert studio.process.wait(timeout=10) == 0

    run.refresh_from_db()
    assert run.status == Status.QUEUED
    assert not any(map(is_running, everything))
    Studio(start).wait_until_ready()
    wait_for(status_is(run, Status.SUCCEEDED))
    assert [event.data["step"] for event in run.events.filter(type="progress")] == list(range(1, 121))


def test_whatever_dies_unasked_is_started_again(studio):
    before = [studio.child("audioldm_site.web"), studio.child("qcluster", Q_CLUSTER_NAME="generation")]

    for pid in before:
        kill(pid)

    wait_for(lambda: studio.get("/health/ready")[0] == 200)
    wait_for(lambda: studio.child("audioldm_site.web") not in before)
    wait_for(lambda: studio.child("qcluster", Q_CLUSTER_NAME="generation") not in before)


def test_nothing_outlives_a_killed_serve(studio, make_run):
    run = make_run(steps=10_000)
    wait_for(reached(run, 5))
    everything = family(studio.process.pid)

    kill(studio.process.pid)

    wait_for(lambda: not any(map(is_running, everything)), seconds=20)
    run.refresh_from_db()
    assert run.status == Status.QUEUED
    assert run.events.filter(type="checkpoint").exists()


def test_readiness_names_the_worker_that_is_missing(web_only):
    status, body = web_only.get("/health/ready")

    assert status == 503
    assert json.loads(body) == {"status": "unavailable", "database": "ok", "disk": "ok", "workers": {"training": None, "generation": None, "datasets": None}}


def test_a_taken_port_is_named(web_only, start):
    second = start("serve", PORT=str(web_only.port))

    assert second.wait(timeout=20) == 1
    assert f"PORT ({web_only.port})" in second.output.read_text()


def test_the_first_account_is_made_through_the_printed_link(start, transactional_db):
    studio = Studio(start, "--no-workers")
    wait_for(lambda: studio.get("/health/live")[0] == 200)
    path = "/setup/" + re.search(r"/setup/([\w-]+)/", studio.output)[1] + "/"
    assert studio.get("/setup/guessed/")[0] == 404
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    page = browser.open(studio.url + path).read().decode()
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page)[1]
    form = f"csrfmiddlewaretoken={token}&username=ada&password1=a-long-enough-one&password2=a-long-enough-one"

    assert browser.open(studio.url + path, form.encode()).url == studio.url + "/"

    user = get_user_model().objects.get()
    assert (user.username, user.is_superuser, user.is_staff) == ("ada", True, True)
    assert studio.get(path)[0] == 404


def test_the_first_account_can_come_from_the_environment(start, transactional_db):
    studio = Studio(start, "--no-workers", ADMIN_USER="boss", ADMIN_PASSWORD="a long enough one")
    wait_for(lambda: studio.get("/health/live")[0] == 200)

    user = get_user_model().objects.get()
    assert user.username == "boss"
    assert user.check_password("a long enough one")
    assert "/setup/" not in studio.output


# --- sockets


def cookie_of(user) -> str:
    client = Client()
    client.force_login(user)
    return f"{settings.SESSION_COOKIE_NAME}={client.session.session_key}"


def add_events(run: TrainingRun, count: int) -> None:
    now = timezone.now()
    data = {"step": 1, "loss": 0.123456, "learning_rate": 1e-4, "filler": "x" * 1000}
    TrainingEvent.objects.bulk_create(
        (TrainingEvent(job=run, seq=seq, attempt=1, type="progress", at=now, data=data) for seq in range(1, count + 1)), batch_size=5000
    )
    TrainingRun.objects.filter(pk=run.pk).update(last_seq=count)


def test_a_very_long_past_reaches_a_slow_reader_without_filling_the_memory(web_only, make_run, alice):
    run = make_run(in_line=False)
    add_events(run, 20_000)
    web = psutil.Process(web_only.child("audioldm_site.web"))
    before, highest = web.memory_info().rss, 0

    async def read() -> list[int]:
        nonlocal highest
        seqs = []
        headers = {"Cookie": cookie, "Origin": web_only.url}
        async with connect(f"ws://127.0.0.1:{web_only.port}/ws/training/{run.pk}/", additional_headers=headers, max_queue=4) as page:
            await asyncio.sleep(2)
            while len(seqs) < 20_000:
                seqs.append(json.loads(await page.recv())["seq"])
                if len(seqs) % 1000 == 0:
                    highest = max(highest, web.memory_info().rss)
        return seqs

    cookie = cookie_of(alice)
    seqs = asyncio.run(read())

    assert seqs == list(range(1, 20_001))
    assert highest - before < 12_000_000  # the past is 24 MB of text


def test_a_page_goes_on_over_a_restart_of_the_web_process(studio, make_run, alice):
    run = make_run(steps=150)
    cookie = cookie_of(alice)

    async def read() -> list[int]:
        seqs, kills = [], 0
        while not seqs or messages[-1]["type"] != "finished":
            after = seqs[-1] if seqs else 0
            try:
                headers = {"Cookie": cookie, "Origin": studio.url}
                async with connect(f"ws://127.0.0.1:{studio.port}/ws/training/{run.pk}/?after={after}", additional_headers=headers) as page:
                    async for text in page:
                        messages.append(json.loads(text))
                        seqs.append(messages[-1]["seq"])
                        if len(seqs) > 20 and not kills:
                            kills += 1
                            kill(studio.child("audioldm_site.web"))
                        if messages[-1]["type"] == "finished":
                            return seqs
            except Exception:
                await asyncio.sleep(0.2)
        return seqs

    messages: list[dict] = []
    seqs = asyncio.run(asyncio.wait_for(read(), 60))

    assert seqs == list(range(1, seqs[-1] + 1))


# --- bodies


def post_multipart(studio: Studio, *, megabytes: int, cookie: str = "") -> tuple[int, int]:
    """POST one large file to the log-in form; the answer's status and how far the server's memory rose, in MB."""
    web = psutil.Process(studio.child("audioldm_site.web"))
    csrf = "a" * 32
    head = b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="sounds.zip"\r\nContent-Type: application/zip\r\n\r\n'
    tail = b"\r\n--frontier--\r\n"
    size = len(head) + megabytes * 2**20 + len(tail)
    before = highest = web.memory_info().rss
    connection = HTTPConnection("127.0.0.1", studio.port, timeout=60)
    connection.putrequest("POST", "/login/")
    for name, value in {
        "Content-Type": "multipart/form-data; boundary=frontier",
        "Content-Length": size,
        "Cookie": "; ".join(filter(None, [cookie, f"{settings.CSRF_COOKIE_NAME}={csrf}"])),
        "X-CSRFToken": csrf,
        "Origin": studio.url,
    }.items():
        connection.putheader(name, str(value))
    connection.endheaders()
    try:
        connection.send(head)
        piece = b"\0" * 2**20
        for _ in range(megabytes):
            connection.send(piece)
            highest = max(highest, web.memory_info().rss)
        connection.send(tail)
    except (BrokenPipeError, ConnectionResetError):
        pass
    try:
        while True:
            try:
                connection.sock.settimeout(0.05)
                connection.sock.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                highest = max(highest, web.memory_info().rss)
        connection.sock.settimeout(30)
        status = connection.getresponse().status
    except ConnectionError:
        status = 413
    return status, (highest - before) // 2**20


def test_a_large_upload_stays_out_of_memory(web_only, alice):
    status, megabytes = post_multipart(web_only, megabytes=300, cookie=cookie_of(alice))

    assert status == 200  # the form, not logged in by a file
    assert megabytes < 60


def test_a_stranger_cannot_send_much(web_only):
    status, megabytes = post_multipart(web_only, megabytes=300)

    assert status == 413
    assert megabytes < 30


def test_a_small_form_of_a_stranger_is_read(web_only):
    status, _ = post_multipart(web_only, megabytes=1)

    assert status == 200
