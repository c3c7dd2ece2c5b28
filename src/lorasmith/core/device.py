"""Devices, dtypes and seeds."""

from typing import Literal

import torch

from lorasmith.core.errors import ConfigError

Precision = Literal["fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the torch device for ``name``; ``"auto"`` prefers CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: the named device does not exist on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device: {name!r} is not a device; use auto, cpu, cuda or mps"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} is not possible: this machine has no usable CUDA GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device: there is no {name}; this machine has {count} CUDA GPU(s)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device: {name!r} is not possible: this machine has no MPS device")
    return device


def gather_to_device(
    table: torch.Tensor, indices: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Return rows of a table on a device without waiting for the device.

    Rows of a table on the CPU are copied to a CUDA device through pinned memory: only such copies
    run asynchronously.

    Args:
        table: ``[N, ...]``.
        indices: of the rows, int64 ``[B]`` on the table's device.
        device: of the result.
    """
    if table.device.type != "cpu" or device.type != "cuda":
        return to_device_async(table[indices], device)
    pinned = torch.empty((len(indices), *table.shape[1:]), dtype=table.dtype, pin_memory=True)
    torch.index_select(table, 0, indices, out=pinned)
    return pinned.to(device, non_blocking=True)


def compute_dtype(precision: Precision) -> torch.dtype:
    """Return the torch dtype of a mixed-precision setting."""
    return _DTYPES[precision]


def to_device_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a small tensor from the CPU to a device without waiting for the device.

    CUDA has read pageable memory when the call returns, so the tensor may be changed at once.
    """
    return tensor.to(device, non_blocking=device.type == "cuda" and tensor.device.type == "cpu")


def derive_seed(seed: int, *stream: int) -> int:
    """Mix a seed with a position in a stream of samples (a step, a rank) into a new seed.

    Sample k can then be repeated without the k-1 samples before it, which makes resuming exact.
    """
    state = seed & 0xFFFFFFFFFFFFFFFF
    for position in stream:
        state = _splitmix64(state ^ _splitmix64(position & 0xFFFFFFFFFFFFFFFF))
    return state & 0x7FFFFFFFFFFFFFFF


def make_generator(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded with ``derive_seed(seed, *stream)``.

    Samples on the CPU are the same everywhere; those on a GPU are faster but differ by model.
    """
    return torch.Generator(device).manual_seed(derive_seed(seed, *stream))


def _splitmix64(value: int) -> int:
    """One step of SplitMix64 (Steele, Lea, Flood 2014), which scatters nearby integers."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
