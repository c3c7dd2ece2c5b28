"""Processes on the CPU that exchange tensors and flags."""

import os

import pytest
import torch

from helpers.two_processes import in_two_processes
from lorasmith.loops.distributed import all_reduce_sum, any_process, create_accelerator


def exchange() -> int:
    """Return 0 when sums and flags of both processes arrive in this one."""
    accelerator = create_accelerator("fp32", "cpu", "train")
    rank = accelerator.process_index
    tensors = [torch.full((2, 3), 1.0 + rank), torch.tensor([10.0 * rank])]
    all_reduce_sum(accelerator, tensors)
    flags = [any_process(accelerator, flag) for flag in (rank == 1, False)]
    sums = [torch.full((2, 3), 3.0), torch.tensor([10.0])]
    return int(
        accelerator.num_processes != 2
        or flags != [True, False]
        or not all(torch.equal(a, b) for a, b in zip(tensors, sums, strict=True))
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_exchange_sums_and_flags() -> None:
    assert in_two_processes(exchange, start_method="fork") == [0, 0]


def test_single_process_keeps_its_values() -> None:
    accelerator = create_accelerator("fp32", "cpu", "train")
    tensor = torch.ones(3)
    all_reduce_sum(accelerator, [tensor])
    assert tensor.tolist() == [1.0] * 3
    assert any_process(accelerator, True)
    assert not any_process(accelerator, False)
