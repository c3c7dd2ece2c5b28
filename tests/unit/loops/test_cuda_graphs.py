"""When graphs are captured, replayed, evicted and given up, with a double of torch's graphs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorasmith.core.errors import LorasmithWarning
from lorasmith.loops import cuda_graphs
from lorasmith.loops.cuda_graphs import CudaGraphCache

CUDA = torch.device("cuda", 0)


class FakeGraph:
    """Records how often it is replayed."""

    captured: list["FakeGraph"]

    def __init__(self) -> None:
        self.replays = 0
        self.generators: list[Any] = []

    def register_generator_state(self, generator: Any) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """The graphs that were captured."""
    graphs: list[FakeGraph] = []

    @contextmanager
    def capture(graph: FakeGraph, pool: Any) -> Iterator[None]:
        yield
        graphs.append(graph)

    stream = SimpleNamespace(wait_stream=lambda _: None)
    doubles: dict[str, Callable[..., Any]] = {
        "CUDAGraph": FakeGraph,
        "graph": capture,
        "graph_pool_handle": lambda: "pool",
        "Stream": lambda _: stream,
        "stream": lambda _: nullcontext(),
        "current_stream": lambda _: stream,
        "synchronize": lambda _: None,
    }
    for name, double in doubles.items():
        monkeypatch.setattr(torch.cuda, name, double)
    monkeypatch.setattr(cuda_graphs, "_restore_default_generator", lambda _: None)
    return graphs


def ones(size: int = 2) -> list[torch.Tensor]:
    return [torch.ones(size)]


def run(graphs: CudaGraphCache, key: str, times: int) -> list[str]:
    """Return whether each call was eager, or a replay (whose capture is part of the first)."""
    kinds = []
    for _ in range(times):
        calls: list[int] = []
        graphs(key, ones(), lambda inputs, calls=calls: calls.append(1))
        kinds.append("eager" if calls and key not in graphs._graphs else "replay")
    return kinds


@pytest.mark.parametrize("warmup_calls", [0, 2, 3])
def test_work_is_captured_after_the_warmup_calls(
    captured: list[FakeGraph], warmup_calls: int
) -> None:
    graphs = CudaGraphCache(CUDA, warmup_calls=warmup_calls)
    kinds = run(graphs, "a", warmup_calls + 3)
    assert kinds == ["eager"] * warmup_calls + ["replay"] * 3
    assert [graph.replays for graph in captured] == [3]


@pytest.mark.usefixtures("captured")
def test_replays_copy_their_inputs_into_the_captured_ones() -> None:
    graphs = CudaGraphCache(CUDA, warmup_calls=0)
    result = graphs("a", ones(), lambda inputs: inputs[0])
    assert graphs("a", [torch.full((2,), 5.0)], lambda inputs: inputs[0]) is result
    assert torch.equal(result, torch.full((2,), 5.0))


def test_each_key_has_its_graph(captured: list[FakeGraph]) -> None:
    graphs = CudaGraphCache(CUDA, warmup_calls=1)
    for key in ("a", "b", "a", "b", "a"):
        run(graphs, key, 1)
    assert [graph.replays for graph in captured] == [2, 1]
    assert len(graphs) == 2


def test_generators_are_registered(captured: list[FakeGraph]) -> None:
    rng = torch.Generator()
    graphs = CudaGraphCache(CUDA, warmup_calls=0, generators=[rng])
    run(graphs, "a", 1)
    assert captured[0].generators == [rng]


@pytest.mark.usefixtures("captured")
def test_new_keys_run_eagerly_when_the_cache_is_full() -> None:
    graphs = CudaGraphCache(CUDA, warmup_calls=1, max_graphs=1)
    run(graphs, "a", 2)
    with pytest.warns(LorasmithWarning, match="CUDA graphs exist for 1 sizes") as warned:
        assert run(graphs, "b", 4) == ["eager"] * 4
    assert len(warned) == 1
    assert run(graphs, "a", 1) == ["replay"]


def test_new_key_evicts_the_oldest_graph(captured: list[FakeGraph]) -> None:
    graphs = CudaGraphCache(CUDA, warmup_calls=1, max_graphs=1, evict_oldest=True)
    assert run(graphs, "a", 2) == ["eager", "replay"]
    assert run(graphs, "b", 2) == ["eager", "replay"]
    assert run(graphs, "a", 2) == ["eager", "replay"]
    assert len(graphs) == 1
    assert len(captured) == 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_is_captured_on_a_cpu_or_when_disabled(
    device: str, captured: list[FakeGraph]
) -> None:
    graphs = CudaGraphCache(torch.device(device), enabled=device == "cpu", warmup_calls=0)
    assert run(graphs, "a", 3) == ["eager"] * 3
    assert not captured


def fails_in_capture(graphs: CudaGraphCache) -> Callable[[Any], str]:
    def work(_: Any) -> str:
        if graphs._is_enabled:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        return "eager"

    return work


@pytest.mark.usefixtures("captured")
def test_work_that_cannot_be_captured_runs_eagerly_from_then_on() -> None:
    graphs = CudaGraphCache(CUDA, warmup_calls=0)
    work = fails_in_capture(graphs)
    with pytest.warns(LorasmithWarning, match="slower: operation not permitted when stream is ca"):
        assert graphs("a", ones(), work) == "eager"
    assert graphs("a", ones(), work) == "eager"
    assert len(graphs) == 0


@pytest.mark.usefixtures("captured")
def test_work_that_cannot_be_captured_is_an_error_without_fallback() -> None:
    graphs = CudaGraphCache(CUDA, warmup_calls=0, can_fall_back=False)
    with pytest.raises(RuntimeError, match="not permitted"):
        graphs("a", ones(), fails_in_capture(graphs))


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("can_fall_back", [True, False])
def test_graphs_give_way_when_memory_runs_out(can_fall_back: bool) -> None:
    graphs = CudaGraphCache(CUDA, warmup_calls=1, can_fall_back=can_fall_back)
    run(graphs, "a", 2)

    def work(_: Any) -> str:
        if len(graphs):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "eager"

    if not can_fall_back:
        with pytest.raises(torch.OutOfMemoryError):
            graphs("b", ones(), work)
        return
    with pytest.warns(LorasmithWarning, match="memory of the graphs was needed"):
        assert graphs("b", ones(), work) == "eager"
    assert len(graphs) == 0
