"""The site's settings in a throw-away DATA_DIR, without the built-in starter and demo."""

import atexit
import os
import shutil
import tempfile

_folder = tempfile.mkdtemp(prefix="studio-tests-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
os.environ["DATA_DIR"] = _folder
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from audioldm_site.settings import *  # noqa: E402, F403
from audioldm_site.settings import DATA_DIR, DATABASES  # noqa: E402

BUILTINS = False
# A file, as in production: threads and child processes of a test see the same rows.
DATABASES["default"]["TEST"] = {"NAME": DATA_DIR / "test.sqlite3"}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
