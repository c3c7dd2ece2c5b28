"""Ctrl-C: the first lets the step finish, the second interrupts it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the loop should stop after the current step."""

    def __init__(self) -> None:
        self.is_requested = False


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Let the first SIGINT set ``is_requested``, and a second one raise KeyboardInterrupt.

    Outside the main thread signals cannot be caught, so nothing is ever requested.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signal_number: int, frame: FrameType | None) -> None:
        if request.is_requested:
            raise KeyboardInterrupt
        request.is_requested = True

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, previous)
