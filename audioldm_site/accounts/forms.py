"""What people send about their account."""

from __future__ import annotations

import math

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError

from audioldm_site.accounts import throttle
from audioldm_site.accounts.models import ApiToken


class LoginForm(AuthenticationForm):
    """Name and password; says how long to wait after too many attempts."""

    wait_s = 0.0

    def clean(self) -> dict:
        username = self.cleaned_data.get("username")
        if username:
            self.wait_s = throttle.seconds_left(self.request, username)
        if self.wait_s > 0:
            raise ValidationError(f"Too many attempts. Try again in {in_words(self.wait_s)}.", code="throttled")
        return super().clean()


class TokenForm(forms.Form):
    name = forms.CharField(label="What for", max_length=80, help_text="The program or the person that will use it.")
    scope = forms.ChoiceField(label="It may", choices=ApiToken.Scope.choices)
    days = forms.TypedChoiceField(
        label="Works for", coerce=int, empty_value=None, required=False, initial=90,
        choices=[(30, "30 days"), (90, "90 days"), (365, "a year"), ("", "as long as nobody revokes it")],
    )  # fmt: skip


def in_words(seconds: float) -> str:
    """A wait that is not over before it is over: 5 seconds, 2 minutes."""
    if seconds <= 90:
        whole = max(1, math.ceil(seconds))
        return f"{whole} second{'' if whole == 1 else 's'}"
    return f"{math.ceil(seconds / 60)} minutes"
