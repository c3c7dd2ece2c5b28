"""Memory and disk space: running out of them, and limits."""

import shutil
from pathlib import Path

import torch

from lorasmith.core.errors import OutputError

_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out, on a GPU or on the host.

    Allocations outside of torch's caching allocator (cuBLAS, CUDA graphs, oneDNN) raise a plain
    RuntimeError that only its message identifies.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in message for part in _MESSAGES)


def empty_gpu_cache() -> None:
    """Return cached memory to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def limit_gpu_memory(device: torch.device, max_bytes: float | None) -> None:
    """Limit this process's share of a CUDA device's memory; other devices have no limit.

    Args:
        device: the device.
        max_bytes: None removes the limit.
    """
    if device.type != "cuda":
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    total_bytes = torch.cuda.get_device_properties(index).total_memory
    fraction = 1.0 if max_bytes is None else min(1.0, max_bytes / total_bytes)
    torch.cuda.set_per_process_memory_fraction(fraction, index)


def require_disk_space(folder: Path, num_bytes: int, purpose: str) -> None:
    """Check that a disk has space.

    Args:
        folder: a folder that may not exist yet.
        num_bytes: that will be written.
        purpose: what they are for, in the plural.

    Raises:
        OutputError: there is less space; both numbers are named.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise OutputError(
            f"{folder}: {purpose} need {num_bytes} bytes ({_format_bytes(num_bytes)}) and the disk "
            f"has {free} ({_format_bytes(free)}); make room or choose another --out"
        )


def _format_bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
