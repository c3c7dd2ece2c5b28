"""Telling that memory ran out, and whether a disk has room."""

import shutil
from pathlib import Path

import torch

from lorasmith.core.errors import OutputError

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def empty_gpu_cache() -> None:
    """Give what is left over on the GPU back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def limit_gpu_memory(device: torch.device, limit: float | None) -> None:
    """Let this process take no more of a CUDA device's memory; None lifts the limit.

    Args:
        device: the device; others have no limit.
        limit: bytes.
    """
    if device.type != "cuda":
        return
    number = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(number).total_memory
    share = 1.0 if limit is None else min(1.0, limit / total)
    torch.cuda.set_per_process_memory_fraction(share, number)


def require_disk_space(folder: Path, needed: int, what: str) -> None:
    """Make sure that a disk has room.

    Args:
        folder: a folder, or one that will be made.
        needed: bytes.
        what: what they are for.

    Raises:
        OutputError: there is less room; both numbers are named.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OutputError(
            f"{folder}: {what} need {needed} bytes ({_short(needed)}) and the disk has {free} "
            f"({_short(free)}); make room or choose another --out"
        )


def _short(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
