"""Perceptual hashes: similar images have similar fingerprints.

The hash is the horizontal and vertical difference hash (dHash): the image is scaled to 9 x 8 and
8 x 9 grey values, and each bit says whether a value is larger than its neighbour. It survives
scaling, compression and changes of brightness. Neighbours in large even areas are nearly equal and
their order is arbitrary, so a bit needs a minimum difference, and comparing colours on a small grid
confirms a match.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 8
GRID = 16
"""Side of the grid on which colours are compared."""
_MIN_DIFFERENCE = 3
"""Shades of 256 by which a neighbour must be brighter."""


@dataclass(frozen=True)
class Fingerprint:
    """A compact description of an image's look."""

    bits: NDArray[np.uint64]
    """Difference hash, horizontal and vertical, uint64 ``[2]``."""
    colors: NDArray[np.uint8]
    """Mean colours on a grid, uint8 ``[GRID, GRID, 3]``."""


def fingerprint(image: Image.Image) -> Fingerprint:
    """Return the fingerprint of an RGB image."""
    small = image.resize((GRID, GRID), Image.Resampling.BOX)
    return Fingerprint(difference_hash(image), np.asarray(small, dtype=np.uint8).copy())


def difference_hash(image: Image.Image) -> NDArray[np.uint64]:
    """Return 64 bits of horizontal and 64 bits of vertical differences, uint64 ``[2]``."""
    grey = image.convert("L")
    horizontal = _resize(grey, HASH_SIDE + 1, HASH_SIDE)
    vertical = _resize(grey, HASH_SIDE, HASH_SIDE + 1)
    steps = np.stack([horizontal[:, 1:] - horizontal[:, :-1], vertical[1:] - vertical[:-1]])
    bits = steps >= _MIN_DIFFERENCE
    return np.packbits(bits.reshape(2, -1), axis=1).view(np.uint64)[:, 0]


def _resize(grey: Image.Image, width: int, height: int) -> NDArray[np.int16]:
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX), dtype=np.int16)
