"""Consoles that show names and texts of files as text: nothing in them steers the terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from lorasmith.core.text.terminal import escape_control_characters, shorten

LONGEST_TEXT = 4000
"""Longer texts are shortened, such as a cell of a table."""


class SafeConsole(Console):
    """A console that reads no markup such as ``[/x]`` and escapes control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text, cleaned before tables measure it."""
        plain = shorten(escape_control_characters(text, kept="\n"), LONGEST_TEXT)
        return super().render_str(plain, **{**options, "markup": False, "emoji": False})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is shown; only the console's own control codes reach the terminal."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                text = escape_control_characters(segment.text, kept="\n")
                yield Segment(text, segment.style)


def open_console(stderr: bool = False, file_width: int | None = None) -> Console:
    """Return a console on standard output or standard error.

    Args:
        stderr: whether it is standard error.
        file_width: columns where the output is no terminal; None leaves it to rich.
    """
    console = SafeConsole(stderr=stderr)
    if file_width is None or console.is_terminal:
        return console
    return SafeConsole(stderr=stderr, width=file_width)
