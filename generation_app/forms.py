"""The form that asks for sounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from audioldm_site.forms import ConfigForm, command_line
from gpu.config import GenerateConfig
from training_app import selectors, storage
from training_app.models import Checkpoint


class GenerationForm(ConfigForm):
    config_class = GenerateConfig

    checkpoint = forms.ModelChoiceField(
        Checkpoint.objects.none(), label="Checkpoint", empty_label="Choose a checkpoint", help_text="The model that makes the sound."
    )

    def __init__(self, *args: Any, user, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["checkpoint"].queryset = selectors.playable_checkpoints(user)
        self.fields["prompt"].widget.attrs |= {"placeholder": "a heavy wooden door creaks open in a stone hall"}
        self.fields["negative_prompt"].wide = True

    def option_fields(self):
        return self.bound_fields(name for name in self.parameter_names() if name not in ("prompt", "negative_prompt", "seed"))

    def command(self) -> str:
        value = self["checkpoint"].value()
        chosen = next((row for row in self.fields["checkpoint"].queryset if str(row.pk) == str(value)), None)
        arguments = {"prompt": str(self["prompt"].value() or "…"), "--checkpoint": chosen.name if chosen else "…"}
        return command_line("generate", arguments, self.shown_values(), GenerateConfig, leave_out=("prompt",))


def initial_values(*, checkpoint: Checkpoint | None, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration's defaults, what the checkpoint recommends, or the settings of an earlier generation."""
    values = {parameter.name: parameter.default for parameter in GenerateConfig.parameters()}
    source = earlier if earlier is not None else storage.recommended(checkpoint)
    values |= {name: value for name, value in source.items() if name in values}
    return values
