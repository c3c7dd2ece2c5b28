"""How two LoRA files differ: layers, strengths, direction, metadata."""

from collections.abc import Mapping
from dataclasses import dataclass

from lorasmith.adapters.files.layer_kinds import DoraLayer, Layer, LoraLayer
from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.tools.algebra import inner_product
from lorasmith.adapters.tools.info import delta_norm
from lorasmith.adapters.tools.merge import common_family, compute_delta, lbw_block, rename_layer
from lorasmith.core.errors import WeightsError

_CHANGING = ("sshs_", "modelspec.hash_", "modelspec.date")
"""Metadata that differ between any two files."""


@dataclass(frozen=True)
class BlockDiff:
    """How two files differ in one block, or altogether."""

    block: str
    """BASE, IN04, MID, OUT05, ...; ``outside``; or ``all``."""
    layers: int
    """Layers of the block in either file."""
    first_norm: float
    """Frobenius norm of what the first adds to the weights."""
    second_norm: float
    """Of what the second adds."""
    diff_norm: float
    """Of what the second adds less the first."""
    cosine: float | None
    """Cosine of the angle between them; None where one of them adds nothing."""


@dataclass(frozen=True)
class LoraDiff:
    """How two LoRA files differ."""

    blocks: tuple[BlockDiff, ...]
    """By block."""
    total: BlockDiff
    """Altogether."""
    only_in_first: tuple[str, ...]
    """Layers that only the first has."""
    only_in_second: tuple[str, ...]
    """Layers that only the second has."""
    metadata: dict[str, tuple[str | None, str | None]]
    """Metadata that differ; None where a file has no such entry."""


def compare_loras(one: LoraFile, two: LoraFile) -> LoraDiff:
    """Compare two LoRA files layer by layer, whatever their spelling, rank and kind.

    Of DoRA, what changes the direction is compared: the whole effect depends on a base model.

    Raises:
        WeightsError: they are for different families, or a layer has another shape.
    """
    family = common_family([one, two])
    first = {rename_layer(name, family): layer for name, layer in one.layers.items()}
    second = {rename_layer(name, family): layer for name, layer in two.layers.items()}
    blocks: dict[str, list[tuple[float, float, float]]] = {}
    for name in dict.fromkeys([*first, *second]):
        squares = _products(two, name, first.get(name), second.get(name))
        blocks.setdefault(lbw_block(name, family) or "outside", []).append(squares)
    rows = [_difference(block, blocks[block]) for block in sorted(blocks, key=_order)]
    whole = _difference("all", [entry for entries in blocks.values() for entry in entries])
    return LoraDiff(
        tuple(rows),
        whole,
        tuple(name for name in first if name not in second),
        tuple(name for name in second if name not in first),
        _metadata(one.metadata, two.metadata),
    )


def _products(
    two: LoraFile, name: str, first: Layer | None, second: Layer | None
) -> tuple[float, float, float]:
    """Return the squared norms of two changes and their inner product; nothing counts as 0."""
    if first is None or second is None:
        return (
            delta_norm(first) ** 2 if first else 0.0,
            delta_norm(second) ** 2 if second else 0.0,
            0.0,
        )
    plain_first, plain_second = _plain(first), _plain(second)
    try:
        if isinstance(plain_first, LoraLayer) and isinstance(plain_second, LoraLayer):
            both = inner_product(plain_first, plain_second)
        else:
            left, right = (
                compute_delta(two, name, layer, None).double().flatten(1)
                for layer in (plain_first, plain_second)
            )
            if left.shape != right.shape:
                raise ValueError(f"shapes {list(left.shape)} and {list(right.shape)}")
            both = float((left * right).sum())
    except ValueError as error:
        raise WeightsError(f"{two.path}: {name}: {error}") from error
    return delta_norm(first) ** 2, delta_norm(second) ** 2, both


def _plain(layer: Layer) -> Layer:
    return layer.inner if isinstance(layer, DoraLayer) else layer


def _difference(block: str, entries: list[tuple[float, float, float]]) -> BlockDiff:
    one, two, both = (sum(column) for column in zip(*entries, strict=True))
    between = max(0.0, one + two - 2 * both) ** 0.5
    cosine = both / (one * two) ** 0.5 if one > 0 and two > 0 else None
    return BlockDiff(block, len(entries), one**0.5, two**0.5, between, cosine)


def _metadata(
    one: Mapping[str, str], two: Mapping[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    keys = sorted(key for key in one.keys() | two.keys() if not key.startswith(_CHANGING))
    return {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}


def _order(block: str) -> tuple[int, str]:
    starts = ("BASE", "IN", "MID", "OUT", "outside")
    return next(n for n, start in enumerate(starts) if block.startswith(start)), block
