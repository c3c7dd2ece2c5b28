"""Work that may go on beside other work on a GPU, where a graph of it is being recorded.

A recorded step knows what depends on what: small products whose results are needed late then run
beside large ones, and fill what these leave of the GPU. Outside of a recording everything is done
in its order, since keeping streams in step would cost the host more than is gained.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import torch

Result = TypeVar("Result")


class SideStream:
    """A context manager: what is done in its block may go on beside what follows it.

    The block's results may be used by other work after ``join``, and what was marked by ``mark``
    after ``wait``. Branches of different numbers go on beside one another.
    """

    def __init__(self, number: int, like: torch.Tensor) -> None:
        """Prepare one on the device of a tensor."""
        self._side: torch.cuda.Stream | None = None
        self._marked: torch.cuda.Event | None = None
        if like.is_cuda and torch.cuda.is_current_stream_capturing():
            self._side = _stream(like.device, number)
            self._inside = torch.cuda.stream(self._side)

    def __enter__(self) -> "SideStream":
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(self._side.device))
            self._inside.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._side is not None:
            self._inside.__exit__(kind, error, trace)

    def mark(self) -> None:
        """Remember what was done in the block until now."""
        if self._side is not None:
            self._marked = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._marked.record(self._side)

    def wait(self) -> None:
        """Let what follows come after what was marked."""
        if self._side is not None and self._marked is not None:
            torch.cuda.current_stream(self._side.device).wait_event(self._marked)

    def join(self) -> None:
        """Let what follows come after the whole block."""
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)


def run_concurrently(works: Sequence[Callable[[], Result]], like: torch.Tensor) -> list[Result]:
    """Return what some pieces of work give that do not need one another's results.

    Args:
        works: the pieces, at least one.
        like: a tensor on the device where they are done.
    """
    first, *others = works
    branches = [SideStream(_FIRST + number, like) for number in range(len(others))]
    found = []
    for branch, work in zip(branches, others, strict=True):
        with branch:
            found.append(work())
    own = first()
    for branch in branches:
        branch.join()
    return [own, *found]


_FIRST = 2
"""Number of the first branch of ``beside``: the numbers below it are for use within its work."""
_STREAMS: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """Return a stream of its own for each number."""
    if (device, number) not in _STREAMS:
        _STREAMS[device, number] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _STREAMS[device, number]
