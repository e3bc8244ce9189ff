"""Everything in one file, while the studio works: `manage.py backup OUT.tar`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from audioldm_site.maintenance.backup import back_up
from audioldm_site.management.base import StudioCommand


class Command(StudioCommand):
    help = "Write the database and every file into a new .tar or .tar.gz. Jobs may go on meanwhile. The file is as secret as the machine."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("target", type=Path, metavar="OUT.tar", help="a new file")

    def run(self, *, target: Path, **options: Any) -> dict[str, Any]:
        done = back_up(target, say=self.stderr.write)
        return {"path": str(done.path), "files": done.files, "size_bytes": done.size_bytes, "database": done.database, "vanished": done.vanished}

    def describe(self, result: dict[str, Any]) -> str:
        gone = f"; {len(result['vanished'])} were deleted meanwhile and are not in it" if result["vanished"] else ""
        return f"{result['path']}: {result['files']} files, {result['size_bytes'] / 1e6:.1f} MB{gone}. Keep it as safe as the machine: it holds the secret key."
