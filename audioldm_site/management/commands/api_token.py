"""API tokens in the terminal: `manage.py api_token create ada laptop --scope write`, `list`, `revoke PREFIX`."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser

from audioldm_site.accounts import tokens
from audioldm_site.accounts.models import ApiToken
from audioldm_site.management.base import StudioCommand
from gpu.errors import Fault


class Command(StudioCommand):
    help = "Make, list and revoke API tokens."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        create = actions.add_parser("create", help="make one; it is printed this once")
        create.add_argument("user")
        create.add_argument("name", help="what uses it")
        create.add_argument("--scope", choices=ApiToken.Scope.values, default=ApiToken.Scope.READ)
        create.add_argument("--days", type=int, help="until it expires (default: never)")
        listing = actions.add_parser("list", help="those that are not revoked")
        revoke = actions.add_parser("revoke", help="from now on it opens nothing")
        revoke.add_argument("prefix", help="how it begins, as `list` shows it")
        for action in (create, listing, revoke):
            action.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    def run(self, *, action: str, **options: Any) -> dict[str, Any]:
        return {"create": self._create, "list": self._list, "revoke": self._revoke}[action](**options)

    def _create(self, *, user: str, name: str, scope: str, days: int | None, **options: Any) -> dict[str, Any]:
        owner = get_user_model().objects.filter(username=user).first()
        if owner is None:
            raise Fault("lookup.not_found", f"nobody is called {user!r}")
        _, text = tokens.create_token(user=owner, name=name, scope=scope, days=days)
        return {"token": text}

    def _list(self, **options: Any) -> dict[str, Any]:
        rows = ApiToken.objects.filter(revoked_at=None).select_related("user")
        return {"tokens": [{"prefix": row.prefix, "user": row.user.get_username(), "name": row.name, "scope": row.scope, "expires_at": row.expires_at, "last_used_at": row.last_used_at} for row in rows]}

    def _revoke(self, *, prefix: str, **options: Any) -> dict[str, Any]:
        rows = list(ApiToken.objects.filter(prefix=prefix, revoked_at=None))
        if len(rows) != 1:
            raise Fault("lookup.not_found" if not rows else "lookup.ambiguous", f"{len(rows)} tokens begin with {prefix!r}")
        tokens.revoke(rows[0])
        return {"revoked": prefix}

    def describe(self, result: dict[str, Any]) -> str:
        if "tokens" in result:
            return "\n".join(f"{row['prefix']}…  {row['user']}  {row['scope']}  {row['name']}" for row in result["tokens"]) or "There is none."
        return super().describe(result)
