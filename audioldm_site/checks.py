"""Settings that are allowed and dangerous, as Django system checks: shown at every start."""

from __future__ import annotations

import os

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ValidationError

from audioldm_site.environment import LOCAL_HOSTS, is_on_network

MIN_SECRET, MIN_SECRET_CHARACTERS = 50, 5


@register(Tags.security)
def public_address(app_configs, **kwargs) -> list[CheckMessage]:
    """What must not be so once others can reach the site: errors, with which it does not start."""
    environment = settings.ENVIRONMENT
    if environment.host in LOCAL_HOSTS:
        return []
    found: list[CheckMessage] = []
    if settings.DEBUG:
        found.append(Error(f"DEBUG is on and HOST is {environment.host}: every error shows the program's insides.", hint="Unset DEBUG.", id="studio.E002"))
    if is_weak(settings.SECRET_KEY):
        hint = "Unset SECRET_KEY: a good one is made and kept in DATA_DIR."
        message = f"SECRET_KEY ({len(settings.SECRET_KEY)} characters) can be guessed, and whoever guesses it can run programs here."
        found.append(Error(message, hint=hint, id="studio.E003"))
    if environment.admin_password and (refusal := _refusal(environment.admin_password)):
        found.append(Error(f"ADMIN_PASSWORD is too weak: {refusal}", hint="Choose a longer one, or unset it: then a link for the first account is printed.", id="studio.E004"))
    return found


def is_weak(secret: str) -> bool:
    """As Django's own check (security.W009) judges a key, and examples that were left as they are."""
    example = secret.startswith("django-insecure-") or "change" in secret.lower()
    return example or len(secret) < MIN_SECRET or len(set(secret)) < MIN_SECRET_CHARACTERS


def _refusal(password: str) -> str:
    """Why a password is not taken; "" for one that is."""
    try:
        validate_password(password)
    except ValidationError as error:
        return " ".join(error.messages)
    return ""


@register(Tags.files)
def data_dir(app_configs, **kwargs) -> list[CheckMessage]:
    folder = settings.DATA_DIR
    if not os.access(folder, os.W_OK | os.X_OK):
        return [Error(f"DATA_DIR ({folder}) cannot be written to.", hint="Give it to the user that runs this, or set DATA_DIR.", id="studio.E001")]
    if is_on_network(folder) and not settings.ENVIRONMENT.database_url:
        message = f"DATA_DIR ({folder}) is a network file system: SQLite is slower there, and two machines must not share it."
        return [Warning(message, hint="For several machines set DATABASE_URL to a PostgreSQL.", id="studio.W004")]
    return []
