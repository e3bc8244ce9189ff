from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from django.urls import reverse

from audioldm_site.checks import is_weak
from audioldm_site.environment import Environment

ROOT = Path(__file__).resolve().parents[2]


def test_pages_allow_no_script_from_elsewhere_and_none_inline(alice_client):
    policy = alice_client.get(reverse("home")).headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-inline" not in policy


@pytest.mark.django_db
def test_the_policy_stands_on_the_login_page_and_on_errors_too(client):
    for address in ("/login/", "/nowhere/"):
        assert "Content-Security-Policy" in client.get(address).headers


@pytest.mark.django_db
def test_every_answer_forbids_embedding_sniffing_and_devices(client):
    headers = client.get("/login/").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "microphone=()" in headers["Permissions-Policy"]


def manage(tmp_path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command with the real settings in an environment of its own."""
    env = {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "audioldm_site.settings", **env}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True)


def documented(heading: str) -> dict[str, str]:
    """The environment that the deployment page prints below a heading."""
    section = (ROOT / "docs" / "deployment.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip().split("=", 1) for line in section.splitlines() if re.fullmatch(r"\s*[A-Z_]+=.+", line)]
    return {name: value.replace("<at least 12 characters>", secrets.token_urlsafe(12)) for name, value in lines}


@pytest.mark.parametrize("heading", ["RunPod", "Behind a proxy of your own"])
def test_the_deployment_check_is_clean_with_the_environment_that_the_page_prints(tmp_path, heading):
    environment = documented(heading)
    assert environment["HOST"] == "0.0.0.0"

    done = manage(tmp_path, "manage.py", "check", "--deploy", "--fail-level", "WARNING", **environment)

    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


@pytest.mark.parametrize("command", [["manage.py", "serve"], ["-m", "audioldm_site.web"]])
def test_nothing_listens_on_a_public_address_with_debug_or_a_weak_secret(tmp_path, command):
    for harm, code in (({"SECRET_KEY": "django-insecure-" + "x1y2z" * 10}, "studio.E003"), ({"DEBUG": "true"}, "studio.E002"), ({"ADMIN_PASSWORD": "password"}, "studio.E004")):
        done = manage(tmp_path, *command, HOST="0.0.0.0", PORT="1", **harm)

        assert done.returncode == 1 and code in done.stderr, (harm, done.stderr[-500:])
        assert not any(value in done.stderr for name, value in harm.items() if name == "SECRET_KEY")


@pytest.mark.parametrize(
    ("secret", "weak"),
    [("guess", True), ("a" * 60, True), ("change-me-" + "abcdefgh" * 6, True), (secrets.token_urlsafe(50), False)],
    ids=["a word", "one letter", "a pattern", "made by chance"],
)
def test_a_key_that_can_be_guessed_is_told(secret, weak):
    assert is_weak(secret) == weak


def test_a_pods_own_address_is_trusted_by_itself():
    assert Environment.read({"RUNPOD_POD_ID": "abc123", "PORT": "8000"}).trusted_origins == ["https://abc123-8000.proxy.runpod.net"]
    assert Environment.read({"RUNPOD_POD_ID": "../x"}).trusted_origins == []
    assert Environment.read({"RUNPOD_POD_ID": "abc123", "CSRF_TRUSTED_ORIGINS": "https://own.example"}).trusted_origins == ["https://own.example"]


def test_behind_https_one_proxy_is_trusted_and_else_none():
    assert Environment.read({}).trusted_proxies == 0
    assert Environment.read({"BEHIND_HTTPS_PROXY": "true"}).trusted_proxies == 1
