"""How two LoRA files differ: layers, norms, direction, metadata."""

from collections.abc import Mapping
from dataclasses import dataclass

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.kinds.lora import as_lora
from lorasmith.adapters.tools.canonical_layers import canonical_layers
from lorasmith.adapters.tools.lora_arithmetic import inner_product
from lorasmith.adapters.tools.merge import (
    common_family,
    compute_delta,
    lbw_block,
)
from lorasmith.core.errors import WeightsError

_VOLATILE_PREFIXES = ("sshs_", "modelspec.hash_", "modelspec.date")
"""Metadata that differ between any two files."""
_BLOCK_ORDER = ("BASE", "IN", "MID", "OUT", "outside")


@dataclass(frozen=True)
class BlockDiff:
    """How two files differ in one block, or in total."""

    block: str
    """BASE, IN04, MID, OUT05, ...; ``outside``; or ``all``."""
    layers: int
    """Number of layers of the block in either file."""
    first_norm: float
    """Frobenius norm of what the first file adds to the weights."""
    second_norm: float
    """Frobenius norm of what the second file adds."""
    diff_norm: float
    """Frobenius norm of the difference."""
    cosine: float | None
    """Cosine of the angle between both changes; None if one of them is zero."""


@dataclass(frozen=True)
class LoraDiff:
    """How two LoRA files differ."""

    blocks: tuple[BlockDiff, ...]
    """By block."""
    total: BlockDiff
    """All blocks together."""
    only_in_first: tuple[str, ...]
    """Layers that the second file does not have."""
    only_in_second: tuple[str, ...]
    """Layers that the first file does not have."""
    metadata: dict[str, tuple[str | None, str | None]]
    """Metadata that differ; None for a missing entry."""


def compare_loras(first: LoraFile, second: LoraFile, ignore_unknown: bool = False) -> LoraDiff:
    """Compare two LoRA files layer by layer, whatever their key format, rank and kind.

    Of DoRA, the change of the direction is compared: its full effect depends on a base model.

    Args:
        first: a file.
        second: another.
        ignore_unknown: leave out layers that are no layers of Stable Diffusion, with a warning.

    Raises:
        WeightsError: they are for different families, or a layer has another shape or an unknown
            name.
    """
    family = common_family([first, second])
    first_layers = canonical_layers(first, family, ignore_unknown)
    second_layers = canonical_layers(second, family, ignore_unknown)
    blocks: dict[str, list[tuple[float, float, float]]] = {}
    for name in dict.fromkeys([*first_layers, *second_layers]):
        products = _products(second, name, first_layers.get(name), second_layers.get(name))
        blocks.setdefault(lbw_block(name, family) or "outside", []).append(products)
    return LoraDiff(
        tuple(_block_diff(block, blocks[block]) for block in sorted(blocks, key=_block_position)),
        _block_diff("all", [entry for entries in blocks.values() for entry in entries]),
        tuple(name for name in first_layers if name not in second_layers),
        tuple(name for name in second_layers if name not in first_layers),
        _diff_metadata(first.metadata, second.metadata),
    )


def _products(
    file: LoraFile, name: str, first: AdapterLayer | None, second: AdapterLayer | None
) -> tuple[float, float, float]:
    """Return the squared norms of two changes and their inner product; None counts as zero."""
    if first is None or second is None:
        first_norm = first.delta_norm() if first else 0.0
        second_norm = second.delta_norm() if second else 0.0
        return first_norm**2, second_norm**2, 0.0
    first_lora, second_lora = as_lora(first.direction), as_lora(second.direction)
    try:
        if first_lora is not None and second_lora is not None:
            product = inner_product(first_lora, second_lora)
        else:
            left, right = (
                compute_delta(file, name, layer.direction, None).double().flatten(1)
                for layer in (first, second)
            )
            if left.shape != right.shape:
                raise ValueError(f"shapes {list(left.shape)} and {list(right.shape)}")
            product = float((left * right).sum())
    except ValueError as error:
        raise WeightsError(f"{file.path}: {name}: {error}") from error
    return first.delta_norm() ** 2, second.delta_norm() ** 2, product


def _block_diff(block: str, entries: list[tuple[float, float, float]]) -> BlockDiff:
    first, second, product = (sum(column) for column in zip(*entries, strict=True))
    diff_norm = max(0.0, first + second - 2 * product) ** 0.5
    cosine = product / (first * second) ** 0.5 if first > 0 and second > 0 else None
    return BlockDiff(block, len(entries), first**0.5, second**0.5, diff_norm, cosine)


def _diff_metadata(
    first: Mapping[str, str], second: Mapping[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    keys = sorted(key for key in first.keys() | second.keys())
    return {
        key: (first.get(key), second.get(key))
        for key in keys
        if not key.startswith(_VOLATILE_PREFIXES) and first.get(key) != second.get(key)
    }


def _block_position(block: str) -> tuple[int, str]:
    return next(i for i, start in enumerate(_BLOCK_ORDER) if block.startswith(start)), block
