"""Ctrl-C that finishes the step: the first asks, the second insists."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked the loop to stop."""

    def __init__(self) -> None:
        self.is_requested = False


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """While the block runs, the first SIGINT sets ``asked``; a second one raises KeyboardInterrupt.

    Outside the main thread signals cannot be caught, and the request simply never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.is_requested:
            raise KeyboardInterrupt
        request.is_requested = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
