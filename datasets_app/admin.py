from __future__ import annotations

from django.contrib import admin, messages

from audioldm_site.jobs.admin import SearchLimit
from datasets_app import services
from datasets_app.models import Clip, Dataset
from gpu.errors import Fault


@admin.register(Dataset)
class DatasetAdmin(SearchLimit, admin.ModelAdmin):
    """To look at, hand over and delete; everything else is done on the dataset's own page."""

    list_display = ["name", "status", "owner", "origin", "licence", "created_at"]
    list_filter = ["status", "origin"]
    list_select_related = ["owner"]
    search_fields = ["name", "source_name", "notes"]
    fields = [
        "name", "owner", "licence", "notes", "status", "origin", "source_name", "source_sha256", "split_seed", "validation_share",
        "error_code", "error_detail", "problems", "created_at",
    ]  # fmt: skip
    readonly_fields = [name for name in fields if name != "owner"]

    def has_add_permission(self, request) -> bool:
        return False

    def save_model(self, request, obj: Dataset, form, change: bool) -> None:
        services.hand_over(obj, owner=obj.owner)

    def get_deleted_objects(self, objs, request):
        """The datasets and how many clips, instead of a list of ten thousand."""
        clips = Clip.objects.filter(dataset__in=[dataset.pk for dataset in objs]).count()
        return [str(dataset) for dataset in objs], {"datasets": len(objs), "clips": clips}, set(), []

    def delete_model(self, request, obj: Dataset) -> None:
        self._delete(request, obj)

    def delete_queryset(self, request, queryset) -> None:
        for dataset in queryset:
            self._delete(request, dataset)

    def _delete(self, request, dataset: Dataset) -> None:
        try:
            services.delete_dataset(dataset)
        except Fault as fault:
            self.message_user(request, fault.message, messages.ERROR)


@admin.register(Clip)
class ClipAdmin(admin.ModelAdmin):
    """Read only: captions and splits are changed on the dataset's page, where one hears the sound."""

    list_display = ["original_name", "dataset", "caption", "duration_s", "split", "excluded"]
    list_filter = ["split", "excluded"]
    list_select_related = ["dataset"]
    search_fields = ["original_name", "caption", "dataset__name"]
    show_full_result_count = False

    def has_add_permission(self, request) -> bool:
        return False

    def has_change_permission(self, request, obj=None) -> bool:
        return False

    def has_delete_permission(self, request, obj=None) -> bool:
        return False
