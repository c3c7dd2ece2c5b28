"""Whether this package's GPU kernels, written in Triton, can be compiled and run."""

import warnings
from functools import cache

import torch

from lorasmith.core.errors import LorasmithWarning

_MIN_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs (Ampere) that support what the kernels use."""


@cache
def has_triton() -> bool:
    """Return whether Triton is installed; it comes with torch for CUDA on Linux."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def is_available(device: torch.device) -> bool:
    """Return whether the kernels work on a device, after running a small one.

    Triton compiles a kernel when it is first used and needs a C compiler for that. If there is
    none, or anything else fails, a warning says so and torch's own operations are used.
    """
    if device.type != "cuda" or not has_triton():
        return False
    if torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return False
    try:
        _run_probe(device)
    except Exception as error:  # noqa: BLE001 (whatever it is: training works without kernels)
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        warnings.warn(
            f"training is slower than it could be, GPU kernels cannot be compiled: {reason}",
            LorasmithWarning,
            stacklevel=2,
        )
        return False
    return True


def _run_probe(device: torch.device) -> None:
    """Compile and run a kernel.

    Raises:
        RuntimeError: its result is wrong.
    """
    from lorasmith.ops.triton_kernels import probe as triton_probe

    x = torch.arange(4.0, device=device)
    with torch.cuda.device(device):
        triton_probe.double[(1,)](x, block=4)
    if x.tolist() != [0.0, 2.0, 4.0, 6.0]:
        raise RuntimeError("a test kernel returned a wrong result")
