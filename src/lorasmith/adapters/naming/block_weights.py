"""LoRA block weights (LBW): a vector of numbers, or a preset's name, for the blocks of a U-Net.

Blocks are numbered as in the original model: IN00-11, MID, OUT00-11, and BASE for the text
encoders. A vector's length determines its blocks; all other blocks get 0. Layers outside of all
blocks (time embedding, last convolution) keep the LoRA's plain weight.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lorasmith.core.errors import ConfigError, did_you_mean

TEXT_ENCODER_BLOCK, MID_BLOCK = "BASE", "MID"
_LARGEST = 10.0


def _inner(*indices: int) -> tuple[str, ...]:
    return tuple(f"IN{index:02d}" for index in indices)


def _outer(*indices: int) -> tuple[str, ...]:
    return tuple(f"OUT{index:02d}" for index in indices)


LBW_BLOCKS: dict[int, tuple[str, ...]] = {
    17: (TEXT_ENCODER_BLOCK, *_inner(1, 2, 4, 5, 7, 8), MID_BLOCK, *_outer(*range(3, 12))),
    26: (TEXT_ENCODER_BLOCK, *_inner(*range(12)), MID_BLOCK, *_outer(*range(12))),
    12: (TEXT_ENCODER_BLOCK, *_inner(4, 5, 7, 8), MID_BLOCK, *_outer(*range(6))),
    20: (TEXT_ENCODER_BLOCK, *_inner(*range(9)), MID_BLOCK, *_outer(*range(9))),
}
"""The blocks of each length of vector: SD by its attention, all of SD, and SDXL likewise."""

_PRESETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "NONE": ((), ()),
    "ALL": (LBW_BLOCKS[17], LBW_BLOCKS[12]),
    "INS": ((TEXT_ENCODER_BLOCK, *_inner(1, 2, 4)), (TEXT_ENCODER_BLOCK, *_inner(4, 5))),
    "IND": ((TEXT_ENCODER_BLOCK, *_inner(5, 7, 8)), (TEXT_ENCODER_BLOCK, *_inner(7, 8))),
    "INALL": (
        (TEXT_ENCODER_BLOCK, *_inner(1, 2, 4, 5, 7, 8)),
        (TEXT_ENCODER_BLOCK, *_inner(4, 5, 7, 8)),
    ),
    "MIDD": (
        (TEXT_ENCODER_BLOCK, *_inner(5, 7, 8), MID_BLOCK, *_outer(3, 4, 5, 6)),
        (TEXT_ENCODER_BLOCK, *_inner(7, 8), MID_BLOCK, *_outer(0, 1, 2)),
    ),
    "OUTD": ((TEXT_ENCODER_BLOCK, *_outer(3, 4, 5, 6)), (TEXT_ENCODER_BLOCK, *_outer(0, 1, 2))),
    "OUTS": (
        (TEXT_ENCODER_BLOCK, *_outer(7, 8, 9, 10, 11)),
        (TEXT_ENCODER_BLOCK, *_outer(3, 4, 5)),
    ),
    "OUTALL": (
        (TEXT_ENCODER_BLOCK, *_outer(*range(3, 12))),
        (TEXT_ENCODER_BLOCK, *_outer(*range(6))),
    ),
}
"""The blocks that each preset keeps, of SD and of SDXL; ALL0.5 halves all of them."""

PRESETS = (*_PRESETS, "ALL0.5")
"""Names of the presets."""


@dataclass(frozen=True)
class BlockWeights:
    """Multipliers by block."""

    text: str
    """As the user wrote them."""
    sd: Mapping[str, float] | None
    """Multipliers for SD 1.x and 2.x by block; None if they are for SDXL only."""
    sdxl: Mapping[str, float] | None
    """Multipliers for SDXL by block; None if they are for SD 1.x and 2.x only."""

    def for_family(self, is_sdxl: bool) -> "FamilyBlockWeights":
        """Return the multipliers for a family.

        Raises:
            ConfigError: the vector has the length of the other family's.
        """
        weights = self.sdxl if is_sdxl else self.sd
        if weights is None:
            lengths = ("12 or 20", "SDXL") if is_sdxl else ("17 or 26", "SD 1.x and 2.x")
            raise ConfigError(
                f"block weights {self.text!r} have a length for the other family; {lengths[1]} "
                f"takes {lengths[0]} numbers or a preset"
            )
        return FamilyBlockWeights(weights)


@dataclass(frozen=True)
class FamilyBlockWeights:
    """Multipliers by block for one family."""

    weights: Mapping[str, float]
    """By block; a missing block has 0."""

    def weight_of(self, block: str) -> float:
        """Return the multiplier of a block (`LayerRef.block`); 1 outside of all blocks."""
        return self.weights.get(block, 0.0) if block else 1.0


def parse_block_weights(text: str) -> BlockWeights:
    """Parse a preset's name or 12, 17, 20 or 26 numbers separated by commas.

    Raises:
        ConfigError: there is no such preset (the message suggests close names), the count is wrong,
            or an entry is no number from -10 to 10.
    """
    name = text.strip()
    if name == "ALL0.5":
        halves = _weight_all(_PRESETS["ALL"][0], 0.5), _weight_all(_PRESETS["ALL"][1], 0.5)
        return BlockWeights(name, *halves)
    if name in _PRESETS:
        sd, sdxl = _PRESETS[name]
        return BlockWeights(name, _weight_all(sd, 1.0), _weight_all(sdxl, 1.0))
    if "," not in name:
        hint = did_you_mean(name.upper(), PRESETS) or f"; presets are {', '.join(PRESETS)}"
        raise ConfigError(f"block weights: there is no preset {name!r}{hint}")
    numbers = [_parse_number(name, entry) for entry in name.split(",")]
    if len(numbers) not in LBW_BLOCKS:
        raise ConfigError(
            f"block weights {name!r}: {len(numbers)} numbers; SD takes 17 or 26, SDXL 12 or 20"
        )
    weights = dict(zip(LBW_BLOCKS[len(numbers)], numbers, strict=True))
    return BlockWeights(name, *((weights, None) if len(numbers) in (17, 26) else (None, weights)))


def _weight_all(blocks: tuple[str, ...], weight: float) -> dict[str, float]:
    return dict.fromkeys(blocks, weight)


def _parse_number(text: str, entry: str) -> float:
    try:
        number = float(entry)
    except ValueError as error:
        raise ConfigError(f"block weights {text!r}: {entry.strip()!r} is not a number") from error
    if not math.isfinite(number) or abs(number) > _LARGEST:
        raise ConfigError(
            f"block weights {text!r}: {entry.strip()} is not between -{_LARGEST:g} and {_LARGEST:g}"
        )
    return number
