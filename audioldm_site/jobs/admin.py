"""How jobs look in the admin: history that nobody edits, and two actions."""

from __future__ import annotations

from django.contrib import admin, messages
from django.urls import reverse
from django.utils.html import format_html

from audioldm_site.jobs.models import Job, Worker
from audioldm_site.search import words


class SearchLimit:
    """Keeps a search in the admin to as many words as the database can take."""

    def get_search_results(self, request, queryset, search_term):
        return super().get_search_results(request, queryset, " ".join(words(search_term)))


class ReadOnlyJobAdmin(SearchLimit, admin.ModelAdmin):
    """Subclasses name their page and how a job is stopped and put back in line; both return whether they did."""

    page_name: str
    list_select_related = True
    date_hierarchy = "created_at"
    actions = ["stop", "requeue"]
    readonly_fields = ["page"]

    def stop_job(self, job: Job) -> bool:
        raise NotImplementedError

    def requeue_job(self, job: Job) -> bool:
        raise NotImplementedError

    def has_add_permission(self, request) -> bool:
        return False

    def has_change_permission(self, request, obj=None) -> bool:
        return False

    def has_delete_permission(self, request, obj=None) -> bool:
        return False

    @admin.display(description="page")
    def page(self, job: Job) -> str:
        return format_html('<a href="{}">open in the studio</a>', reverse(self.page_name, args=[job.pk]))

    @admin.action(description="Stop and save", permissions=["view"])
    def stop(self, request, queryset) -> None:
        self._each(request, queryset, self.stop_job, done="asked to stop", refused="has ended already")

    @admin.action(description="Put back in line", permissions=["view"])
    def requeue(self, request, queryset) -> None:
        self._each(request, queryset, self.requeue_job, done="is in line again", refused="can only be put back in line when it was stopped or failed")

    def _each(self, request, queryset, act, *, done: str, refused: str) -> None:
        if not request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}"):
            self.message_user(request, "You may look, but not change this.", messages.ERROR)
            return
        for job in queryset:
            if act(job):
                self.message_user(request, f"{job}: {done}.", messages.SUCCESS)
            else:
                self.message_user(request, f"{job}: {refused}.", messages.WARNING)


@admin.register(Worker)
class WorkerAdmin(admin.ModelAdmin):
    list_display = ["name", "queue", "host", "pid", "device", "started_at", "seen_at"]
    list_filter = ["queue"]

    def has_add_permission(self, request) -> bool:
        return False

    def has_change_permission(self, request, obj=None) -> bool:
        return False
