"""The forms that ask for an evaluation and for a blind listening test."""

from __future__ import annotations

from typing import Any

from django import forms

from audioldm_site.forms import ConfigForm, command_line
from generation_app import evaluations
from generation_app.evaluation_selectors import usable_datasets
from gpu.config import EvaluateConfig, ListenConfig
from training_app.models import Checkpoint
from training_app.selectors import playable_checkpoints

BASE, NONE = "base", "none"


class EvaluationForm(ConfigForm):
    config_class = EvaluateConfig

    checkpoint = forms.ModelChoiceField(Checkpoint.objects.none(), label="Checkpoint", empty_label="Choose a checkpoint", help_text="The model that is judged.")
    against = forms.ChoiceField(label="Beside it", required=False, help_text="Makes the same prompts with the same seeds, so that differences can be measured.")
    dataset = forms.ModelChoiceField(None, label="Dataset", empty_label="Choose a dataset", help_text="Its held-out clips give the prompts and the real sounds to compare with.")
    ears = forms.ModelChoiceField(Checkpoint.objects.none(), label="Ears", required=False, empty_label="the checkpoint's own CLAP", help_text="Whose CLAP judges. Figures of different ears cannot be compared.")

    def __init__(self, *args: Any, user, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        playable = playable_checkpoints(user)
        self.fields["checkpoint"].queryset = playable
        self.fields["dataset"].queryset = usable_datasets(user)
        self.fields["ears"].queryset = playable.filter(format=Checkpoint.Format.DIFFUSERS)
        self.fields["ears"].optional = True
        self.fields["against"].choices = [
            (BASE, "what it was trained from"), (NONE, "nothing"), *((str(row.pk), row.name) for row in playable)
        ]  # fmt: skip

    def chosen_against(self) -> Checkpoint | None:
        """Of a valid form."""
        wanted = self.cleaned_data["against"] or BASE
        if wanted == NONE:
            return None
        if wanted == BASE:
            return evaluations.base_of(self.cleaned_data["checkpoint"])
        return self.fields["checkpoint"].queryset.get(pk=wanted)

    def option_fields(self):
        return self.bound_fields(self.parameter_names())

    def command(self) -> str:
        def shown(name: str) -> str:
            value, rows = self[name].value(), self.fields[name].queryset
            return next((row.name for row in rows if str(row.pk) == str(value)), "…")

        arguments = {"--dataset": shown("dataset"), "--checkpoint": shown("checkpoint")}
        return command_line("evaluate", arguments, self.shown_values(), EvaluateConfig)


class ListeningForm(ConfigForm):
    config_class = ListenConfig

    name = forms.CharField(max_length=120, required=False, label="Name", help_text="Say nothing about the checkpoints in it: listeners read it first.")
    checkpoint = forms.ModelChoiceField(Checkpoint.objects.none(), label="One checkpoint", empty_label="Choose a checkpoint")
    against = forms.ModelChoiceField(Checkpoint.objects.none(), label="The other", required=False, empty_label="what it was trained from")

    def __init__(self, *args: Any, user, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in ("checkpoint", "against"):
            self.fields[field].queryset = playable_checkpoints(user)
        self.fields["name"].optional = True
        self.fields["prompts"].widget.attrs |= {"rows": 8, "placeholder": "heavy rain on a tin roof\na door creaks open"}

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        checkpoint = cleaned.get("checkpoint")
        if checkpoint and not cleaned.get("against"):
            cleaned["against"] = evaluations.base_of(checkpoint)
            if cleaned["against"] is None:
                self.add_error("against", f"{checkpoint.name} is a whole model and was not trained from another one: choose the other checkpoint")
        return cleaned

    def option_fields(self):
        return self.bound_fields(name for name in self.parameter_names() if name != "prompts")
