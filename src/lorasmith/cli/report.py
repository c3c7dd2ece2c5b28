"""``lorasmith report``: a run's page, written again from the files of its folder."""

from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.output import print_line


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("report")(report)


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder, or its name if that is in loras/."),
    ],
) -> None:
    """Write a training run's report.html again, from the files in its folder.

    One page with curves, preview images, settings and advice that needs no other file and no
    network. `train` writes it at the end; this command also works while a run continues, and
    after one that was stopped.

    Example: `lorasmith report loras/inkmono`
    """
    from lorasmith.reports.pages.write_pages import write_pages
    from lorasmith.runs.paths import RunPaths

    folder = run.expanduser()
    # RunPaths searches for a name without a folder in loras/ only, but it may be a folder here.
    name = str(folder.absolute() if folder.is_dir() else folder)
    for page in write_pages(RunPaths.from_name(name)):
        print_line(page)
