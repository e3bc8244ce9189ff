from __future__ import annotations

from django.contrib import admin

from audioldm_site.jobs.admin import ReadOnlyJobAdmin
from generation_app import services
from generation_app.models import Generation, Waveform


class WaveformInline(admin.TabularInline):
    model = Waveform
    fields = ["index", "seed", "clap_score", "duration_s", "sample_rate_hz", "flags", "audio", "sha256"]
    readonly_fields = fields
    extra = 0
    can_delete = False

    def has_add_permission(self, request, obj=None) -> bool:
        return False


@admin.register(Generation)
class GenerationAdmin(ReadOnlyJobAdmin):
    list_display = ["__str__", "status", "checkpoint", "owner", "favourite", "created_at", "elapsed_s", "error_code"]
    list_filter = ["status", "favourite", "checkpoint"]
    search_fields = ["prompt", "notes", "error_code"]
    inlines = [WaveformInline]
    page_name = "generation:generation"

    def stop_job(self, generation: Generation) -> bool:
        return services.request_stop(generation)

    def requeue_job(self, generation: Generation) -> bool:
        return services.retry(generation)
