"""Progress bars, shown on terminals only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lorasmith.core.text.console import open_console
from lorasmith.core.text.terminal import escape_control_characters

Advance = Callable[..., None]
"""Call it as ``advance(1)`` or ``advance(1, "loss 0.12")`` to move the bar and set its note."""


@contextmanager
def progress_bar(
    title: str, total: int, done: int = 0, enabled: bool = True, console: Console | None = None
) -> Iterator[Advance]:
    """Show a bar on standard error while the block runs, if that is a terminal.

    Yields a function that advances the bar by a count and may replace the text behind it.
    """
    console = console or open_console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not (enabled and console.is_terminal),
        transient=False,
    ) as bar:
        task = bar.add_task(escape_control_characters(title), total=total, completed=done, note="")

        def advance(count: int = 1, note: str | None = None) -> None:
            if note is None:
                bar.advance(task, count)
            else:
                bar.update(task, advance=count, note=escape_control_characters(note))

        yield advance
