from __future__ import annotations

from django.contrib import admin

from audioldm_site.jobs.admin import ReadOnlyJobAdmin
from generation_app import evaluations, services
from generation_app.models import Evaluation, Generation, Listening, ListeningSession, Waveform


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


@admin.register(Evaluation)
class EvaluationAdmin(ReadOnlyJobAdmin):
    list_display = ["__str__", "status", "against", "owner", "created_at", "elapsed_s", "error_code"]
    list_filter = ["status"]
    search_fields = ["checkpoint__name", "dataset_name", "error_code"]
    page_name = "evaluation:evaluation"

    def stop_job(self, evaluation: Evaluation) -> bool:
        return evaluations.request_stop(evaluation)

    def requeue_job(self, evaluation: Evaluation) -> bool:
        return evaluations.retry(evaluation)


class ListeningSessionInline(admin.TabularInline):
    """Who has listened, and how far. Not the secret, nor the answers: whoever runs the machine may still be listening."""

    model = ListeningSession
    fields = ["listener", "started_at", "finished_at"]
    readonly_fields = fields
    extra = 0
    can_delete = False

    def has_add_permission(self, request, obj=None) -> bool:
        return False


@admin.register(Listening)
class ListeningAdmin(ReadOnlyJobAdmin):
    list_display = ["name", "status", "pair_count", "owner", "created_at", "elapsed_s", "error_code"]
    list_filter = ["status"]
    search_fields = ["name", "error_code"]
    inlines = [ListeningSessionInline]
    page_name = "listening:listening"

    def stop_job(self, listening: Listening) -> bool:
        return evaluations.request_stop(listening)

    def requeue_job(self, listening: Listening) -> bool:
        return evaluations.retry(listening)
