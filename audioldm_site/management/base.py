"""What all our commands share: one JSON object on request, and faults as words on stderr with exit code 1."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from gpu.config import ConfigError
from gpu.errors import Fault


class StudioCommand(BaseCommand):
    """Subclasses implement `run(**options)` and return what `--json` prints; `show(result)` says it in words.

    Progress and logs go to stderr, so that stdout holds the result alone. A `Fault` ends the command with exit code 1 and
    `code: message` on stderr.
    """

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        self.add_options(parser)

    def add_options(self, parser: CommandParser) -> None:
        """The command's own arguments."""

    def run(self, **options: Any) -> dict[str, Any]:
        raise NotImplementedError

    def show(self, result: dict[str, Any]) -> None:
        for name, value in result.items():
            self.stdout.write(f"{name}: {value}")

    def exit_code(self, result: dict[str, Any]) -> int:
        """1 where a result that can be printed is still a failure."""
        return 0

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            result = self.run(**options)
        except ConfigError as error:
            for message in error.errors.values():
                self.stderr.write(f"{error.code}: {message}")
            sys.exit(1)
        except Fault as fault:
            self.stderr.write(f"{fault.code}: {fault.message}")
            sys.exit(1)
        if options["json"]:
            self.stdout.write(json.dumps(result, ensure_ascii=False, default=str))
        else:
            self.show(result)
        if code := self.exit_code(result):
            sys.exit(code)
