"""Perceptual hashes: pictures that look alike have fingerprints that are close.

The hash is the horizontal and vertical difference hash: the picture is scaled to 9 x 8 and 8 x 9
grey values, and each bit says whether a value is larger than its neighbour. It survives scaling,
compression and changes of brightness. Neighbours in large even areas are nearly equal and their
order says nothing, so a bit wants a difference of some shades, and a hash that matches is confirmed
by comparing colours on a small grid.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 8
GRID = 16
"""Colours are compared on a grid of so many cells a side."""
_CLEARLY = 3
"""Shades of 256 by which a neighbour must be brighter."""


@dataclass(frozen=True)
class Fingerprint:
    """What a picture looks like."""

    bits: NDArray[np.uint64]
    """Difference hash, horizontal and vertical, uint64 ``[2]``."""
    colors: NDArray[np.uint8]
    """Mean colours on a grid, uint8 ``[GRID, GRID, 3]``."""


def fingerprint(picture: Image.Image) -> Fingerprint:
    """Return the fingerprint of an RGB picture."""
    small = picture.resize((GRID, GRID), Image.Resampling.BOX)
    return Fingerprint(difference_hash(picture), np.asarray(small, dtype=np.uint8).copy())


def difference_hash(picture: Image.Image) -> NDArray[np.uint64]:
    """Return 64 bits of horizontal and 64 bits of vertical differences, uint64 ``[2]``."""
    grey = picture.convert("L")
    wide = _scaled(grey, SIDE + 1, SIDE)
    high = _scaled(grey, SIDE, SIDE + 1)
    steps = np.stack([wide[:, 1:] - wide[:, :-1], high[1:] - high[:-1]])
    bits = steps >= _CLEARLY
    return np.packbits(bits.reshape(2, -1), axis=1).view(np.uint64)[:, 0]


def _scaled(grey: Image.Image, width: int, height: int) -> NDArray[np.int16]:
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX), dtype=np.int16)


def bit_distances(one: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the bits that differ between one hash ``[2]`` and others ``[N, 2]``, int64 ``[N]``."""
    return np.asarray(np.bitwise_count(others ^ one).sum(axis=1, dtype=np.int64))


def color_distances(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return root mean square differences of colour grids, in 0..255.

    Args:
        one: uint8 ``[GRID, GRID, 3]``.
        others: uint8 ``[N, GRID, GRID, 3]``.
    """
    difference = others.astype(np.float64) - one
    return np.asarray(np.sqrt(np.square(difference).mean(axis=(1, 2, 3))))
