"""Signals that ask a program to end: Ctrl-C, SIGTERM of schedulers, SIGHUP of closed terminals."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

TERMINATION_SIGNALS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Besides Ctrl-C (SIGINT); Windows has no SIGHUP."""


class StoppedBySignal(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, message: str = "", signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = int(signal_number)


def exit_status(error: BaseException) -> int:
    """Return the exit status after a `KeyboardInterrupt`: 143 (SIGTERM), 129 (SIGHUP), or 130."""
    return 128 + int(getattr(error, "signal_number", signal.SIGINT))


class RaisingHandler:
    """Raises `StoppedBySignal` for the first signal; later ones must not disturb the tidying up."""

    def __init__(self) -> None:
        self.is_done = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if signal_number == getattr(signal, "SIGHUP", None):
            silence_lost_terminal()
        if not self.is_done:
            self.is_done = True
            raise StoppedBySignal("", signal_number)


@contextmanager
def raise_on_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `StoppedBySignal` in the block, as Ctrl-C does.

    Those that are ignored, as SIGHUP is under ``nohup``, or that the program handles itself, are
    left as they are. Outside the main thread nothing can be handled.
    """
    numbers = [number for number in TERMINATION_SIGNALS if is_unhandled(number)]
    with handle_signals(RaisingHandler(), numbers):
        yield


@contextmanager
def handle_signals(handler: Any, numbers: list[int]) -> Iterator[None]:
    """Handle signals in the block, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, former in previous:
            signal.signal(number, former)


def is_unhandled(signal_number: int) -> bool:
    """Return whether a signal would end the program at once, or be raised by this module."""
    handler = signal.getsignal(signal_number)
    return handler is signal.SIG_DFL or isinstance(handler, RaisingHandler)


def silence_lost_terminal() -> None:
    """Throw output away whose terminal is gone: writing there would be an error in any print."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)
