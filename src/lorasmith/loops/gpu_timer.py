"""GPU time measured with CUDA events, without waiting for the device."""

from typing import Any

import torch

_MAX_SPANS = 512
"""Measurements that are collected before the oldest are summed up."""


class GpuTimer:
    """Measures blocks of work on a CUDA device; on other devices it measures nothing.

    Example: ``with timer: launch_work()``, many times, then ``timer.pop_seconds()``.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_enabled = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._has_measurements = False

    def __enter__(self) -> None:
        if not self._is_enabled:
            return
        if len(self._spans) >= _MAX_SPANS:
            self._sum_spans()
        start, end = _event(), _event()
        self._spans.append((start, end))
        start.record(torch.cuda.current_stream(self._device))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._is_enabled:
            return
        if error is not None:
            self._spans.pop()
            return
        self._spans[-1][1].record(torch.cuda.current_stream(self._device))

    def pop_seconds(self) -> float | None:
        """Return the seconds since the last call, once they have passed; None if there are none."""
        self._sum_spans()
        seconds, has_measurements = self._seconds, self._has_measurements
        self._seconds, self._has_measurements = 0.0, False
        return seconds if has_measurements else None

    def _sum_spans(self) -> None:
        if self._spans:
            self._spans[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._spans) / 1e3
            self._has_measurements = True
        self._spans.clear()


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
