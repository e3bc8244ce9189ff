"""Settings that are allowed and dangerous, as Django system checks: shown at every start."""

from __future__ import annotations

import os

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from audioldm_site.environment import LOCAL_HOSTS, is_on_network

MIN_SECRET, MIN_PASSWORD = 32, 10


@register(Tags.security)
def public_address(app_configs, **kwargs) -> list[CheckMessage]:
    """What must not be left as it is once others can reach the site."""
    environment = settings.ENVIRONMENT
    found: list[CheckMessage] = []
    if environment.host in LOCAL_HOSTS:
        return found
    if settings.DEBUG:
        found.append(Warning(f"DEBUG is on and HOST is {environment.host}: every error shows the program's insides.", hint="Unset DEBUG.", id="studio.W001"))
    if len(settings.SECRET_KEY) < MIN_SECRET:
        hint = "Unset SECRET_KEY: a good one is made and kept in DATA_DIR."
        found.append(Warning(f"SECRET_KEY has {len(settings.SECRET_KEY)} characters; whoever guesses it can run programs here.", hint=hint, id="studio.W002"))
    if environment.admin_password and len(environment.admin_password) < MIN_PASSWORD:
        found.append(Warning(f"ADMIN_PASSWORD is shorter than {MIN_PASSWORD} characters.", hint="Choose a longer one.", id="studio.W003"))
    return found


@register(Tags.files)
def data_dir(app_configs, **kwargs) -> list[CheckMessage]:
    folder = settings.DATA_DIR
    if not os.access(folder, os.W_OK | os.X_OK):
        return [Error(f"DATA_DIR ({folder}) cannot be written to.", hint="Give it to the user that runs this, or set DATA_DIR.", id="studio.E001")]
    if is_on_network(folder) and not settings.ENVIRONMENT.database_url:
        message = f"DATA_DIR ({folder}) is a network file system: SQLite is slower there, and two machines must not share it."
        return [Warning(message, hint="For several machines set DATABASE_URL to a PostgreSQL.", id="studio.W004")]
    return []
