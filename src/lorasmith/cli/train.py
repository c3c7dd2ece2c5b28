"""``lorasmith train``: from a folder of captioned pictures to a LoRA file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from lorasmith.cli.fetching import Download, fetch
from lorasmith.cli.overrides import as_overrides
from lorasmith.config.presets import ADVICE, PRESETS, Preset
from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasmith.config.features import FeaturesRun

_PLACEHOLDERS = {"data": {"path": "path/to/pictures", "tag": "mytag"}, "output": {"name": "mylora"}}
_STEP = re.compile(r"latest|(step-)?\d+")
_LATEST = "latest"


class _WithResume(typer.core.TyperCommand):
    """Lets ``--resume`` stand alone: what follows is its value only if it names a step."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in what ``--resume`` alone means."""
        completed: list[str] = []
        for place, argument in enumerate(args):
            completed.append(argument)
            following = args[place + 1] if place + 1 < len(args) else ""
            if argument == "--resume" and not _STEP.fullmatch(following):
                completed.append(_LATEST)
        return super().parse_args(ctx, completed)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("train", cls=_WithResume)(train)


def train(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN.toml]", help="Settings; the options override it.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of pictures, each with its caption in a .txt file."),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="The words that shall call the LoRA; in every caption.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="NAME writes loras/NAME.safetensors, some/path/NAME writes it there."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "-m", "--model", help="Folder, .safetensors file or cached id.", show_default="embedded"
        ),
    ] = None,
    preset: Annotated[
        Preset | None, typer.Option(help="Settings that suit a style or a subject.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    rank: Annotated[int | None, typer.Option(help="Inner width of the adapters.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[step-N]",
            help="Go on with the run of this name: from its latest checkpoint, or from one step.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override one setting: section.key=value. May be repeated."),
    ] = None,
    download: Download = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as TOML and stop.")
    ] = False,
) -> None:
    """Train a LoRA on a folder of captioned pictures.

    Writes NAME.safetensors in the naming that other programs read; the report, settings, log,
    previews and checkpoints go to the folder NAME beside it. Ctrl-C saves what was learned, and
    `--resume` with the same RUN.toml or `--out` goes on with it.

    A RUN.toml with [[feature]] tables trains a LoRA for each, NAME-TAG.safetensors.

    Example: `lorasmith train --data pictures --tag inkmono --out inkmono --steps 300`
    """
    from lorasmith.config.features import FeaturesRun, load_run
    from lorasmith.config.load import dump_toml

    flags = {
        "data.path": data, "data.tag": tag, "output.name": out, "model.path": model,
        "train.steps": steps, "lora.rank": rank,
    }  # fmt: skip
    overrides = [*as_overrides(flags), *(sets or [])]
    base: dict[str, Any] = dict(PRESETS[preset]) if preset else {}
    if run is None and resume is not None and out is not None:
        run = _settings_of(out)
    if print_config:
        base |= _PLACEHOLDERS
    elif run is None:
        _require_options(overrides)
    settings = load_run(run, overrides, base)
    if print_config:
        typer.echo(dump_toml(settings), nl=False)
        return
    if download:
        fetch(settings.model.path)
    if isinstance(settings, FeaturesRun):
        _train_features(settings, resume)
        return
    if preset is not None and preset in ADVICE and settings.data.class_path is None:
        typer.echo(f"note: {ADVICE[preset]}", err=True)
    from lorasmith.training.loop import train as train_lora

    file = train_lora(settings, resume)
    report = file.with_suffix("") / "report.html"
    typer.echo(f"{file} ({file.stat().st_size / 2**20:.1f} MiB), report in {report}")


def _train_features(settings: "FeaturesRun", resume: str | None) -> None:
    from lorasmith.training.features import train_features

    files = train_features(settings, resume)
    for file in files:
        typer.echo(f"{file} ({file.stat().st_size / 2**20:.1f} MiB)")
    typer.echo(f"all together: generate --library {files[0].parent}")


def _settings_of(out: str) -> Path:
    """Return the settings that a run saved."""
    from lorasmith.training.paths import RunPaths

    file = RunPaths.of(out).settings
    if not file.is_file():
        raise ConfigError(f"--resume: there is no run {out} ({file} is missing); look at --out")
    return file


def _require_options(overrides: Sequence[str]) -> None:
    """Name the options that a run without a file cannot do without."""
    needed = {"data.path": "--data DIR", "data.tag": "--tag TAG", "output.name": "--out NAME"}
    known = {override.partition("=")[0].strip() for override in overrides}
    missing = [option for key, option in needed.items() if key not in known]
    if missing:
        raise ConfigError(f"train needs {', '.join(missing)}, or a RUN.toml that says so")
