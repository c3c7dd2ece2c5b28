"""``lorasmith sweep``: LoRAs that differ in settings, trained in parallel."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lorasmith.cli.download import Download, fetch
from lorasmith.cli.options import run as options
from lorasmith.cli.options.common import ModelPath
from lorasmith.cli.output import print_line, print_toml
from lorasmith.cli.settings_command import SettingsCommand
from lorasmith.core.text.console import open_console

if TYPE_CHECKING:
    from lorasmith.config.sweep import SweepConfig
    from lorasmith.reports.sweep_results import SweepResult


Vary = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        help="Try several values of a setting: section.key=value,value. May be repeated; the "
        "values multiply.",
    ),
]
MaxParallel = Annotated[
    int | None,
    typer.Option(min=1, help="Train at most so many LoRAs at the same time.", show_default="8"),
]
OutName = Annotated[
    str | None,
    typer.Option(help="NAME writes into loras/NAME/, some/path/NAME into that folder."),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("sweep", cls=SettingsCommand)(sweep)


def sweep(
    run: options.RunFile = None,
    vary: Vary = None,
    max_parallel: MaxParallel = None,
    data: options.Data = None,
    tag: options.Tag = None,
    out: OutName = None,
    model: ModelPath = None,
    preset: options.PresetName = None,
    steps: options.Steps = None,
    rank: options.Rank = None,
    resume: options.Resume = None,
    break_lock: options.BreakLock = False,
    sets: options.Sets = None,
    download: Download = False,
    print_config: options.PrintConfig = False,
) -> None:
    """Train several LoRAs that differ in settings, at the same time.

    A LoRA for each combination of the varied settings, from the same images and in one pass of
    the model for all: NAME/lr1e-4-rank8.safetensors, with a folder of that name as `train` leaves
    it. NAME/sweep.html and NAME/sweep.json compare them. Ctrl-C saves checkpoints, and
    `--resume` with the same settings or `--out` continues.

    Example: `lorasmith sweep --data pictures --tag ink --out tried --vary lora.rank=4,16`
    """
    from lorasmith.config.reading.load import dump_toml
    from lorasmith.config.sweep import load_sweep, parse_vary

    flags = {
        "data.path": data, "data.tag": tag, "output.name": out, "model.path": model,
        "train.steps": steps, "lora.rank": rank,
    }  # fmt: skip
    sources = options.collect_sources("sweep", run, flags, sets, preset, resume, print_config)
    settings = load_sweep(
        sources.file, sources.overrides, parse_vary(vary or []), max_parallel, sources.base
    )
    if print_config:
        print_toml(dump_toml(settings))
        return
    if download:
        fetch(settings.model.path)
    options.advise(preset, settings)
    from lorasmith.training.multi.sweep import train_sweep

    _show(settings, train_sweep(settings, resume, break_lock=break_lock))


def _show(settings: "SweepConfig", results: Sequence["SweepResult"]) -> None:
    """Print the results of all LoRAs, and notes on the differences."""
    from lorasmith.reports.pages.sweep import result_rows
    from lorasmith.reports.sweep_results import make_notes
    from lorasmith.runs.sweep_paths import SweepPaths

    ranked = any(result.gain is not None for result in results)
    paths = SweepPaths.from_config(settings)
    table = Table(title=f"LoRAs in {paths.main.folder}", title_justify="left")
    table.add_column("file", overflow="fold")
    for title in (("validation gain", "at step") if ranked else ()) + ("training loss", "time"):
        table.add_column(title, justify="right")
    for row in result_rows(results):
        gain = (row.gain, row.step) if ranked else ()
        table.add_row(row.file, *gain, row.loss, row.time)
    open_console().print(table)
    for note in make_notes(settings, results):
        print_line(f"{note.title}. {note.evidence}")
    print_line(f"side by side: {paths.html_page}")
