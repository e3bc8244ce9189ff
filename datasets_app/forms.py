"""What people send about datasets."""

from __future__ import annotations

from django import forms

from datasets_app.models import Dataset, Split
from datasets_app.selectors import SORTS, ClipFilter
from datasets_app.services import MAX_SHARE

SORT_LABELS = {
    "position": "Order of the file",
    "name": "Name",
    "shortest": "Shortest first",
    "longest": "Longest first",
    "quietest": "Quietest first",
    "loudest": "Loudest first",
    "caption": "Caption",
}
FLAG_LABELS = {
    "duplicate": "duplicate",
    "silent": "silent",
    "clipped": "clipped",
    "dc_offset": "off the zero line",
    "not_finite": "not numbers",
    "truncated": "cut short",
    "very_short": "very short",
    "very_long": "very long",
    "no_caption": "no caption",
}


class UploadForm(forms.Form):
    archive = forms.FileField(
        label="Zip file",
        allow_empty_file=True,  # the import says what is wrong with it
        help_text="metadata.csv with the columns audio and caption, and the WAV files that it names.",
        widget=forms.FileInput(attrs={"accept": ".zip,application/zip"}),
    )
    name = forms.CharField(label="Name", required=False, max_length=115, help_text="The file's own name when left empty.")


class DatasetForm(forms.ModelForm):
    class Meta:
        model = Dataset
        fields = ["name", "licence", "notes"]
        labels = {"licence": "Licence", "notes": "Notes"}
        help_texts = {"licence": "On what terms the sounds may be used, e.g. CC0 1.0."}
        widgets = {"notes": forms.Textarea(attrs={"rows": 3})}


class SplitForm(forms.Form):
    validation_percent = forms.FloatField(
        label="Held out for validation",
        min_value=0,
        max_value=MAX_SHARE * 100,
        help_text="Share of the clips that no run trains on.",
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
    )
    seed = forms.IntegerField(
        label="Seed", min_value=0, max_value=2**31 - 1, help_text="The same seed and sounds give the same split.",
        widget=forms.NumberInput(attrs={"inputmode": "numeric"}),
    )
    validation_percent.unit = "%"

    @classmethod
    def of(cls, dataset: Dataset) -> SplitForm:
        return cls(initial={"validation_percent": f"{dataset.validation_share * 100:g}", "seed": dataset.split_seed})


class ClipForm(forms.Form):
    """Each value may be absent: then it stays as it is."""

    caption = forms.CharField(required=False, max_length=5_000)
    split = forms.ChoiceField(required=False, choices=Split.choices)
    included = forms.ChoiceField(required=False, choices=[("yes", "yes"), ("no", "no")])

    def changes(self) -> dict:
        """Arguments for `services.update_clip`."""
        sent = {name: self.cleaned_data[name] for name in self.fields if name in self.data}
        return {
            "caption": sent.get("caption"),
            "split": sent.get("split") or None,
            "excluded": sent["included"] == "no" if sent.get("included") else None,
        }


class FilterForm(forms.Form):
    """What the clip list shows; unknown values in an address are ignored."""

    q = forms.CharField(label="Search", required=False, widget=forms.TextInput(attrs={"type": "search", "placeholder": "Caption or file name"}))
    flag = forms.ChoiceField(label="Flag", required=False)
    split = forms.ChoiceField(label="Split", required=False, choices=[("", "Both splits"), (Split.TRAIN, "Training"), (Split.VALIDATION, "Validation")])
    state = forms.ChoiceField(label="Use", required=False, choices=[("", "Used or not"), ("usable", "Used"), ("unused", "Not used")])
    sort = forms.ChoiceField(label="Order", required=False, choices=[(key, SORT_LABELS[key]) for key in SORTS])

    def __init__(self, *args, flags: list[tuple[str, int]] = (), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        found = [(flag, f"{FLAG_LABELS.get(flag, flag)} ({count})") for flag, count in flags]
        self.fields["flag"].choices = [("", "All clips"), ("any", "Any flag"), *found]
        for field in self.fields.values():
            field.widget.attrs["aria-label"] = field.label

    def wanted(self) -> ClipFilter:
        self.is_valid()
        values = self.cleaned_data
        return ClipFilter(
            search=values.get("q", "").strip(),
            flag=values.get("flag", ""),
            split=values.get("split", ""),
            state=values.get("state", ""),
            sort=values.get("sort") or "position",
        )
