"""How many bytes the parts of a stored model take: as stored, in float16, in float32."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_header import PICKLE_SUFFIXES, count_bytes
from lorasmith.models.files.stored_tensors import StoredTensor, find_part_tensors

SIDE_PARTS = ("image_tower", "image_encoder", "safety_checker")
"""Parts of folders that no image is drawn with."""
_FLOAT_PREFIXES = ("F", "BF")
_WEIGHTS_SUFFIXES = PICKLE_SUFFIXES | {".safetensors"}


@dataclass(frozen=True)
class PartSize:
    """The size of one part; None where its file is pickled or damaged, and is not opened."""

    stored: int
    """Bytes in the file."""
    parameters: int | None
    """Numbers in floating-point formats."""
    fp16: int | None
    """Bytes if these were float16."""
    fp32: int | None
    """Bytes if these were float32."""


def measure_tensors(tensors: Iterable[StoredTensor]) -> PartSize:
    """Return the size of tensors; whole numbers take the same bytes in any precision."""
    stored = parameters = others = 0
    for tensor in tensors:
        size = count_bytes(tensor.dtype, tensor.shape)
        stored += size
        if tensor.dtype.startswith(_FLOAT_PREFIXES):
            parameters += math.prod(tensor.shape)
        else:
            others += size
    return PartSize(stored, parameters, 2 * parameters + others, 4 * parameters + others)


def measure_side_parts(folder: Path) -> dict[str, PartSize]:
    """Return the sizes of a folder's `SIDE_PARTS` that have weights."""
    sizes = {part: _measure_side_part(folder / part, part) for part in SIDE_PARTS}
    return {part: size for part, size in sizes.items() if size.stored}


def _measure_side_part(folder: Path, part: str) -> PartSize:
    try:
        return measure_tensors(find_part_tensors(folder, part).values())
    except WeightsError:  # pickled, damaged or absent; nothing needs it
        files = [path for path in folder.glob("*") if path.suffix in _WEIGHTS_SUFFIXES]
        stored = sum(path.stat().st_size for path in files if path.is_file())
        return PartSize(stored, None, None, None)


def add_sizes(sizes: Mapping[str, PartSize]) -> PartSize:
    """Return the sum of sizes, of which unknown ones count as stored only."""
    parts = sizes.values()
    return PartSize(
        sum(part.stored for part in parts),
        sum(part.parameters or 0 for part in parts),
        sum(part.fp16 or 0 for part in parts),
        sum(part.fp32 or 0 for part in parts),
    )
