"""One screen on the state of everything: `manage.py doctor [--json]`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from django.core.management.base import BaseCommand, CommandParser

from audioldm_site.doctor import FAILING, WARNING, Finding, findings


class Command(BaseCommand):
    help = "Look at versions, DATA_DIR, the database, workers, the device and the settings. Exit code 1 when something fails."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    def handle(self, *, json: bool, **options) -> None:
        found = findings()
        failing = [finding for finding in found if finding.state == FAILING]
        if json:
            self.stdout.write(_as_json(found))
        else:
            width = max(len(finding.name) for finding in found)
            for finding in found:
                mark = {FAILING: self.style.ERROR("failing"), WARNING: self.style.WARNING("warning")}.get(finding.state, self.style.SUCCESS("ok     "))
                self.stdout.write(f"{mark}  {finding.name:<{width}}  {finding.value}")
                if finding.state == WARNING:
                    self.stdout.write(f"         {'':<{width}}  {finding.remedy}")
        for finding in failing:
            self.stderr.write(f"{finding.code}: {finding.name}: {finding.value}. {finding.remedy}")
        if failing:
            sys.exit(1)


def _as_json(found: list[Finding]) -> str:
    return json.dumps({"ok": all(finding.state != FAILING for finding in found), "findings": [asdict(finding) | {"hint": finding.remedy} for finding in found]}, ensure_ascii=False)
