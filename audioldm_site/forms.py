"""A configuration class of gpu/config.py as a Django form: one field a parameter, checked by the configuration itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from django import forms
from django.forms.boundfield import BoundField

from gpu.config import Config, ConfigError, Parameter, plain

LONG_TEXT_ROWS = 4


class ConfigForm(forms.Form):
    """Fields are made from `config_class.parameters()`; bounds, types and conflicts are judged by `config_class.parse` alone.

    After `is_valid()`, `config` is the parsed configuration and every field that deserves one carries a `warning`.
    """

    config_class: ClassVar[type[Config]]
    config: Config | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.config_class.parameters():
            self.fields[parameter.name] = parameter_field(parameter)
        if not self.is_bound:
            self._warn(self.initial)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        try:
            self.config = self.config_class.parse({name: cleaned.get(name, "") for name in self.parameter_names()})
        except ConfigError as error:
            for name, message in error.errors.items():
                self.add_error(name, message)
        else:
            self._warn(self.config.to_dict())
        return cleaned

    def values(self) -> dict[str, Any]:
        """The checked parameters, for a service."""
        if self.config is None:
            raise ValueError("values() before is_valid()")
        return self.config.to_dict()

    def shown_values(self) -> dict[str, Any]:
        """The parameters as the form shows them now, checked or not."""
        return {name: self[name].value() for name in self.parameter_names()}

    def bound_fields(self, names: Iterable[str]) -> list[BoundField]:
        return [self[name] for name in names]

    @classmethod
    def parameter_names(cls) -> list[str]:
        return [parameter.name for parameter in cls.config_class.parameters()]

    def _warn(self, values: Mapping[str, Any]) -> None:
        known = {name: values[name] for name in self.parameter_names() if name in values}
        try:
            warnings = self.config_class(**known).warnings()
        except TypeError:  # values of another type than the configuration's, from an address: the fields will say so
            return
        for name, message in warnings.items():
            self.fields[name].warning = message


def parameter_field(parameter: Parameter) -> forms.Field:
    """The form field of one parameter. Its limits are shown and hinted to the browser; the configuration judges them."""
    about = {"label": parameter.label, "help_text": parameter.help, "required": False, "initial": parameter.default}
    field: forms.Field
    if parameter.type is bool:
        field = forms.BooleanField(**about)
    elif parameter.choices:
        field = forms.ChoiceField(choices=[(choice, choice) for choice in parameter.choices], **about)
    elif parameter.type is list or parameter.multiline:
        field = _Text(widget=forms.Textarea(attrs={"rows": LONG_TEXT_ROWS if parameter.type is list else 2}), **about)
    else:
        field = _Text(widget=_widget(parameter), **about)
    field.parameter = parameter
    field.unit = parameter.unit
    field.limits = _limits(parameter)
    field.wide = parameter.type is list or parameter.multiline
    field.is_check = parameter.type is bool
    field.warning = ""
    field.warn_above = parameter.warn_above
    return field


def command_line(
    command: str, arguments: Mapping[str, str], values: Mapping[str, Any], config_class: type[Config], *, leave_out: Iterable[str] = ()
) -> str:
    """The terminal command that does what a form does: its own arguments, then the parameters that differ from their defaults.

    A key of `arguments` that does not begin with `--` is given by position. js/command_line.js writes the same.
    """
    words = ["./manage.py", command]
    for flag, value in arguments.items():
        words += [flag, value] if flag.startswith("--") else [value]
    for parameter in config_class.parameters():
        value = values.get(parameter.name, parameter.default)
        if parameter.name in leave_out or _same(value, parameter.default):
            continue
        if parameter.type is list:
            lines = value.splitlines() if isinstance(value, str) else value or []
            for line in filter(None, (line.strip() for line in lines)):
                words += [f"--{parameter.name}", line]
        else:
            words += [f"--{parameter.name}", _word(value)]
    return " ".join(shlex.quote(word) for word in words)


class _Text(forms.CharField):
    """Text that is handed to the configuration as it was typed; lists are shown one item a line."""

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(str(line) for line in value) if isinstance(value, list) else value


def _widget(parameter: Parameter) -> forms.Widget:
    if parameter.type not in (int, float):
        return forms.TextInput()
    attrs = {"step": "1" if parameter.type is int else "any", "inputmode": "numeric" if parameter.type is int else "decimal"}
    if parameter.minimum is not None:
        attrs["min"] = plain(parameter.minimum)
    if parameter.maximum is not None:
        attrs["max"] = plain(parameter.maximum)
    return forms.NumberInput(attrs=attrs)


def _limits(parameter: Parameter) -> str:
    if parameter.type not in (int, float) or parameter.minimum is None or parameter.maximum is None:
        return ""
    lowest, highest, default = (_grouped(number) for number in (parameter.minimum, parameter.maximum, parameter.default))
    return f"{lowest} to {highest}, default {default}"


def _grouped(number: float) -> str:
    """With thin spaces between thousands: 10 000 000."""
    text = plain(number)
    return f"{int(text):,}".replace(",", "\u202f") if text.isdecimal() else text


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return plain(value) if isinstance(value, int | float) else str(value)


def _same(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return (value in (True, "true", "on")) == default
    if isinstance(default, int | float):
        try:
            return float(value) == float(default)
        except (TypeError, ValueError):
            return False
    if isinstance(default, list):
        return not value if not default else value == default
    return value == default
