"""The form of a new run and the small ones of a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from audioldm_site.forms import ConfigForm, command_line
from datasets_app.models import Dataset, DatasetStatus
from gpu.config import PRESETS, FinetuneConfig
from training_app import selectors, storage
from training_app.models import Checkpoint, TrainingRun

MAIN = (
    "method", "max_train_steps", "seed", "checkpointing_steps", "validation_epochs", "guidance_scale", "num_inference_steps",
    "num_waveforms_per_prompt", "audio_length_in_s", "validation_prompts",
)  # fmt: skip
"""What stands in the open, in this order; all other parameters are one click away under the name of their group."""

PRESET_WORDS = {
    "quick": ("Quick try", "LoRA, a few minutes on a GPU: does it go in the right direction?"),
    "standard": ("Standard", "LoRA with a plateau schedule: the one to leave running over lunch."),
    "full": ("Full", "Every weight of the UNet, with the options that the original trainer uses."),
}


class RunForm(ConfigForm):
    """A new run: what to train on, what to start from, and every parameter."""

    config_class = FinetuneConfig

    dataset = forms.ModelChoiceField(
        Dataset.objects.none(),
        label="Dataset",
        empty_label="Choose a dataset",
        error_messages={"required": "Choose the dataset to train on."},
        help_text="Its clips and captions are frozen when the run is made.",
    )
    checkpoint = forms.ModelChoiceField(
        Checkpoint.objects.none(),
        label="Start from",
        empty_label="Choose a checkpoint",
        error_messages={"required": "Choose the checkpoint to start from."},
        help_text="A base model, or a checkpoint of an earlier run.",
    )
    name = forms.CharField(label="Name", max_length=120, required=False, help_text="Empty: named after the dataset and the checkpoint.")
    tags = forms.CharField(label="Tags", max_length=300, required=False, help_text="Separated by commas.")

    def __init__(self, *args: Any, user, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ready = Dataset.objects.visible_to(user).filter(status=DatasetStatus.READY).order_by("name")
        self.fields["dataset"].queryset = ready
        if "dataset" not in self.initial and len(ready[:2]) == 1:
            self.initial["dataset"] = ready[0].pk
        self.fields["checkpoint"].queryset = selectors.trainable_checkpoints(user)

    def main_fields(self):
        return self.bound_fields(MAIN)

    def expert_groups(self) -> list[dict[str, Any]]:
        """The other parameters by group; a group with a fault in it is open."""
        groups: dict[str, list] = {}
        for parameter in self.config_class.parameters():
            if parameter.name not in MAIN:
                groups.setdefault(parameter.group, []).append(self[parameter.name])
        return [
            {"title": title, "fields": fields, "open": any(field.errors or field.field.warning for field in fields)}
            for title, fields in groups.items()
        ]

    def command(self) -> str:
        chosen = {name: _chosen(self, name) for name in ("dataset", "checkpoint")}
        return command_line(
            "finetune", {f"--{name}": row.name if row else "…" for name, row in chosen.items()}, self.shown_values(), FinetuneConfig
        )


def initial_values(*, checkpoint: Checkpoint | None, preset: str, cloned: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a new run starts from: the configuration's defaults, what the checkpoint recommends, the preset or the cloned run."""
    values = {parameter.name: parameter.default for parameter in FinetuneConfig.parameters()}
    known = values.keys() | {"name", "tags", "dataset"}
    values |= FinetuneConfig.known(storage.recommended(checkpoint))
    values |= PRESETS.get(preset, {})
    if cloned:
        values |= {name: value for name, value in cloned.items() if name in known} | {"checkpoint": cloned.get("base_checkpoint")}
    return values


def preset_cards(chosen: str) -> list[dict[str, Any]]:
    cards = []
    for name, values in PRESETS.items():
        title, text = PRESET_WORDS.get(name, (name, ""))
        steps = values.get("max_train_steps", FinetuneConfig().max_train_steps)
        cards.append({"name": name, "title": title, "text": text, "steps": steps, "method": values["method"], "chosen": name == chosen})
    return cards


class NotesForm(forms.ModelForm):
    """What people write about a run."""

    class Meta:
        model = TrainingRun
        fields = ["name", "tags", "notes"]
        widgets = {"notes": forms.Textarea(attrs={"rows": 3}), "tags": forms.TextInput(attrs={"placeholder": "doors, first try"})}


class ContinueForm(forms.Form):
    more_steps = forms.IntegerField(label="Steps more", min_value=1, max_value=10_000_000, initial=1_000)
    more_steps.unit = "steps"


def _chosen(form: RunForm, name: str):
    value = form[name].value()
    if not value:
        return None
    try:
        return form.fields[name].queryset.filter(pk=value).first()
    except (ValueError, TypeError, forms.ValidationError):
        return None
