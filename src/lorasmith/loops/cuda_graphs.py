"""Work on a GPU that is captured as a CUDA graph for each shape of its inputs, and then replayed.

Training steps of small batches spend most of their time launching kernels one by one; a replay
launches all of them at once. Captured work must not read values of the device on the host, and
whatever it decides in Python must be part of the key that identifies its graph.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from lorasmith.core.errors import LorasmithWarning
from lorasmith.loops.memory import empty_gpu_cache, is_out_of_memory

T = TypeVar("T")
Tensors = Sequence[torch.Tensor]


class _CapturedGraph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    result: Any


class CudaGraphCache:
    """Runs work eagerly at first, then captures it, and replays the graph from then on.

    All graphs share one memory pool, so that many need hardly more than the largest.
    """

    def __init__(
        self,
        device: torch.device,
        enabled: bool = True,
        *,
        warmup_calls: int = 2,
        max_graphs: int = 24,
        evict_oldest: bool = False,
        generators: Sequence[torch.Generator] = (),
        can_fall_back: bool = True,
    ) -> None:
        """Create an empty cache.

        Args:
            device: the device of the work; only CUDA devices capture graphs.
            enabled: False always runs the work eagerly.
            warmup_calls: eager calls for a new key before its graph is captured, in which
                libraries choose their kernels.
            max_graphs: number of graphs; each holds some tens of megabytes on the device.
            evict_oldest: when there are ``max_graphs`` of them, whether a new key replaces the
                oldest graph or runs eagerly.
            generators: sources of random numbers besides the device's default one; they may be
                seeded before each call.
            can_fall_back: whether work that cannot be captured, or for which the graphs leave too
                little memory, runs eagerly, with a warning; otherwise the error is raised. Work
                that fails halfway is then repeated from its start.
        """
        self._device = device
        self._is_enabled = enabled and device.type == "cuda"
        self._warmup_calls = warmup_calls
        self._max_graphs = max_graphs
        self._evict_oldest = evict_oldest
        self._generators = tuple(generators)
        self._can_fall_back = can_fall_back
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, _CapturedGraph] = {}
        self._has_warned = False
        self._pool: Any = None
        self._side_stream: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, key: Hashable, inputs: Tensors, work: Callable[[Tensors], T]) -> T:
        """Return ``work(inputs)``, or what a replay of it leaves.

        The next replay overwrites the tensors of a replay's result.

        Args:
            key: everything that the work depends on besides the values of its inputs: equal keys
                mean equal kernels on inputs of equal shapes and dtypes.
            inputs: tensors on the device.
            work: called with the inputs, or with copies of them whose addresses stay the same.
        """
        if not self._is_enabled:
            return work(inputs)
        captured = self._graphs.get(key)
        if captured is None:
            calls = self._calls.get(key, 0)
            self._calls[key] = calls + 1
            if self._is_full() or calls < self._warmup_calls:
                return self._run_eagerly(inputs, work)
            captured = self._capture(inputs, work)
            if captured is None:
                return work(inputs)
            self._graphs[key] = captured
        for static_input, new_input in zip(captured.inputs, inputs, strict=True):
            static_input.copy_(new_input)
        captured.graph.replay()
        result: T = captured.result
        return result

    def _is_full(self) -> bool:
        """Return whether a new graph has no place; make one if old graphs may go."""
        if len(self._graphs) < self._max_graphs:
            return False
        if self._evict_oldest:
            oldest = next(iter(self._graphs))
            del self._graphs[oldest], self._calls[oldest]
            if not self._graphs:
                self._pool = None  # torch does not reuse a pool without graphs
            return False
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"CUDA graphs exist for {self._max_graphs} sizes of batches; steps of other sizes "
                "launch their kernels one by one, which is slower: a larger "
                "data.bucket_reso_steps makes fewer sizes",
                LorasmithWarning,
                stacklevel=4,
            )
        return True

    def _run_eagerly(self, inputs: Tensors, work: Callable[[Tensors], T]) -> T:
        """Run the work; if memory runs out, once more without graphs, which hold some of it."""
        try:
            return self._run_on_side_stream(inputs, work)
        except (RuntimeError, MemoryError) as error:
            if not (self._graphs and self._can_fall_back and is_out_of_memory(error)):
                raise
            self._disable("the memory of the graphs was needed")
        return self._run_on_side_stream(inputs, work)

    def _run_on_side_stream(self, inputs: Tensors, work: Callable[[Tensors], T]) -> T:
        """Run the work on another stream, like a capture: the default one cannot be captured."""
        if self._side_stream is None:
            self._side_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self._device)
        self._side_stream.wait_stream(current)
        with torch.cuda.stream(self._side_stream):
            result = work(inputs)
        current.wait_stream(self._side_stream)
        return result

    def _capture(self, inputs: Tensors, work: Callable[[Tensors], T]) -> _CapturedGraph | None:
        """Capture the work without running it; None, and never again, if that is impossible."""
        static_inputs = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                return _CapturedGraph(graph, static_inputs, work(static_inputs))
        except RuntimeError as error:
            if not self._can_fall_back:
                raise
            self._disable(str(error).strip().partition("\n")[0][:200])
            _restore_default_generator(self._device)
            return None

    def _disable(self, reason: str) -> None:
        """Drop all graphs and capture no more."""
        self._is_enabled = False
        torch.cuda.synchronize(self._device)
        self._graphs.clear()
        empty_gpu_cache()
        warnings.warn(
            "CUDA graphs are off from now on, steps launch their kernels one by one, which is "
            f"slower: {reason}",
            LorasmithWarning,
            stacklevel=4,
        )


def _restore_default_generator(device: torch.device) -> None:
    """Give the device's generator a new state: a failed capture leaves it in an unusable one."""
    index = torch.cuda.current_device() if device.index is None else device.index
    default = torch.cuda.default_generators[index]
    fresh = torch.Generator(device).manual_seed(default.initial_seed())
    default.graphsafe_set_state(fresh.graphsafe_get_state())
