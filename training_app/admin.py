"""Checkpoint management, and a read-only history of runs with the two actions that an operator needs."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import Count
from django.shortcuts import redirect
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html

from audioldm_site.jobs import queue
from audioldm_site.jobs.admin import ReadOnlyJobAdmin, SearchLimit
from gpu.errors import Fault
from training_app import conversions, services, storage
from training_app.models import Checkpoint, Conversion, TrainingRun


@admin.register(Checkpoint)
class CheckpointAdmin(SearchLimit, admin.ModelAdmin):
    list_display = ["name", "family", "format", "origin", "global_step", "size", "licence", "used", "pinned", "retired", "missing", "damaged", "verified_at"]
    list_filter = ["family", "format", "origin", "pinned", "retired", "missing"]
    search_fields = ["name", "notes", "sha256", "licence", "run__name"]
    list_select_related = ["run", "base"]
    fields = [
        "name", "licence", "notes", "retired", "pinned", "owner", "family", "format", "origin", "method", "global_step", "is_best",
        "has_resume_state", "run", "base", "where_used", "path", "size", "sha256", "can_generate", "can_finetune", "facts", "defaults",
        "metrics", "missing", "damaged", "verified_at", "created_at",
    ]  # fmt: skip
    editable = {"name", "licence", "notes", "retired", "pinned", "owner"}
    actions = ["verify_files", "pin", "unpin", "retire", "bring_back", "export_ckpt", "export_diffusers", "export_safetensors", "export_lora"]

    def get_readonly_fields(self, request, obj=None):
        return [field for field in self.fields if field not in self.editable]

    def get_queryset(self, request):
        return super().get_queryset(request).annotate(
            run_count=Count("runs", distinct=True), generation_count=Count("generations", distinct=True), child_count=Count("descendants", distinct=True)
        )

    def add_view(self, request, form_url="", extra_context=None):
        """A checkpoint begins with a file: the page on which files come in."""
        return redirect("checkpoints:import")

    def has_delete_permission(self, request, obj=None) -> bool:
        # Files and rows go together: a checkpoint is retired here, never dropped from under the runs and sounds made from it.
        return False

    def save_model(self, request, obj, form, change) -> None:
        super().save_model(request, obj, form, change)
        if "pinned" in form.changed_data:
            services.set_pinned(obj, pinned=obj.pinned)

    @admin.display(description="size", ordering="size_bytes")
    def size(self, checkpoint: Checkpoint) -> str:
        return filesizeformat(checkpoint.size_bytes)

    @admin.display(description="used by")
    def used(self, checkpoint: Checkpoint) -> str:
        return f"{checkpoint.run_count} runs, {checkpoint.generation_count} generations, {checkpoint.child_count} checkpoints"

    @admin.display(description="where used")
    def where_used(self, checkpoint: Checkpoint) -> str:
        runs = reverse("admin:training_app_trainingrun_changelist") + f"?base_checkpoint__id__exact={checkpoint.pk}"
        sounds = reverse("admin:generation_app_generation_changelist") + f"?checkpoint__id__exact={checkpoint.pk}"
        children = reverse("admin:training_app_checkpoint_changelist") + f"?base__id__exact={checkpoint.pk}"
        return format_html(
            '<a href="{}">{} runs</a> · <a href="{}">{} generations</a> · <a href="{}">{} checkpoints made from it</a>',
            runs, checkpoint.run_count, sounds, checkpoint.generation_count, children, checkpoint.child_count,
        )  # fmt: skip

    @admin.action(description="Verify files against their hash")
    def verify_files(self, request, queryset) -> None:
        for checkpoint in queryset:
            if not storage.is_quick(checkpoint.size_bytes):
                queue.enqueue_call("datasets", "training_app.tasks.verify_checkpoint", str(checkpoint.pk))
                self.message_user(request, f"{checkpoint.name}: the worker reads its files; look at “verified at” and “damaged” then.", messages.INFO)
            elif storage.verify(checkpoint):
                self.message_user(request, f"{checkpoint.name}: whole.", messages.SUCCESS)
            else:
                self.message_user(request, f"{checkpoint.name}: its files are missing or differ from the recorded hash.", messages.ERROR)

    @admin.action(description="Pin (retention never removes it)")
    def pin(self, request, queryset) -> None:
        for checkpoint in queryset:
            services.set_pinned(checkpoint, pinned=True)
        self.message_user(request, f"Pinned: {len(queryset)}.", messages.SUCCESS)

    @admin.action(description="Unpin")
    def unpin(self, request, queryset) -> None:
        for checkpoint in queryset:
            services.set_pinned(checkpoint, pinned=False)
        self.message_user(request, f"No longer pinned: {len(queryset)}.", messages.SUCCESS)

    @admin.action(description="Retire (offered nowhere any more; files stay)")
    def retire(self, request, queryset) -> None:
        changed = queryset.model.objects.filter(pk__in=queryset.values("pk")).update(retired=True)
        self.message_user(request, f"Retired: {changed}.", messages.SUCCESS)

    @admin.action(description="Bring back")
    def bring_back(self, request, queryset) -> None:
        changed = queryset.model.objects.filter(pk__in=queryset.values("pk")).update(retired=False)
        self.message_user(request, f"Brought back: {changed}.", messages.SUCCESS)


    @admin.action(description="Export as original .ckpt", permissions=["change"])
    def export_ckpt(self, request, queryset) -> None:
        self._export(request, queryset, Conversion.Format.CKPT)

    @admin.action(description="Export as diffusers folder (zip)", permissions=["change"])
    def export_diffusers(self, request, queryset) -> None:
        self._export(request, queryset, Conversion.Format.DIFFUSERS)

    @admin.action(description="Export as one fp16 safetensors file", permissions=["change"])
    def export_safetensors(self, request, queryset) -> None:
        self._export(request, queryset, Conversion.Format.SAFETENSORS, dtype="fp16")

    @admin.action(description="Export the LoRA", permissions=["change"])
    def export_lora(self, request, queryset) -> None:
        self._export(request, queryset, Conversion.Format.LORA)

    def _export(self, request, queryset, format: str, *, dtype: str = "fp32") -> None:
        for checkpoint in queryset:
            try:
                made = conversions.export_model(checkpoint, owner=request.user, format=format, dtype=dtype)
            except Fault as fault:
                self.message_user(request, fault.message, messages.ERROR)
                continue
            page = reverse("checkpoints:conversion", args=[made.pk])
            self.message_user(request, format_html('{}: <a href="{}">in line to be written</a>.', checkpoint.name, page), messages.SUCCESS)


@admin.register(TrainingRun)
class TrainingRunAdmin(ReadOnlyJobAdmin):
    list_display = ["name", "task", "status", "dataset_name", "base_checkpoint", "global_step", "owner", "created_at", "finished_at", "error_code"]
    list_filter = ["status", "task", "archived", ("base_checkpoint", admin.RelatedOnlyFieldListFilter)]
    search_fields = ["name", "dataset_name", "tags", "notes", "error_code"]
    page_name = "training:run"

    def stop_job(self, run: TrainingRun) -> bool:
        return services.request_stop(run)

    def requeue_job(self, run: TrainingRun) -> bool:
        return services.resume(run)


@admin.register(Conversion)
class ConversionAdmin(ReadOnlyJobAdmin):
    list_display = ["__str__", "direction", "format", "status", "source", "checkpoint", "owner", "size", "created_at", "finished_at", "error_code"]
    list_filter = ["status", "direction", "format"]
    search_fields = ["name", "source", "error_code", "sha256"]
    page_name = "checkpoints:conversion"

    @admin.display(description="size", ordering="size_bytes")
    def size(self, conversion: Conversion) -> str:
        return filesizeformat(conversion.size_bytes) if conversion.size_bytes else ""

    def stop_job(self, conversion: Conversion) -> bool:
        return conversions.request_stop(conversion)

    def requeue_job(self, conversion: Conversion) -> bool:
        return conversions.retry(conversion)
