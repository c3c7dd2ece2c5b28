"""Ending a loop on request: Ctrl-C, SIGTERM and SIGHUP let the step finish, in all processes."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import torch

from lorasmith.core.signals import (
    TERMINATION_SIGNALS,
    RaisingHandler,
    StoppedBySignal,
    handle_signals,
    is_unhandled,
    silence_lost_terminal,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

_AGREEMENT_SECONDS = 2.0
"""About how often several processes ask each other whether one of them is to stop."""
_MAX_AGREEMENT_STEPS = 1000
_ECHO_SECONDS = 2.0
"""A terminal and the launcher of several processes both pass Ctrl-C on."""


class StopRequest:
    """Whether the loop should stop after the current step, and which signal asked for it."""

    def __init__(self) -> None:
        self.signal_number = 0

    @property
    def is_requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number != 0


class _LoopHandler:
    """Notes the first signal. A second Ctrl-C raises; other repetitions change nothing.

    Shells and schedulers send SIGHUP and SIGTERM more than once.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._time = 0.0

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if signal_number == getattr(signal, "SIGHUP", None):
            silence_lost_terminal()
        if not self._request.is_requested:
            self._request.signal_number = int(signal_number)
            self._time = time.monotonic()
        elif signal_number == signal.SIGINT and not self._is_echo():
            raise StoppedBySignal

    def _is_echo(self) -> bool:
        is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        return is_launched and time.monotonic() - self._time < _ECHO_SECONDS


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Let the first SIGINT, SIGTERM or SIGHUP set ``is_requested``, and a second SIGINT raise.

    SIGTERM and SIGHUP stay as they are where they are ignored (``nohup``) or the program handles
    them. Outside the main thread signals cannot be handled, so nothing is ever requested.
    """
    request = StopRequest()
    numbers = [number for number in TERMINATION_SIGNALS if is_unhandled(number)]
    outer = [signal.getsignal(number) for number in numbers]
    with handle_signals(_LoopHandler(request), [signal.SIGINT, *numbers]):
        try:
            yield request
        finally:
            if request.is_requested:  # a repetition must not disturb what comes after the loop
                for handler in outer:
                    if isinstance(handler, RaisingHandler):
                        handler.is_done = True


class StopAgreement:
    """Lets all processes of a run stop after the same step, whichever got the signal.

    To ask the others waits for the device, so that is done every two seconds or so. All processes
    count the steps in between from the same times, and so ask at the same steps.
    """

    def __init__(self, accelerator: "Accelerator") -> None:
        self._accelerator = accelerator
        self._interval = 1
        self._steps = 0
        self._time = time.monotonic()

    def after_step(self, signal_number: int, is_waiting: bool) -> int:
        """Return the signal to stop for after this step, or 0; call this after every step.

        Args:
            signal_number: what this process has got; 0 for none.
            is_waiting: whether all processes wait for their devices now anyway, for the log.
        """
        if self._accelerator.num_processes == 1:
            return signal_number
        self._steps += 1
        is_due = is_waiting or self._steps >= self._interval
        return self.ask(signal_number) if is_due else 0

    def ask(self, signal_number: int) -> int:
        """Return the signal that any process has got, or 0; call this in all of them.

        Args:
            signal_number: what this process has got; 0 for none.
        """
        if self._accelerator.num_processes == 1:
            return signal_number
        elapsed = time.monotonic() - self._time
        request = torch.tensor(
            [[signal_number, elapsed]], dtype=torch.float32, device=self._accelerator.device
        )
        agreed, seconds = self._accelerator.gather(request).amax(dim=0).tolist()
        steps = int(max(1, self._steps) * _AGREEMENT_SECONDS / max(seconds, 1e-6))
        self._interval = min(max(1, steps), _MAX_AGREEMENT_STEPS)
        self._steps, self._time = 0, time.monotonic()
        return int(agreed)
