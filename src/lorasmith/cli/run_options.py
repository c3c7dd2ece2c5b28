"""What commands that train have in common: options, and how they become settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorasmith.config.presets import ADVICE, Preset
from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasmith.config.train_config import TrainConfig

RunFile = Annotated[
    Path | None, typer.Argument(metavar="[RUN.toml]", help="Settings; the options override it.")
]
Data = Annotated[
    Path | None, typer.Option(help="A folder of images, each with its caption in a .txt file.")
]
Tag = Annotated[str | None, typer.Option(help="The trigger word (tag); it is in every caption.")]
BaseModel = Annotated[
    Path | None,
    typer.Option(
        "-m", "--model", help="Folder, .safetensors file or cached id.", show_default="embedded"
    ),
]
PresetName = Annotated[Preset | None, typer.Option(help="Settings that suit a style or a subject.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps.")]
Rank = Annotated[int | None, typer.Option(help="Inner width of the adapters.")]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="[step-N]",
        help="Continue the run of this name: from its latest checkpoint, or from one step.",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting: section.key=value. May be repeated."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print all settings as TOML and stop.")
]

PLACEHOLDERS = {"data": {"path": "path/to/images", "tag": "mytag"}, "output": {"name": "mylora"}}
"""What stands for options that were not given where settings are only printed."""


def saved_settings(out: str) -> Path:
    """Return the settings that a run saved.

    Raises:
        ConfigError: there is no such run.
    """
    from lorasmith.runs.paths import RunPaths

    file = RunPaths.from_name(out).settings
    if not file.is_file():
        raise ConfigError(f"--resume: there is no run {out} ({file} is missing); check --out")
    return file


def require_options(command: str, overrides: Sequence[str]) -> None:
    """Name the options that a run without a file cannot do without.

    Raises:
        ConfigError: there are such.
    """
    needed = {"data.path": "--data DIR", "data.tag": "--tag TAG", "output.name": "--out NAME"}
    known = {override.partition("=")[0].strip() for override in overrides}
    missing = [option for key, option in needed.items() if key not in known]
    if missing:
        raise ConfigError(f"{command} needs {', '.join(missing)}, or a RUN.toml with them")


def advise(preset: Preset | None, run: "TrainConfig") -> None:
    """Say what goes well with a preset and is not there."""
    if preset is not None and preset in ADVICE and run.data.reg_data_dir is None:
        typer.echo(f"note: {ADVICE[preset]}", err=True)
