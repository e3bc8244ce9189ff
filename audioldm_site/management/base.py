"""What all our commands share: one JSON object on request, and faults as words on stderr with exit code 1."""

from __future__ import annotations

import errno
import json
import sys
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandParser

from audioldm_site.logs import beside_bars
from gpu.config import ConfigError
from gpu.errors import Fault


class StudioCommand(BaseCommand):
    """Subclasses implement `run(**options)` and return what `--json` prints; `describe(result)` puts it into words.

    Progress and logs go to stderr, so that stdout holds the result alone. A `Fault` ends the command with exit code 1 and
    `code: message` on stderr.
    """

    requires_system_checks: list[str] = []
    result: dict[str, Any]
    """What `run` returned, for a subclass that chooses its exit code by it."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    def run(self, **options: Any) -> dict[str, Any]:
        raise NotImplementedError

    def describe(self, result: dict[str, Any]) -> str:
        """The result for a person."""
        return "\n".join(f"{name}: {value}" for name, value in result.items())

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            _require_text(options)
            with beside_bars():
                result = self.run(**options)
        except ConfigError as error:
            for message in error.errors.values():
                self.stderr.write(f"{error.code}: {message}")
            sys.exit(1)
        except Fault as fault:
            self.stderr.write(f"{fault.code}: {fault.message}")
            sys.exit(1)
        except ValidationError as error:
            for message in error.messages:
                self.stderr.write(f"config.invalid: {message}")
            sys.exit(1)
        except OSError as error:
            code = "disk.full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "file.unusable"
            self.stderr.write(f"{code}: {error}")
            sys.exit(1)
        self.result = result
        if options["json"]:
            self.stdout.write(json.dumps(result, ensure_ascii=False, default=str))
        else:
            self.stdout.write(self.describe(result))


def _require_text(options: dict[str, Any]) -> None:
    """Bytes that are not UTF-8 reach a program as half characters, which neither a database nor a file of JSON can hold.

    Raises:
        Fault: an argument has some.
    """
    for name, value in options.items():
        for text in value if isinstance(value, list) else [value]:
            if any("\ud800" <= letter <= "\udfff" for letter in str(text)):
                raise Fault("config.invalid", f"{name} ({str(text)!a}) is not UTF-8")
