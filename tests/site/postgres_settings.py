"""The tests' settings on PostgreSQL, at DATABASE_URL."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

DATABASES["default"]["TEST"] = {}
