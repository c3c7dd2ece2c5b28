"""How long a GPU was at work, told by events in its own queue, without waiting for it."""

from typing import Any

import torch

_MOST = 512
"""Measurements that are kept until somebody asks."""


class GpuTimer:
    """Measures blocks of work on a CUDA device; on others it measures nothing.

    Example: ``with clock: launch_work()``, many times, then ``clock.busy()``.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._any = False

    def __enter__(self) -> None:
        if not self._on:
            return
        if len(self._spans) >= _MOST:
            self._count()
        start, end = _event(), _event()
        self._spans.append((start, end))
        start.record(torch.cuda.current_stream(self._device))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._on:
            return
        if error is not None:
            self._spans.pop()
            return
        self._spans[-1][1].record(torch.cuda.current_stream(self._device))

    def pop_seconds(self) -> float | None:
        """Return the seconds of work since the last call, and wait for its end; None if none."""
        self._count()
        seconds, found = self._seconds, self._any
        self._seconds, self._any = 0.0, False
        return seconds if found else None

    def _count(self) -> None:
        if self._spans:
            self._spans[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._spans) / 1e3
            self._any = True
        self._spans.clear()


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
