"""Processes on the CPU that exchange tensors, signals and errors."""

import os

import pytest
import torch
from accelerate import Accelerator

from helpers.two_processes import in_two_processes
from lorasmith.core.errors import OutputError
from lorasmith.loops.distributed import all_reduce_sum, call_on_main, create_accelerator
from lorasmith.loops.stop_signals import StopAgreement


def error_in_all(accelerator: Accelerator) -> str:
    """Return the error that the main process's function raised."""

    def fail() -> None:
        raise OutputError("cannot write x")

    try:
        call_on_main(accelerator, fail)
    except OutputError as error:
        return str(error)
    return ""


def exchange() -> int:
    """Return 0 when sums, signals and errors of both processes arrive in this one."""
    accelerator = create_accelerator("fp32", "cpu", "train")
    rank = accelerator.process_index
    tensors = [torch.full((2, 3), 1.0 + rank), torch.tensor([10.0 * rank])]
    all_reduce_sum(accelerator, tensors)
    agreement = StopAgreement(accelerator)
    signals = [agreement.ask(number) for number in (15 * rank, 0)]
    # Both ask at the same steps, although only the second process has got a signal.
    stops = [agreement.after_step(15 * rank, is_waiting) for is_waiting in (False, True)]
    sums = [torch.full((2, 3), 3.0), torch.tensor([10.0])]
    return int(
        accelerator.num_processes != 2
        or signals != [15, 0]
        or stops[1] != 15
        or error_in_all(accelerator) != "cannot write x"
        or not all(torch.equal(a, b) for a, b in zip(tensors, sums, strict=True))
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_exchange_sums_signals_and_errors() -> None:
    assert in_two_processes(exchange, start_method="fork") == [0, 0]


def test_single_process_keeps_its_values() -> None:
    accelerator = create_accelerator("fp32", "cpu", "train")
    tensor = torch.ones(3)
    all_reduce_sum(accelerator, [tensor])
    assert tensor.tolist() == [1.0] * 3
    assert [StopAgreement(accelerator).after_step(number, False) for number in (15, 0)] == [15, 0]
