"""What the package logs, on the terminal of the command line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lorasmith.core.text.console import open_console
from lorasmith.core.text.terminal import escape_control_characters


class _CleanRecord(logging.LogRecord):
    """A record of any library's log: names from files in it do not steer the terminal."""

    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        """Return the message, printable."""
        return escape_control_characters(super().getMessage(), kept="\n")


class TerminalHandler(logging.Handler):
    """Prints records on standard error, a line each, above a progress bar if there is one.

    Notes (level INFO) are for people and are printed on a terminal only.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        console = open_console(stderr=True)  # standard error may be redirected since the last one
        is_note = record.levelno < logging.WARNING
        if is_note and not console.is_terminal:
            return
        prefix = "note" if is_note else record.levelname.lower()
        message = " ".join(record.getMessage().split())
        console.print(f"{prefix}: {message}", highlight=False, soft_wrap=True)


@contextmanager
def log_to_terminal() -> Iterator[None]:
    """Show the package's log on standard error while the block runs."""
    logger, handler = logging.getLogger("lorasmith"), TerminalHandler()
    level, propagate = logger.level, logger.propagate
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_CleanRecord)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
