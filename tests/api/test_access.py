"""Who gets in, with what, and what they are told otherwise."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from django.utils import timezone

from audioldm_site.accounts import sharing, tokens
from audioldm_site.accounts.models import ApiToken
from audioldm_site.api.auth import Rate
from gpu.errors import Fault
from tests.api.conftest import Caller

pytestmark = pytest.mark.django_db


def test_a_token_says_whose_it_is(api):
    assert api("get", "me").json() == {"name": "alice", "is_staff": False, "shares_everything": False}


def test_the_clear_text_is_kept_nowhere(alice):
    token, text = tokens.create_token(user=alice, name="laptop")

    assert token.digest == hashlib.sha256(text.encode()).hexdigest()
    assert text.startswith(token.prefix) and len(text) == len("studio_") + 43
    assert text not in str([row for row in ApiToken.objects.values()])


@pytest.mark.parametrize("text", ["", "studio_", "studio_" + "x" * 43, "x" * 50, "studio_" + "é" * 43])
def test_a_made_up_token_opens_nothing(text, db):
    answer = Caller("").client.get("/api/v1/me", headers={"Authorization": f"Bearer {text}"})

    assert (answer.status_code, answer.json()["code"]) == (401, "api.token_refused")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_revoked_token_opens_nothing(alice):
    token, text = tokens.create_token(user=alice, name="laptop")
    assert tokens.find_token(text) == token

    assert tokens.revoke(token)

    assert not tokens.revoke(token)
    assert tokens.find_token(text) is None


def test_an_expired_token_opens_nothing(alice):
    token, text = tokens.create_token(user=alice, name="laptop", days=1)
    ApiToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))

    assert tokens.find_token(text) is None
    token.refresh_from_db()
    assert token.is_expired


def test_the_token_of_a_closed_account_opens_nothing(alice):
    _, text = tokens.create_token(user=alice, name="laptop")
    alice.is_active = False
    alice.save()

    assert tokens.find_token(text) is None


def test_the_last_use_is_noted_once_a_minute(alice, django_assert_num_queries):
    token, text = tokens.create_token(user=alice, name="laptop")

    tokens.find_token(text)
    token.refresh_from_db()
    assert token.last_used_at
    with django_assert_num_queries(1):
        tokens.find_token(text)


@pytest.mark.parametrize("values", [{"name": " "}, {"name": "x" * 81}, {"name": "x", "scope": "all"}, {"name": "x", "days": 0}, {"name": "x", "days": 4000}])
def test_a_token_out_of_bounds_is_refused(alice, values):
    with pytest.raises(Fault) as caught:
        tokens.create_token(user=alice, **values)

    assert caught.value.code == "token.invalid"


def test_a_token_that_may_look_changes_nothing(caller_for, alice, dataset):
    looking = caller_for(alice, scope=ApiToken.Scope.READ)

    answer = looking("patch", f"datasets/{dataset.pk}", {"notes": "x"})

    assert (answer.status_code, answer.json()["code"]) == (403, "api.read_only")
    assert looking("get", f"datasets/{dataset.pk}").json()["notes"] == ""


def test_a_session_may_look_and_needs_the_csrf_token_to_change(alice, dataset):
    browser = Caller("")
    browser.client.force_login(alice)

    assert browser("get", "me").json()["name"] == "alice"
    answer = browser("patch", f"datasets/{dataset.pk}", {"notes": "x"})
    assert (answer.status_code, answer.json()["code"]) == (403, "api.csrf")

    browser.client.get("/account/")
    token = browser.client.cookies["csrftoken"].value
    changed = browser.client.patch(f"/api/v1/datasets/{dataset.pk}", '{"notes": "x"}', content_type="application/json", headers={"X-CSRFToken": token})
    assert changed.json()["notes"] == "x"


def test_a_wrong_token_is_not_made_good_by_a_session(alice):
    browser = Caller("studio_" + "x" * 43)
    browser.client.force_login(alice)

    assert browser("get", "me").status_code == 401


def test_a_token_opens_the_api_and_no_page(api):
    assert api("get", "/training/").headers["Location"].startswith("/login/")


def test_nobody_in_particular_is_asked_who_they_are(db):
    answer = Caller("")("get", "runs")

    assert (answer.status_code, answer.headers["Content-Type"], answer.json()["code"]) == (401, "application/problem+json", "api.not_logged_in")


def test_too_many_requests_are_told_how_long_to_wait(api, settings):
    settings.ENVIRONMENT = type(settings.ENVIRONMENT).read({"API_RATE_PER_MINUTE": "2"})

    statuses = [api("get", "me").status_code for _ in range(3)]

    assert statuses == [200, 200, 429]
    assert 1 <= int(api("get", "me").headers["Retry-After"]) <= 30


def test_a_bucket_refills_evenly_and_each_caller_has_one():
    rate = Rate()

    assert [rate.wait_s("a", per_minute=60, now=0.0) for _ in range(60)] == [0.0] * 60
    assert rate.wait_s("a", per_minute=60, now=0.0) == 1.0
    assert rate.wait_s("b", per_minute=60, now=0.0) == 0.0
    assert rate.wait_s("a", per_minute=60, now=1.0) == 0.0


def test_charlie_finds_nothing_of_alices(charlies_api, run, generation, dataset, run_checkpoint):
    for address in (f"runs/{run.pk}", f"runs/{run.pk}/events", f"generations/{generation.pk}", f"datasets/{dataset.pk}/clips", f"checkpoints/{run_checkpoint.pk}"):
        assert charlies_api("get", address).status_code == 404
    for kind in ("runs", "generations", "datasets"):
        assert charlies_api("get", kind).json()["count"] == 0


def test_charlie_may_look_at_what_alice_shares_and_not_change_it(charlies_api, api, run):
    assert api("put", f"shares/{run.pk}").json() == {"id": str(run.pk), "shared": True}

    assert charlies_api("get", f"runs/{run.pk}").json()["owner"] == "alice"
    answer = charlies_api("post", f"runs/{run.pk}/stop", {})
    assert (answer.status_code, answer.json()["code"]) == (403, "api.not_yours")
    assert charlies_api("delete", f"shares/{run.pk}").status_code == 403

    api("delete", f"shares/{run.pk}")
    assert charlies_api("get", f"runs/{run.pk}").status_code == 404


def test_everything_of_alice_can_be_shared(charlies_api, alice, run, dataset):
    sharing.set_shares_everything(alice, everything=True)
    assert charlies_api("get", f"runs/{run.pk}").status_code == 200
    assert charlies_api("patch", f"datasets/{dataset.pk}", {"notes": "x"}).status_code == 403

    sharing.set_shares_everything(alice, everything=False)
    assert charlies_api("get", f"runs/{run.pk}").status_code == 404


def test_staff_see_and_change_everything(caller_for, root, run):
    assert caller_for(root)("patch", f"runs/{run.pk}", {"notes": "x"}).json()["notes"] == "x"
