import pytest
from django.urls import reverse


def test_pages_allow_no_script_from_elsewhere_and_none_inline(alice_client):
    policy = alice_client.get(reverse("home")).headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-inline" not in policy


@pytest.mark.django_db
def test_the_policy_stands_on_the_login_page_and_on_errors_too(client):
    for address in ("/login/", "/nowhere/"):
        assert "Content-Security-Policy" in client.get(address).headers
