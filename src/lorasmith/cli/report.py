"""``lorasmith report``: a run's page, written again from the files of its folder."""

from pathlib import Path
from typing import Annotated

import typer


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

    One page with curves, preview pictures, settings and advice that needs no other file and no
    network. `train` writes it at the end; this command also works while a run goes on, and after
    one that was stopped.

    Example: `lorasmith report loras/inkmono`
    """
    from lorasmith.reports.features_page import write_all_features_pages
    from lorasmith.reports.run_page import write_run_page
    from lorasmith.reports.sweep_page import write_all_sweep_pages
    from lorasmith.runs.paths import RunPaths

    folder = run.expanduser()
    # RunPaths would look for a bare name in loras/ only, though it may be a folder right here.
    name = str(folder.absolute() if folder.is_dir() else folder)
    paths = RunPaths.from_name(name)
    several = write_all_features_pages(paths) or write_all_sweep_pages(paths)
    for page in several or [write_run_page(paths)]:
        typer.echo(page)
