from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.urls import reverse

from audioldm_site import first_run
from audioldm_site.environment import Environment

pytestmark = pytest.mark.django_db
ADA = {"username": "ada", "password1": "a long enough one", "password2": "a long enough one"}


@pytest.fixture
def link() -> str:
    return reverse("setup", args=[first_run.new_setup_token()])


def test_the_link_makes_the_first_account_and_logs_in(client, link):
    assert client.get(link).status_code == 200

    answer = client.post(link, ADA)

    user = get_user_model().objects.get()
    assert (answer.status_code, user.username, user.is_superuser) == (302, "ada", True)
    assert client.session["_auth_user_id"] == str(user.pk)


def test_the_link_works_once(client, link):
    client.post(link, ADA)

    assert client.get(link).status_code == 404
    assert client.post(link, {**ADA, "username": "eve"}).status_code == 404
    assert get_user_model().objects.count() == 1


def test_a_guessed_link_leads_nowhere(client, link):
    assert client.get(reverse("setup", args=["guessed"])).status_code == 404


def test_a_new_start_makes_the_old_link_useless(client, link):
    first_run.new_setup_token()

    assert client.get(link).status_code == 404


def test_a_weak_password_is_refused(client, link):
    answer = client.post(link, {"username": "ada", "password1": "1234567890", "password2": "1234567890"})

    assert answer.status_code == 200
    assert "numeric" in answer.content.decode()
    assert not get_user_model().objects.exists()


def test_the_token_itself_is_kept_nowhere(settings):
    token = first_run.new_setup_token()
    path = settings.DATA_DIR / first_run.TOKEN_FILE

    assert token not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_there_is_no_link_once_there_is_an_account(alice, settings):
    assert first_run.new_setup_token() is None
    assert not (settings.DATA_DIR / first_run.TOKEN_FILE).exists()


def test_the_environment_can_name_the_first_account(settings):
    settings.ENVIRONMENT = Environment.read({"ADMIN_USER": "boss", "ADMIN_PASSWORD": "a long enough one"})

    assert first_run.create_admin_from_environment()
    assert not first_run.create_admin_from_environment()

    assert get_user_model().objects.get().check_password("a long enough one")


def test_health_needs_no_login(client):
    assert client.get("/health/live").json() == {"status": "ok"}
    assert client.get("/health/ready").status_code == 503
