"""Tokens of everybody, to look at and revoke. Nobody sees one in clear, and none is made here."""

from __future__ import annotations

from django.contrib import admin, messages

from audioldm_site.accounts import tokens
from audioldm_site.accounts.models import ApiToken, Share


class LookOnly(admin.ModelAdmin):
    def has_add_permission(self, request) -> bool:
        return False

    def has_change_permission(self, request, obj=None) -> bool:
        return False


@admin.register(ApiToken)
class ApiTokenAdmin(LookOnly):
    list_display = ["name", "user", "prefix", "scope", "created_at", "expires_at", "last_used_at", "revoked_at"]
    list_filter = ["scope", "user"]
    list_select_related = ["user"]
    exclude = ["digest"]
    actions = ["revoke"]

    @admin.action(description="Revoke", permissions=["delete"])
    def revoke(self, request, queryset) -> None:
        count = sum(tokens.revoke(token) for token in queryset)
        self.message_user(request, f"{count} revoked.", messages.SUCCESS)


@admin.register(Share)
class ShareAdmin(LookOnly):
    list_display = ["owner", "object_id", "created_at"]
    list_select_related = ["owner"]
