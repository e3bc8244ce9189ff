"""What people send when a model comes in or goes out."""

from __future__ import annotations

from django import forms

from training_app.conversions import DTYPES
from training_app.models import Checkpoint, Conversion
from training_app.sources import HUB, ORIGINAL, WHOLE, Found

WEIGHT_WORDS = {
    "ema": "EMA: the moving average, which the original sampler takes",
    "raw": "raw: as the last training step left them",
}
DTYPE_WORDS = {"fp32": "fp32: every bit", "fp16": "fp16: half the size"}


class UploadForm(forms.Form):
    model = forms.FileField(
        label="Model file",
        allow_empty_file=True,  # the recognition says what is wrong with it
        help_text=".ckpt, .pth, .safetensors, a file without an ending, or a zip of a diffusers folder.",
    )


class HubForm(forms.Form):
    repository = forms.CharField(
        label="Repository",
        max_length=200,
        help_text="OWNER/NAME, or OWNER/NAME@REVISION. Downloaded once; nothing is asked of the hub afterwards.",
        widget=forms.TextInput(attrs={"placeholder": "cvssp/audioldm2", "autocapitalize": "off", "spellcheck": "false"}),
    )
    name = forms.CharField(label="Name", required=False, max_length=140, help_text="The repository's own when left empty.")

    def clean_repository(self) -> str:
        return f"hub:{self.cleaned_data['repository'].strip().removeprefix('hub:')}"


class ImportForm(forms.Form):
    """How a recognised file or folder comes in; only what applies to it is asked."""

    name = forms.CharField(label="Name", required=False, max_length=140, help_text="The file's own name when left empty.")
    base = forms.ModelChoiceField(
        Checkpoint.objects.none(), label="Lies on", empty_label="Choose a whole model", help_text="The models whose layers have these shapes."
    )
    weights = forms.ChoiceField(label="Weights", help_text="The file holds both. Take the marked one unless you know why not.")
    keep_original = forms.BooleanField(
        label="Keep everything the file holds",
        required=False,
        initial=True,
        help_text="Needed to write it as .ckpt again. Without it the model takes less room.",
    )
    licence = forms.CharField(label="Licence", required=False, max_length=200, help_text="On what terms the model may be used, when you know better.")

    def __init__(self, *args, found: Found, bases: list[Checkpoint] = (), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fields["name"].widget.attrs["placeholder"] = found.label[:80]
        self.fields["keep_original"].is_check = True
        self.fields["keep_original"].wide = self.fields["base"].wide = self.fields["weights"].wide = True
        if found.needs_base:
            self.fields["base"].queryset = Checkpoint.objects.filter(pk__in=[base.pk for base in bases])
            if len(bases) == 1:
                self.fields["base"].initial = bases[0].pk
        else:
            del self.fields["base"]
        if found.kind == ORIGINAL and found.has_ema:
            words = {key: f"{text} (usual)" if key == found.weights else text for key, text in WEIGHT_WORDS.items()}
            self.fields["weights"].choices = list(words.items())
            self.fields["weights"].initial = found.weights
        else:
            del self.fields["weights"]
        if found.kind not in (ORIGINAL, WHOLE, HUB):
            del self.fields["keep_original"]
        if found.licence:
            self.fields["licence"].widget.attrs["placeholder"] = found.licence

    def values(self) -> dict:
        """Arguments for `conversions.import_model`."""
        sent = self.cleaned_data
        return {
            "name": sent.get("name") or "",
            "licence": sent.get("licence") or "",
            "weights": sent.get("weights") or "auto",
            "keep_original": sent.get("keep_original", True),
            "base": sent.get("base"),
        }


class ExportForm(forms.Form):
    format = forms.ChoiceField(choices=Conversion.Format.choices)
    dtype = forms.ChoiceField(choices=[(value, DTYPE_WORDS[value]) for value in DTYPES], required=False)
