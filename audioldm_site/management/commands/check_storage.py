"""Rows against files against hashes: `manage.py check_storage [--hashes] [--fix]`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from audioldm_site.faults import explain
from audioldm_site.maintenance.storage_check import check_storage
from audioldm_site.management.base import StudioCommand


class Command(StudioCommand):
    help = "Compare what the database says with what lies in DATA_DIR, both ways. Exit code 1 when something is wrong and was not mended."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--hashes", action="store_true", help="read every file and compare its content too (slow)")
        parser.add_argument("--fix", action="store_true", help="mark checkpoints as missing or found, delete what was left half written; nothing else is changed")

    def run(self, *, hashes: bool, fix: bool, **options: Any) -> dict[str, Any]:
        found = list(check_storage(hashes=hashes, fix=fix))
        return {"ok": all(finding.fixed for finding in found), "findings": [asdict(finding) for finding in found]}

    def describe(self, result: dict[str, Any]) -> str:
        lines = []
        for finding in result["findings"]:
            size = f" ({finding['size_bytes'] / 1e6:.1f} MB)" if finding["size_bytes"] else ""
            lines.append(f"{finding['code']}: {finding['path']}: {finding['message']}{size}{' [mended]' if finding['fixed'] else ''}")
        remedies = {code: explain(code).remedy for code in dict.fromkeys(finding["code"] for finding in result["findings"])}
        lines += [f"  {code}: {remedy}" for code, remedy in remedies.items() if remedy]
        return "\n".join(lines) or "Rows and files agree."

    def handle(self, *args: Any, **options: Any) -> None:
        super().handle(*args, **options)
        if not self.result["ok"]:
            sys.exit(1)
