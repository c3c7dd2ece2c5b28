"""A whole training step as one CUDA graph: recorded once, replayed without Python in between.

Small networks on a fast GPU spend most of a step launching kernels. Replaying a recorded step
launches them all at once. What is recorded must have fixed shapes and addresses and must not
read a value back to the host.
"""

from collections.abc import Callable, Sequence

import torch

WARMUP = 3
"""Steps run normally before recording, so that libraries settle on their kernels."""


class StepGraph:
    """Runs ``work`` normally a few times, then records it and replays the recording.

    Every call is a real training step. Random numbers come from the generators ``draws``,
    whose seeds may be set anew before each call: the recording reads them at replay.
    """

    def __init__(self, work: Callable[[], None], draws: Sequence[torch.Generator]) -> None:
        self._work = work
        self._draws = draws
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do one step."""
        if self._calls < WARMUP:
            self._calls += 1
            self._warm_up()
            return
        if self._graph is None:
            self._graph = self._record()
        self._graph.replay()

    def _warm_up(self) -> None:
        # Recording needs a stream other than the default one; warm up on such a stream too.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._work()
        torch.cuda.current_stream().wait_stream(side)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for draws in self._draws:
            graph.register_generator_state(draws)
        with torch.cuda.graph(graph):
            self._work()
        return graph
