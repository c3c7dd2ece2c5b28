"""Whether own GPU kernels can be compiled here."""

from functools import cache

import torch


@cache
def has_triton() -> bool:
    """Tell whether Triton is there, which comes with torch for CUDA on Linux."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def available(device: torch.device) -> bool:
    """Tell whether there are kernels for a device."""
    return device.type == "cuda" and has_triton()
