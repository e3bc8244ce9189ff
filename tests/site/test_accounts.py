"""Logging in, slowly for those who guess; one's own account; sharing in pages."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.contrib.auth import authenticate
from django.core.management import call_command
from django.test import Client, RequestFactory
from django.utils import timezone

from audioldm_site.accounts import throttle
from audioldm_site.accounts.address import client_address, is_this_machine
from audioldm_site.accounts.models import ApiToken, LoginAttempts
from audioldm_site.environment import Environment
from audioldm_site.jobs.models import Status

pytestmark = pytest.mark.django_db
PASSWORD = "alice's password"


def attempt(client: Client, password: str = "wrong", username: str = "alice", **headers: str):
    return client.post("/login/", {"username": username, "password": password}, headers=headers)


def guess(client: Client, times: int = throttle.FREE_ATTEMPTS, **headers: str) -> None:
    for _ in range(times):
        attempt(client, **headers)


# --- throttling


@pytest.mark.parametrize(("count", "seconds"), [(1, 0), (4, 0), (5, 5), (6, 10), (7, 20), (12, 640), (13, 900), (1000, 900)])
def test_each_attempt_after_the_fifth_waits_twice_as_long(count, seconds):
    assert throttle.wait_after(count) == seconds


def test_after_five_wrong_passwords_even_the_right_one_waits(client, alice):
    guess(client)

    answer = attempt(client, PASSWORD)

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
    assert "Too many attempts. Try again in 5 seconds." in answer.content.decode()
    assert "_auth_user_id" not in client.session


def test_when_the_wait_is_over_the_right_one_opens_and_all_is_forgotten(client, alice):
    guess(client)
    LoginAttempts.objects.update(blocked_until=timezone.now() - timedelta(seconds=1))

    assert attempt(client, PASSWORD).status_code == 302
    assert not LoginAttempts.objects.exists()


def test_an_attempt_is_counted_before_its_password_is_looked_at(rf, alice):
    request = rf.post("/login/")
    assert [throttle.count_attempt(request, "alice") > 0 for _ in range(6)] == [False] * 5 + [True]


def test_nobody_locks_alice_out_from_elsewhere(alice):
    guess(Client(REMOTE_ADDR="203.0.113.9"))

    assert attempt(Client(REMOTE_ADDR="198.51.100.7"), PASSWORD).status_code == 302


def test_who_logged_in_before_comes_in_although_the_shared_address_is_throttled(alice):
    known, attacker = Client(REMOTE_ADDR="10.0.0.1"), Client(REMOTE_ADDR="10.0.0.1")
    attempt(known, PASSWORD)
    known.post("/logout/")

    guess(attacker)

    assert attempt(attacker, PASSWORD).status_code == 429
    assert attempt(known, PASSWORD).status_code == 302


def test_a_known_browser_is_throttled_by_itself(alice):
    known = Client()
    attempt(known, PASSWORD)
    known.post("/logout/")

    guess(known)

    assert attempt(known, PASSWORD).status_code == 429


def test_anothers_cookie_does_not_make_one_known(alice, bob):
    client = Client()
    attempt(client, "bob's password", username="bob")
    client.post("/logout/")
    guess(client)

    assert attempt(client, PASSWORD).status_code == 429
    assert attempt(Client(), PASSWORD).status_code == 429  # the same address


def test_writing_the_name_in_capitals_is_no_new_account(client, alice):
    for name in ("alice", "Alice", "ALICE ", "alicE", "aLice"):
        attempt(client, username=name)

    assert attempt(client, PASSWORD).status_code == 429


def test_a_made_up_forwarded_address_is_no_new_address(alice, settings):
    settings.ENVIRONMENT = Environment.read({"BEHIND_HTTPS_PROXY": "true"})
    for number in range(5):
        attempt(Client(), **{"X-Forwarded-For": f"1.2.3.{number}, 203.0.113.9"})

    assert attempt(Client(), PASSWORD, **{"X-Forwarded-For": "9.9.9.9, 203.0.113.9"}).status_code == 429
    assert attempt(Client(), PASSWORD, **{"X-Forwarded-For": "9.9.9.9, 203.0.113.10"}).status_code == 302


def test_commands_that_log_in_are_throttled_too(alice):
    assert not [user for user in (authenticate(username="alice", password="wrong") for _ in range(5)) if user]
    assert authenticate(username="alice", password=PASSWORD) is None


def test_rows_of_made_up_names_are_swept(client, monkeypatch):
    monkeypatch.setattr(throttle, "MAX_ROWS", 3)
    monkeypatch.setattr(throttle, "SWEEP_ROWS", 2)
    for number in range(10):
        attempt(client, username=f"nobody{number}")

    assert LoginAttempts.objects.count() <= 3


def test_the_admin_has_no_door_of_its_own(client):
    assert client.get("/admin/login/?next=/admin/").headers["Location"] == "/login/?next=/admin/"


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        ("0", "1.2.3.4", "10.0.0.1"),
        ("1", "1.2.3.4", "1.2.3.4"),
        ("1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),
        ("2", "6.6.6.6, 1.2.3.4, 5.6.7.8", "1.2.3.4"),
        ("2", "1.2.3.4", "10.0.0.1"),
        ("1", "nonsense", "10.0.0.1"),
        ("1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("1", "1.2.3.4:4711", "1.2.3.4"),
    ],
)
def test_the_address_is_the_one_that_the_outermost_trusted_proxy_saw(settings, proxies, forwarded, address):
    settings.ENVIRONMENT = Environment.read({"TRUSTED_PROXIES": proxies})
    request = RequestFactory(REMOTE_ADDR="10.0.0.1").get("/", headers={"X-Forwarded-For": forwarded})

    assert client_address(request) == address


def test_what_came_through_a_proxy_is_not_this_machine():
    factory = RequestFactory(REMOTE_ADDR="127.0.0.1")
    assert is_this_machine(factory.get("/"))
    assert not is_this_machine(factory.get("/", headers={"X-Forwarded-For": "127.0.0.1"}))
    assert not is_this_machine(RequestFactory(REMOTE_ADDR="10.0.0.1").get("/"))


# --- one's own page


def test_a_token_is_made_shown_once_and_revoked(alice_client, alice):
    made = alice_client.post("/account/tokens/", {"name": "laptop", "scope": "write", "days": "30"})

    text = re.search(r"studio_[\w-]{43}", made.content.decode()).group()
    assert "no-store" in made.headers["Cache-Control"]
    assert text not in alice_client.get("/account/").content.decode()

    alice_client.post(f"/account/tokens/{alice.api_tokens.get().pk}/revoke/")
    assert "laptop" not in alice_client.get("/account/").content.decode().split("</nav>")[1].replace("laptop is revoked", "")
    assert alice.api_tokens.get().revoked_at


def test_bob_does_not_revoke_alices_token(client, alice, bob):
    token = ApiToken.objects.create(user=alice, name="laptop", prefix="studio_abcde", digest="0" * 64)
    client.force_login(bob)

    assert client.post(f"/account/tokens/{token.pk}/revoke/").status_code == 404


def test_a_token_without_a_name_is_refused_on_the_page(alice_client):
    answer = alice_client.post("/account/tokens/", {"name": " ", "scope": "write", "days": "30"})

    assert answer.status_code == 422
    assert not ApiToken.objects.exists()


def test_a_new_password_must_be_strong_and_ends_other_sessions(alice_client, alice):
    other = Client()
    other.force_login(alice)
    weak = {"old_password": PASSWORD, "new_password1": "short1234", "new_password2": "short1234"}
    strong = {"old_password": PASSWORD, "new_password1": "seven grey herons", "new_password2": "seven grey herons"}

    assert "at least 12 characters" in alice_client.post("/account/password/", weak).content.decode()
    assert alice_client.post("/account/password/", strong).status_code == 302
    assert other.get("/").status_code == 302 and alice_client.get("/").status_code == 200


def test_tokens_are_made_listed_and_revoked_in_the_terminal(alice, capsys):
    call_command("api_token", "create", "alice", "laptop", "--scope", "write")
    text = capsys.readouterr().out
    assert re.search(r"studio_[\w-]{43}", text)

    call_command("api_token", "list")
    listed = capsys.readouterr().out
    assert "alice  write  laptop" in listed and text.split()[-1] not in listed

    call_command("api_token", "revoke", ApiToken.objects.get().prefix)
    assert not ApiToken.objects.valid().exists()


# --- sharing


@pytest.fixture
def bobs_client(bob) -> Client:
    client = Client()
    client.force_login(bob)
    return client


def test_a_shared_run_is_seen_by_the_team_and_stopped_by_its_owner_alone(alice_client, bobs_client, run):
    assert bobs_client.get(f"/training/{run.pk}/").status_code == 404

    alice_client.post(f"/account/share/{run.pk}/", {"next": f"/training/{run.pk}/"})

    page = bobs_client.get(f"/training/{run.pk}/")
    assert page.status_code == 200
    assert "Take out of the line" not in page.content.decode()
    assert bobs_client.post(f"/training/{run.pk}/stop/").status_code == 403
    run.refresh_from_db()
    assert run.status == Status.QUEUED

    alice_client.post(f"/account/share/{run.pk}/", {"share": "off"})
    assert bobs_client.get(f"/training/{run.pk}/").status_code == 404


def test_every_command_on_anothers_shared_things_is_refused(bobs_client, alice, run, dataset):
    from audioldm_site.accounts import sharing

    sharing.set_shares_everything(alice, everything=True)
    clip = dataset.clips.first()
    addresses = [f"/training/{run.pk}/{name}/" for name in ("stop", "save", "sample", "resume", "continue", "edit", "archive")]
    addresses += [f"/datasets/{dataset.pk}/{name}/" for name in ("edit", "resplit", "delete", f"clips/{clip.pk}")]

    assert {address: bobs_client.post(address).status_code for address in addresses} == dict.fromkeys(addresses, 403)
    assert bobs_client.get(f"/datasets/{dataset.pk}/clips/{clip.pk}/audio/").status_code == 200


def test_a_stranger_shares_nothing_of_alices(bobs_client, run):
    assert bobs_client.post(f"/account/share/{run.pk}/").status_code == 404


def test_a_shared_runs_checkpoints_are_seen_too(bobs_client, run, base_checkpoint):
    from audioldm_site.accounts import sharing
    from training_app.models import Checkpoint

    made = Checkpoint.objects.create(owner=run.owner, name="bells, step 1", family="audioldm2", format="run", origin="run", run=run, base=base_checkpoint, path="runs/x/checkpoints/y")
    assert bobs_client.get(f"/checkpoints/{made.pk}/").status_code == 404

    sharing.share(run)

    assert bobs_client.get(f"/checkpoints/{made.pk}/").status_code == 200
