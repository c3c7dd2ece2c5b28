"""Work on a GPU that is recorded once for each shape of its input, and replayed from then on.

Training steps of small batches spend most of their time launching kernels one by one; a replay
launches all of them at once. What is recorded must not read a value of the device on the host;
what it decides in Python must be part of the key that its recordings are told apart by.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from lorasmith.core.errors import LorasmithWarning
from lorasmith.loops.memory import empty_gpu_cache, is_out_of_memory

R = TypeVar("R")
Tensors = Sequence[torch.Tensor]

_WARM = 2
"""Times that input of a new shape is worked on normally, so that libraries settle on kernels."""
_MOST = 24
"""Recordings kept at most; each holds some tens of megabytes on the device."""


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    result: Any


class CudaGraphCache:
    """Does work on the device, normally at first and from recordings later.

    All recordings share one pool of memory, so that many need hardly more than the largest.
    """

    def __init__(self, device: torch.device, on: bool = True) -> None:
        """Prepare it; nothing is recorded yet.

        Args:
            device: where the work is done. Nothing but CUDA can record.
            on: False never records.
        """
        self._device = device
        self._on = on and device.type == "cuda"
        self._seen: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._told = False
        self._pool: Any = None
        self._side: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        return len(self._recordings)

    def __call__(self, key: Hashable, inputs: Tensors, work: Callable[[Tensors], R]) -> R:
        """Return ``work(inputs)``, or what a replay of it leaves.

        Tensors in the result of a replay are overwritten by the next one.

        Args:
            key: all that the work depends on besides the inputs' values: equal keys mean equal
                kernels on inputs of equal shapes and dtypes.
            inputs: tensors on the device.
            work: called with the inputs, or with copies of them at addresses that stay.
        """
        if not self._on:
            return work(inputs)
        found = self._recordings.get(key)
        if found is None:
            seen = self._seen.get(key, 0)
            self._seen[key] = seen + 1
            if seen < _WARM or self._full():
                return self._with_room(inputs, work)
            found = self._record(inputs, work)
            if found is None:
                return work(inputs)
            self._recordings[key] = found
        for kept, new in zip(found.inputs, inputs, strict=True):
            kept.copy_(new)
        found.graph.replay()
        result: R = found.result
        return result

    def _full(self) -> bool:
        """Tell whether there are as many recordings as may be; say so the first time."""
        if len(self._recordings) < _MOST:
            return False
        if not self._told:
            self._told = True
            warnings.warn(
                f"{_MOST} sizes of batches are recorded; steps of others launch their kernels one "
                "by one, which is slower: a larger data.bucket_reso_steps makes fewer sizes",
                LorasmithWarning,
                stacklevel=4,
            )
        return True

    def _with_room(self, inputs: Tensors, work: Callable[[Tensors], R]) -> R:
        """Work normally; where memory runs out, without recordings, which hold some of it."""
        try:
            return self._normally(inputs, work)
        except (RuntimeError, MemoryError) as error:
            if not self._recordings or not is_out_of_memory(error):
                raise
            self._stop("the memory that recordings hold was needed")
        return self._normally(inputs, work)

    def _normally(self, inputs: Tensors, work: Callable[[Tensors], R]) -> R:
        """Work on a stream of its own, as while recording: the default one cannot be recorded."""
        if self._side is None:
            self._side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = work(inputs)
        current.wait_stream(self._side)
        return result

    def _record(self, inputs: Tensors, work: Callable[[Tensors], R]) -> _Recording | None:
        """Record the work without doing it; None, and never again, where that is impossible."""
        kept = [one.clone() for one in inputs]
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                return _Recording(graph, kept, work(kept))
        except RuntimeError as error:
            self._stop(str(error).strip().partition("\n")[0][:200])
            _restore_generator(self._device)
            return None

    def _stop(self, reason: str) -> None:
        """Let go of all recordings and make no more."""
        self._on = False
        torch.cuda.synchronize(self._device)
        self._recordings.clear()
        empty_gpu_cache()
        warnings.warn(
            "steps are not recorded as CUDA graphs any more and launch their kernels one by one, "
            f"which is slower: {reason}",
            LorasmithWarning,
            stacklevel=4,
        )


def _restore_generator(device: torch.device) -> None:
    """Give the device's generator a state of its own again: a recording that failed keeps it."""
    number = torch.cuda.current_device() if device.index is None else device.index
    own = torch.cuda.default_generators[number]
    fresh = torch.Generator(device).manual_seed(own.initial_seed())
    own.graphsafe_set_state(fresh.graphsafe_get_state())
