"""Recorded work gives what it gives normally; what cannot be recorded is done all the same."""

import pytest
import torch

from lorasmith.core.errors import LorasmithWarning
from lorasmith.loops.cuda_graphs import CudaGraphCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def inputs(size: int, seed: int) -> list[torch.Tensor]:
    draws = torch.Generator("cuda").manual_seed(seed)
    return [torch.randn(size, 4, device="cuda", generator=draws)]


def test_replays_give_what_the_work_gives() -> None:
    weight = torch.zeros(4, device="cuda")

    def work(given):
        weight.add_(given[0].mean(dim=0))
        return weight * 2.0

    recorder, expected = CudaGraphCache(torch.device("cuda")), torch.zeros(4, device="cuda")
    for step in range(12):
        size = 3 + step % 2
        given = inputs(size, step)
        expected += given[0].mean(dim=0)
        found = recorder(size, given, work)
        torch.testing.assert_close(found, expected * 2.0)
    assert len(recorder) == 2


def test_what_cannot_be_recorded_is_done_normally_and_random_numbers_still_work() -> None:
    def work(given):
        total = given[0].sum()
        torch.rand(3, device="cuda")
        return total + float(total)  # asks the device

    recorder = CudaGraphCache(torch.device("cuda"))
    found = [recorder(0, inputs(3, step), work) for step in range(2)]
    with pytest.warns(LorasmithWarning, match="one by one"):
        found.append(recorder(0, inputs(3, 2), work))
    found.append(recorder(0, inputs(3, 3), work))
    for step, one in enumerate(found):
        torch.testing.assert_close(one, inputs(3, step)[0].sum() * 2.0)
    assert len(recorder) == 0
    torch.manual_seed(3)
    first = torch.rand(5, device="cuda")
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(5, device="cuda"))


def test_recordings_make_room_where_memory_runs_out() -> None:
    def work(given):
        if given[0].shape[0] == 5 and len(recorder):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return given[0].sum()

    recorder = CudaGraphCache(torch.device("cuda"))
    for step in range(3):
        recorder(3, inputs(3, step), work)
    assert len(recorder) == 1
    with pytest.warns(LorasmithWarning, match="memory that recordings hold"):
        found = recorder(5, inputs(5, 0), work)
    torch.testing.assert_close(found, inputs(5, 0)[0].sum())
    assert len(recorder) == 0
