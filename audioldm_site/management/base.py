"""What the site's commands share: how a result is printed and how a failure ends."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from gpu.errors import Fault


class StudioCommand(BaseCommand):
    """A command for people and for programs.

    A subclass does its work in `run` and returns plain JSON values; `describe` puts them into words. With `--json` the result alone is
    printed. An expected failure ends with exit code 1 and `code: words` on stderr.
    """

    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print the result as JSON and nothing else.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            result = self.run(**options)
        except Fault as fault:
            self.stderr.write(f"{fault.code}: {fault.message}", self.style.ERROR)
            sys.exit(1)
        self.stdout.write(json.dumps(result, ensure_ascii=False, default=str) if options["json"] else self.describe(result))

    def run(self, **options: Any) -> Any:
        """Do the work and return what happened. Raises Fault for what can be expected to go wrong."""
        raise NotImplementedError

    def describe(self, result: Any) -> str:
        """The result for a person, without a final newline."""
        raise NotImplementedError
