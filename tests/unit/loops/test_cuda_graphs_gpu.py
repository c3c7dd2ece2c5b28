"""Replayed graphs give what eager work gives; what cannot be captured runs eagerly."""

import pytest
import torch

from lorasmith.core.errors import LorasmithWarning
from lorasmith.loops.cuda_graphs import CudaGraphCache

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def make_inputs(size: int, seed: int) -> list[torch.Tensor]:
    rng = torch.Generator("cuda").manual_seed(seed)
    return [torch.randn(size, 4, device="cuda", generator=rng)]


def test_replays_give_the_results_of_eager_work() -> None:
    weight = torch.zeros(4, device="cuda")

    def work(inputs):
        weight.add_(inputs[0].mean(dim=0))
        return weight * 2.0

    graphs, expected = CudaGraphCache(CUDA), torch.zeros(4, device="cuda")
    for step in range(12):
        size = 3 + step % 2
        inputs = make_inputs(size, step)
        expected += inputs[0].mean(dim=0)
        torch.testing.assert_close(graphs(size, inputs, work), expected * 2.0)
    assert len(graphs) == 2


def test_registered_generators_are_read_when_replaying() -> None:
    rng = torch.Generator("cuda")
    graphs = CudaGraphCache(CUDA, warmup_calls=3, generators=[rng], can_fall_back=False)

    def work(inputs):
        return inputs[0] + torch.rand(3, 4, device="cuda", generator=rng)

    results = []
    for seed in (1, 2, 3, 4, 5, 1, 2):
        rng.manual_seed(seed)
        results.append(graphs("key", make_inputs(3, 0), work).clone())
    assert len(graphs) == 1
    assert torch.equal(results[5], results[0])
    assert torch.equal(results[6], results[1])
    assert not torch.equal(results[4], results[3])


def test_oldest_graph_is_evicted() -> None:
    graphs = CudaGraphCache(CUDA, max_graphs=1, evict_oldest=True)
    for size in (3, 5, 3):
        for step in range(4):
            total = graphs(size, make_inputs(size, step), lambda inputs: inputs[0].sum())
            torch.testing.assert_close(total, make_inputs(size, step)[0].sum())
        assert len(graphs) == 1


def reads_the_device(inputs):
    total = inputs[0].sum()
    torch.rand(3, device="cuda")
    return total + float(total)


def test_work_that_cannot_be_captured_runs_eagerly_and_random_numbers_still_work() -> None:
    graphs = CudaGraphCache(CUDA)
    results = [graphs(0, make_inputs(3, step), reads_the_device) for step in range(2)]
    with pytest.warns(LorasmithWarning, match="one by one"):
        results.append(graphs(0, make_inputs(3, 2), reads_the_device))
    results.append(graphs(0, make_inputs(3, 3), reads_the_device))
    for step, result in enumerate(results):
        torch.testing.assert_close(result, make_inputs(3, step)[0].sum() * 2.0)
    assert len(graphs) == 0
    torch.manual_seed(3)
    first = torch.rand(5, device="cuda")
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(5, device="cuda"))


def test_graphs_are_dropped_when_memory_runs_out() -> None:
    def work(inputs):
        if inputs[0].shape[0] == 5 and len(graphs):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inputs[0].sum()

    graphs = CudaGraphCache(CUDA)
    for step in range(3):
        graphs(3, make_inputs(3, step), work)
    assert len(graphs) == 1
    with pytest.warns(LorasmithWarning, match="memory of the graphs"):
        result = graphs(5, make_inputs(5, 0), work)
    torch.testing.assert_close(result, make_inputs(5, 0)[0].sum())
    assert len(graphs) == 0
