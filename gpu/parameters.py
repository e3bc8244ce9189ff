"""`python -m gpu.parameters > docs/parameters.md`: the reference of all parameters, written from their declarations."""

from __future__ import annotations

from gpu.config import PRESETS, Config, EvaluateConfig, FinetuneConfig, GenerateConfig, ListenConfig, Parameter, plain


def markdown() -> str:
    """The whole page. A test compares it with docs/parameters.md."""
    lines = [
        "# Parameters",
        "",
        "Written from `gpu/config.py` by `python -m gpu.parameters`; forms, flags and the trainer read the same declarations.",
        "A checkpoint may recommend other defaults (its duration, its sampler); the form and the commands start from those.",
        "",
        "## Fine-tuning",
        "",
        *_table(FinetuneConfig),
        "",
        "### Presets",
        "",
        "| preset | " + " | ".join(PRESETS) + " |",
        "|---" * (len(PRESETS) + 1) + "|",
    ]
    for parameter in FinetuneConfig.parameters():
        if any(parameter.name in preset for preset in PRESETS.values()):
            values = [str(preset.get(parameter.name, parameter.default)) for preset in PRESETS.values()]
            lines.append(f"| `{parameter.name}` | " + " | ".join(values) + " |")
    lines += ["", "## Generation", "", *_table(GenerateConfig)]
    lines += ["", "## Evaluation", "", *_table(EvaluateConfig)]
    lines += ["", "## Blind listening", "", *_table(ListenConfig), ""]
    return "\n".join(lines)


def _table(config: type[Config]) -> list[str]:
    rows = ["| parameter | default | limits | meaning |", "|---|---|---|---|"]
    for parameter in config.parameters():
        default = _words(parameter)
        unit = f" {parameter.unit}" if parameter.unit and default != "" else ""
        rows.append(f"| `{parameter.name}` | {default}{unit} | {_limits(parameter)} | {parameter.help} |")
    return rows


def _words(parameter: Parameter) -> str:
    if parameter.type is bool:
        return "on" if parameter.default else "off"
    return "" if parameter.type is list else str(parameter.default)


def _limits(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if parameter.minimum is None:
        return ""
    return f"{plain(parameter.minimum)} … {plain(parameter.maximum)}"


if __name__ == "__main__":
    print(markdown(), end="")
