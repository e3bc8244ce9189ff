"""Every parameter of a configuration class as a command-line flag."""

from __future__ import annotations

import argparse
from typing import Any

from gpu.config import Config


def add_parameters(parser: argparse.ArgumentParser, config: type[Config], *, leave_out: tuple[str, ...] = ()) -> None:
    """One flag a parameter, in both spellings (`--train_batch_size`, `--train-batch-size`); values are checked by the configuration."""
    group = parser.add_argument_group("parameters", "absent ones take the checkpoint's own recommendation, then the default shown")
    for parameter in config.parameters():
        if parameter.name in leave_out:
            continue
        spellings = dict.fromkeys([f"--{parameter.name}", f"--{parameter.name.replace('_', '-')}"])
        limits = f" one of {', '.join(parameter.choices)};" if parameter.choices else ""
        more: dict[str, Any] = {"nargs": "?", "const": "true"} if parameter.type is bool else {}
        if parameter.type is list:
            more = {"action": "append"}
        group.add_argument(
            *spellings,
            dest=parameter.name,
            default=None,
            metavar=parameter.unit.upper() or parameter.type.__name__.upper(),
            help=f"{parameter.help}{limits} (default: {parameter.default})".replace("%", "%%"),
            **more,
        )


def given(options: dict[str, Any], config: type[Config]) -> dict[str, Any]:
    """The parameters that were named on the command line."""
    names = [parameter.name for parameter in config.parameters()]
    return {name: options[name] for name in names if options.get(name) is not None}
