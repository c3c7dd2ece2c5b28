"""The devices and processes that a run is spread over, as accelerate sees them."""

from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from lorasmith.core.device import Precision
from lorasmith.core.errors import ConfigError

_PATIENCE = timedelta(hours=6)
"""How long processes wait for each other: one alone encodes pictures and draws previews."""


def create_accelerator(
    precision: Precision, device: str, section: str, cuda_graph: bool = False
) -> Accelerator:
    """Return accelerate's view of this process for a run's device and precision.

    Args:
        precision: what the networks compute in.
        device: ``cpu``, or anything else for what accelerate finds.
        section: name of the settings' section, for messages.
        graph: whether steps shall be recorded as CUDA graphs.

    Raises:
        ConfigError: the device cannot do what the settings ask for.
    """
    # accelerate keeps the first precision and device that a process asked for and refuses others;
    # two runs in one process (a notebook, the tests) may well differ.
    AcceleratorState._reset_state(reset_partial_state=True)
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device == "cpu",
        kwargs_handlers=[patience],
    )
    kind = accelerator.device.type
    if precision == "fp16" and kind == "cpu":
        raise ConfigError(f"{section}.mixed_precision: fp16 needs a GPU; use bf16 or fp32")
    if cuda_graph and (kind != "cuda" or accelerator.num_processes > 1):
        raise ConfigError(
            f"{section}.cuda_graph: a CUDA graph needs exactly one CUDA GPU; set it to false"
        )
    if cuda_graph and precision == "fp16":
        raise ConfigError(
            f"{section}.cuda_graph: fp16 loss scaling cannot be recorded; use bf16 or fp32"
        )
    return accelerator


def all_reduce_sum(accelerator: Accelerator, tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors of one dtype by their sums over all processes, in one exchange."""
    if accelerator.num_processes == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    summed = accelerator.reduce(flat, reduction="sum")
    for tensor, part in zip(tensors, summed.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def any_process(accelerator: Accelerator, wish: bool) -> bool:
    """Tell whether any process wishes it; all get the same answer. Waits for the device."""
    if accelerator.num_processes == 1:
        return wish
    count = torch.tensor([int(wish)], device=accelerator.device)
    return bool(accelerator.reduce(count, reduction="sum").item() > 0)
