"""For the processes that the fault tests start: the test's own database and folder, and the trainer that trains nothing."""

import os

from audioldm_site.settings import *  # noqa: F403
from audioldm_site.settings import DATABASES, INSTALLED_APPS

BUILTINS = False
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if not os.environ.get("DATABASE_URL"):
    DATABASES["default"]["NAME"] = os.environ["TEST_DATABASE"]
if os.environ.get("FAKE_TRAINER", "1") == "1":
    INSTALLED_APPS = [*INSTALLED_APPS, "tests.faults"]
elif os.environ["FAKE_TRAINER"] == "harness":
    INSTALLED_APPS = [*INSTALLED_APPS, "tests.faults.apps.HarnessConfig"]
