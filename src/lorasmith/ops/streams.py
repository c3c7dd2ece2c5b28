"""Work that may run concurrently on a GPU while a CUDA graph is being captured.

A captured graph knows what depends on what: small matrix products whose results are needed late
run beside large ones and fill what these leave of the GPU. Outside a capture everything runs in
order, because synchronizing streams would cost the host more time than it saves.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import torch

T = TypeVar("T")


class SideStream:
    """A context manager whose block may run concurrently with the code after it.

    Results of the block may be used after ``join``, those before a ``mark`` already after ``wait``.
    Streams of different indices run concurrently with each other.
    """

    def __init__(self, index: int, like: torch.Tensor) -> None:
        """Prepare a stream on the device of the tensor ``like``."""
        self._stream: torch.cuda.Stream | None = None
        self._event: torch.cuda.Event | None = None
        if like.is_cuda and torch.cuda.is_current_stream_capturing():
            self._stream = _cached_stream(like.device, index)
            self._context = torch.cuda.stream(self._stream)

    def __enter__(self) -> "SideStream":
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            self._context.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._context.__exit__(kind, error, trace)

    def mark(self) -> None:
        """Record an event after what the block has done so far."""
        if self._stream is not None:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(self._stream)

    def wait(self) -> None:
        """Make the current stream wait for what was marked."""
        if self._stream is not None and self._event is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._event)

    def join(self) -> None:
        """Make the current stream wait for the full block."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


def run_concurrently(functions: Sequence[Callable[[], T]], like: torch.Tensor) -> list[T]:
    """Return the results of functions that do not depend on each other.

    Args:
        functions: at least one.
        like: a tensor on the device where they run.
    """
    first, *others = functions
    streams = [SideStream(_FIRST_INDEX + index, like) for index in range(len(others))]
    results = []
    for stream, function in zip(streams, others, strict=True):
        with stream:
            results.append(function())
    first_result = first()
    for stream in streams:
        stream.join()
    return [first_result, *results]


_FIRST_INDEX = 2
"""The first stream of ``run_concurrently``; lower indices are free for use inside its functions."""
_STREAMS: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


def _cached_stream(device: torch.device, index: int) -> torch.cuda.Stream:
    if (device, index) not in _STREAMS:
        _STREAMS[device, index] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _STREAMS[device, index]
