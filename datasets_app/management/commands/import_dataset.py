"""Import a dataset from the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audioldm_site.management.base import StudioCommand
from datasets_app import selectors, services


class Command(StudioCommand):
    help = "Import a zip, or a folder, with metadata.csv (columns audio and caption) and the WAV files that it names."

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("path", type=Path, help="the zip or the folder")
        parser.add_argument("--name", help="what to call it; the file's own name by default")

    def run(self, *, path: Path, name: str | None = None, **options: Any) -> dict[str, Any]:
        return selectors.dataset_facts(services.import_inline(source=path, name=name))

    def describe(self, result: dict[str, Any]) -> str:
        lines = [f"{result['name']}: {result['clips']} clips, {result['duration_s'] / 60:.1f} min ({result['id']})"]
        for problem in result["problems"]:
            where = f"line {problem['line']}" if problem["line"] else problem["file"]
            lines.append(f"  {where}: {problem['code']}: {problem['message']}")
        return "\n".join(lines)
