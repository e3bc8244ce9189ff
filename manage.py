#!/usr/bin/env python3
"""Django's command line. `./manage.py …` finds the project's own `.venv` when it is started with another Python."""

import importlib.util
import os
import sys
from pathlib import Path


def main() -> None:
    own_python = Path(__file__).resolve().parent / ".venv" / "bin" / "python"
    if importlib.util.find_spec("django") is None and own_python.exists() and os.environ.get("STUDIO_PYTHON") != str(own_python):
        os.environ["STUDIO_PYTHON"] = str(own_python)  # once: a .venv without Django must not start itself for ever
        os.execv(own_python, [str(own_python), *sys.argv])
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "audioldm_site.settings")
    # Before torch is loaded: its threads wait briefly for each other and then sleep (docs/decisions/0007).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
