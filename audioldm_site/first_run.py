"""The first account: from the environment, or made by whoever opens the link that the terminal printed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from django import forms
from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.forms import UserCreationForm
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache

TOKEN_FILE = "setup_token"
"""Holds the SHA-256 of the link's token, never the token."""


def create_admin_from_environment() -> bool:
    """Make the first account when there is none and ADMIN_PASSWORD is set. False when nothing was made."""
    User = get_user_model()
    environment = settings.ENVIRONMENT
    if not environment.admin_password or User.objects.exists():
        return False
    User.objects.create_superuser(environment.admin_user, password=environment.admin_password)
    return True


def new_setup_token() -> str | None:
    """A fresh one-time token; None once there is an account. Links printed earlier stop working."""
    if get_user_model().objects.exists():
        _token_file().unlink(missing_ok=True)
        return None
    token = secrets.token_urlsafe(24)
    path = _token_file()
    path.touch(mode=0o600)
    path.write_text(_digest(token))
    return token


class FirstAccountForm(UserCreationForm):
    """Name and password of whoever will run the studio."""

    class Meta:
        model = get_user_model()
        fields = ("username",)
        labels = {"username": "Name"}
        help_texts = {"username": "Letters, digits and @ . + - _"}
        widgets = {"username": forms.TextInput(attrs={"autocomplete": "username", "autofocus": True})}


@login_not_required
@never_cache
def setup(request: HttpRequest, token: str) -> HttpResponse:
    """Choose the first name and password. The link works until an account exists."""
    if not _is_valid(token):
        raise Http404("this set-up link was used, or belongs to an earlier start")
    form = FirstAccountForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        user = _create_first(form, token)
        login(request, user)
        return redirect("home")
    return render(request, "registration/setup.html", {"form": form})


@transaction.atomic
def _create_first(form: FirstAccountForm, token: str):
    user = form.save(commit=False)
    user.is_staff = user.is_superuser = True
    user.save()
    # The one who removes the file is the first; a second form that was sent at the same moment is rolled back.
    try:
        _token_file().unlink()
    except FileNotFoundError:
        raise Http404("this set-up link was used") from None
    return user


def _is_valid(token: str) -> bool:
    try:
        expected = _token_file().read_text()
    except FileNotFoundError:
        return False
    return hmac.compare_digest(expected, _digest(token)) and not get_user_model().objects.exists()


def _token_file() -> Path:
    return settings.DATA_DIR / TOKEN_FILE


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
