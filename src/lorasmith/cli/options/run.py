"""What commands that train have in common: options, and how they become settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorasmith.cli.options.overrides import as_overrides
from lorasmith.cli.output import print_error
from lorasmith.config.presets import ADVICE, PRESETS, Preset
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
BreakLock = Annotated[
    bool,
    typer.Option(
        "--break-lock",
        help="Take over from a run on another machine that did not renew its lock for two minutes.",
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


@dataclass(frozen=True)
class SettingsSources:
    """Where the settings of a run come from, the later ones over the earlier ones."""

    base: dict[str, Any]
    """The preset's settings."""
    file: Path | None
    """The RUN.toml, or the saved settings of the run to resume."""
    overrides: list[str]
    """Options, as ``section.key=value``."""


def collect_sources(
    command: str,
    file: Path | None,
    flags: dict[str, Any],
    sets: Sequence[str] | None,
    preset: Preset | None,
    resume: str | None,
    print_config: bool,
) -> SettingsSources:
    """Collect the settings of a command that trains.

    Args:
        command: its name.
        file: the RUN.toml.
        flags: values of options by their settings' keys; None where not given.
        sets: what ``--set`` gives.
        preset: settings under all others.
        resume: whether to go on with a run, whose settings are read where there is no file.
        print_config: whether settings are only printed, which needs no options.

    Raises:
        ConfigError: there is no run to resume, or an option is missing.
    """
    overrides = [*as_overrides(flags), *(sets or [])]
    base: dict[str, Any] = dict(PRESETS[preset]) if preset else {}
    name = flags["output.name"]
    if file is None and resume is not None and name is not None:
        file = saved_settings(name)
    if print_config:
        base |= _placeholders(file)
    elif file is None:
        require_options(command, overrides)
    return SettingsSources(base, file, overrides)


def _placeholders(file: Path | None) -> dict[str, Any]:
    """Return what stands for required settings; features have images of their own."""
    from lorasmith.config.reading.read_toml import read_toml

    has_features = file is not None and "feature" in read_toml(file)
    return {"output": PLACEHOLDERS["output"]} if has_features else PLACEHOLDERS


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
        print_error(f"note: {ADVICE[preset]}")
