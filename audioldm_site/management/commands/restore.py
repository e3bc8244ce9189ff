"""A backup into an empty DATA_DIR: `DATA_DIR=/elsewhere manage.py restore OUT.tar`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from audioldm_site.maintenance import restore
from audioldm_site.management.base import StudioCommand


class Command(StudioCommand):
    help = "Read a backup into DATA_DIR, which must be empty, at whatever path it lies. Every file is compared with its hash first."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("source", type=Path, metavar="OUT.tar")
        parser.add_argument("--check", action="store_true", help="only read it and compare every hash")

    def run(self, *, source: Path, check: bool, **options: Any) -> dict[str, Any]:
        done = (restore.check if check else restore.restore)(source, say=self.stderr.write)
        return {"path": str(source), "files": done.files, "size_bytes": done.size_bytes, "database": done.database, "restored": not check}

    def describe(self, result: dict[str, Any]) -> str:
        what = "restored; start the studio with `manage.py serve`" if result["restored"] else "whole: it can be restored"
        return f"{result['files']} files, {result['size_bytes'] / 1e6:.1f} MB, {what}."
