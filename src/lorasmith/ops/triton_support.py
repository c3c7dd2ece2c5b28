"""Whether own GPU kernels, which are written in Triton, can be compiled and run here."""

import warnings
from functools import cache

import torch

from lorasmith.core.errors import LorasmithWarning

_LEAST = (8, 0)
"""Compute capability from which they are used: older GPUs do not have what they are built from."""


@cache
def has_triton() -> bool:
    """Tell whether Triton is there, which comes with torch for CUDA on Linux."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def is_available(device: torch.device) -> bool:
    """Tell whether there are kernels for a device, after trying one.

    Triton compiles them when they are first used, for which it needs a C compiler: where there is
    none, or something else is amiss, a warning says so, and torch's own operations do the work.
    """
    if device.type != "cuda" or not has_triton():
        return False
    if torch.cuda.get_device_capability(device) < _LEAST:
        return False
    try:
        _try(device)
    except Exception as error:  # noqa: BLE001 (whatever it is: training can do without)
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        warnings.warn(
            f"training is slower than it could be, as GPU kernels cannot be compiled: {reason}",
            LorasmithWarning,
            stacklevel=2,
        )
        return False
    return True


def _try(device: torch.device) -> None:
    """Compile and run a kernel.

    Raises:
        RuntimeError: it did not do what it is to do.
    """
    from lorasmith.ops import triton_probe

    x = torch.arange(4.0, device=device)
    with torch.cuda.device(device):
        triton_probe.double[(1,)](x, block=4)
    if x.tolist() != [0.0, 2.0, 4.0, 6.0]:
        raise RuntimeError("a first kernel gave a wrong result")
