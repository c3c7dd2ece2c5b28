"""Headers of safetensors files: read without the tensors, and checked.

The format: eight bytes with the header's length (little-endian), the header as a JSON object with
each tensor's dtype, shape and byte range, then the tensors' bytes without gaps. The entry
``__metadata__`` holds strings.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.core.errors import WeightsError

MAX_HEADER_BYTES = 16 * 2**20
"""Longer headers are refused; those of models and LoRAs have 1 to 3 MiB."""
MAX_TENSORS = 50_000
"""Files with more are refused; SDXL with EMA weights has about 7,000."""
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_MAX_DIMENSIONS = 8
_MAX_SIZE = 2**48
"""Sizes and offsets are smaller; this keeps their products small."""
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
}
"""The known dtypes with their bits per number."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor."""

    dtype: str
    """In safetensors' words: F32, F16, BF16, ..."""
    shape: tuple[int, ...]


def count_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor takes in a file, by its dtype in safetensors' words."""
    return math.prod(shape) * _BITS[dtype] // 8


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    """Its metadata block; empty when it has none."""


def read_header(path: Path) -> Header:
    """Read and check a safetensors file's header.

    Raises:
        WeightsError: the file is missing, a pickle, cut off, damaged, or has too many tensors.
    """
    reject_pickle(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise _unreadable_error(path, _describe_other_file(size, start))
        if length > MAX_HEADER_BYTES:
            raise _unreadable_error(
                path, f"its header has {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read"
            )
        raw = stream.read(length)
    try:
        pairs = json.loads(raw.decode("utf-8"), object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError) as error:
        raise _unreadable_error(path, f"its header is not what it should be: {error}") from error
    if not isinstance(pairs, dict):
        raise _unreadable_error(path, "its header is not a JSON object")
    if len(pairs) > MAX_TENSORS:
        raise _unreadable_error(
            path, f"it has {len(pairs):,} tensors; at most {MAX_TENSORS:,} are read"
        )
    metadata = _parse_metadata(path, pairs.pop(_METADATA, None))
    tensors = _parse_tensors(path, pairs, size - _LENGTH_BYTES - length)
    return Header(tensors, metadata)


def reject_pickle(path: Path) -> None:
    """Refuse files that run code when they are opened, by their suffix and first bytes.

    Raises:
        WeightsError: there is no such file, or it is a pickle.
    """
    if path.is_dir():
        raise WeightsError(f"{path}: a folder; give the .safetensors file itself")
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    with path.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES + 1)
    # A header of 640 or 896 bytes begins as a pickle does; what follows tells them apart.
    begins_so = start.startswith(_PICKLE_STARTS) and start[_LENGTH_BYTES:] != b"{"
    if path.suffix.lower() in PICKLE_SUFFIXES or begins_so:
        raise WeightsError(
            f"{path}: this is a pickled file, which can run code when opened; convert it to "
            "safetensors on a machine that you can throw away (docs/models.md says how)"
        )


def _unreadable_error(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path}: not a readable safetensors file ({reason})")


def _describe_other_file(size: int, start: bytes) -> str:
    """Return what a file is that is too short for its header, by its first bytes."""
    if size == 0:
        return "it is empty; fetch it again"
    if start.startswith(b"version "):
        return "it is a Git LFS pointer instead of the file; `git lfs pull` fetches that"
    if start.lstrip()[:1] == b"<":
        return "it is a web page instead of the file; fetch it again, logged in where one must be"
    return (
        f"its header would be longer than its {size:,} bytes; it is cut off, or something "
        "else; fetch it again"
    )


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's entries as a dictionary, unless one is there twice."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} is there twice")
    return entries


def _parse_metadata(path: Path, entry: Any) -> dict[str, str]:
    if entry is None:
        return {}
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise _unreadable_error(path, "its metadata are not texts by name")
    return entry


def _parse_tensors(path: Path, pairs: dict[str, Any], num_bytes: int) -> dict[str, TensorInfo]:
    """Check every entry, and that together they fill the bytes after the header."""
    tensors: dict[str, TensorInfo] = {}
    ranges: list[tuple[int, int]] = []
    for name, entry in pairs.items():
        try:
            dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            sizes = [*shape, start, end] if isinstance(shape, list) else [None]
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable_error(path, f"its entry {name!r} is malformed") from error
        if len(sizes) > _MAX_DIMENSIONS + 2 or not all(_is_size(size) for size in sizes):
            raise _unreadable_error(path, f"its entry {name!r} has sizes that no tensor has")
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise _unreadable_error(path, f"{name!r} has the unknown number format {dtype!r}")
        if (end - start) * 8 != math.prod(shape) * _BITS[dtype]:
            raise _unreadable_error(path, f"the place of {name!r} does not fit its shape {shape}")
        tensors[name] = TensorInfo(dtype, tuple(shape))
        ranges.append((start, end))
    _check_ranges(path, ranges, num_bytes)
    return tensors


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _check_ranges(path: Path, ranges: Iterable[tuple[int, int]], num_bytes: int) -> None:
    end_of_previous = 0
    for start, end in sorted(ranges):
        if start != end_of_previous:
            raise _unreadable_error(path, "its tensors overlap or leave gaps")
        end_of_previous = end
    if end_of_previous > num_bytes:
        raise _unreadable_error(
            path,
            f"it is cut off: {num_bytes:,} of {end_of_previous:,} bytes of weights are there; "
            "fetch it again",
        )
    if end_of_previous < num_bytes:
        raise _unreadable_error(
            path, f"{num_bytes - end_of_previous:,} bytes after its tensors belong to nothing"
        )
