"""Clear what nobody needs: `manage.py prune` shows it, `manage.py prune --yes` does it."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from audioldm_site.maintenance.prune import targets
from audioldm_site.management.base import StudioCommand

SHOWN = 50


class Command(StudioCommand):
    help = "Show what could be deleted, with its size; with --yes delete it. Never what is pinned, best, last, liked, or what something was made from."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--yes", action="store_true", help="delete it; without this nothing is touched")
        parser.add_argument("--dry-run", action="store_true", help="only show (as without --yes)")
        parser.add_argument("--cache-days", type=float, default=30, metavar="DAYS", help="latents and embeddings unused for so long (default: 30)")
        parser.add_argument("--export-days", type=float, default=7, metavar="DAYS", help="exported files of that age (default: 7)")
        parser.add_argument("--checkpoint-days", type=float, metavar="DAYS", help="checkpoints between the first and the best and last, of runs that ended so long ago (default: keep all)")
        parser.add_argument("--sound-days", type=float, metavar="DAYS", help="generations of that age that nobody likes (default: keep all)")

    def run(self, *, yes: bool, dry_run: bool, **options: Any) -> dict[str, Any]:
        ages = {name: options[name] for name in ("cache_days", "export_days", "checkpoint_days", "sound_days")}
        found = list(targets(**ages))
        if yes and not dry_run:
            for target in found:
                target.delete()
        items = [{"kind": target.kind, "name": target.name, "size_bytes": target.size_bytes} for target in found]
        return {"deleted": yes and not dry_run, "size_bytes": sum(target.size_bytes for target in found), "items": items}

    def describe(self, result: dict[str, Any]) -> str:
        lines = [f"{item['size_bytes'] / 1e6:10.1f} MB  {item['kind']:<12} {item['name']}" for item in result["items"][:SHOWN]]
        if len(result["items"]) > SHOWN:
            lines.append(f"… and {len(result['items']) - SHOWN} more")
        what = "deleted" if result["deleted"] else "could be deleted; add --yes to do it"
        return "\n".join([*lines, f"{result['size_bytes'] / 1e6:.1f} MB in {len(result['items'])} items {what}."])
