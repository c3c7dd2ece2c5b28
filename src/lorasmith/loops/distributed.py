"""Devices and processes, through accelerate."""

from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from lorasmith.core.device import Precision
from lorasmith.core.errors import ConfigError, LorasmithError

_TIMEOUT = timedelta(hours=6)
"""How long processes wait for each other while the main one encodes images or previews."""


def create_accelerator(
    precision: Precision, device: str, section: str, cuda_graph: bool = False
) -> Accelerator:
    """Create the accelerator of this process for a run's device and precision.

    Args:
        precision: of the networks.
        device: ``cpu``, or anything else for the device that accelerate selects.
        section: the settings' section, for messages.
        graph: whether steps shall be recorded as CUDA graphs.

    Raises:
        ConfigError: the device does not support the settings.
    """
    # accelerate keeps the first precision and device of a process and refuses others, but two runs
    # in one process (a notebook, the tests) may differ.
    AcceleratorState._reset_state(reset_partial_state=True)
    timeout = InitProcessGroupKwargs(timeout=_TIMEOUT)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device == "cpu",
        kwargs_handlers=[timeout],
    )
    device_type = accelerator.device.type
    if precision == "fp16" and device_type == "cpu":
        raise ConfigError(f"{section}.mixed_precision: fp16 needs a GPU; use bf16 or fp32")
    if cuda_graph and (device_type != "cuda" or accelerator.num_processes > 1):
        raise ConfigError(
            f"{section}.cuda_graph: a CUDA graph needs exactly one CUDA GPU; set it to false"
        )
    if cuda_graph and precision == "fp16":
        raise ConfigError(
            f"{section}.cuda_graph: fp16 loss scaling cannot be recorded; use bf16 or fp32"
        )
    return accelerator


def all_reduce_sum(accelerator: Accelerator, tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors of one dtype by their sums over all processes, in one all-reduce."""
    if accelerator.num_processes == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    summed = accelerator.reduce(flat, reduction="sum")
    for tensor, piece in zip(tensors, summed.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))


def call_on_main(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Call a function in the main process, while the others wait; an error is raised in all.

    Raises:
        LorasmithError: the function raised it.
    """
    errors: list[LorasmithError | None] = [None]
    if accelerator.is_main_process:
        try:
            work()
        except LorasmithError as error:
            if accelerator.num_processes == 1:
                raise
            errors = [error]
    if accelerator.num_processes > 1:
        broadcast_object_list(errors)
    if errors[0] is not None:
        raise errors[0]
