"""How different the pictures of a set are from each other, as the image tower sees it.

The measure is the mean cosine distance over all pairs. It is compared with random sets of equal
size that are known to be varied: the 5th percentile of those is the line below which a set counts
as all alike.

The tower tells pictures in a style that it has not seen apart less than others, whatever they
show. So that a set is not called alike for being in one unusual style, the random sets are drawn in
the plainest one: pictures of one style each, traced to black lines on white. The file with the
percentiles says which command makes it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from lorasmith.data.images.square_images import load_square_images, uint8_to_signed
from lorasmith.data.reading.row import Row
from lorasmith.models.image_encoder import ImageEncoder, embed_images, load_image_encoder

REFERENCE = Path(__file__).with_name("diversity_reference.json")
IMAGE_SIDE = 64
"""Side of the pictures that the tower is shown."""
MIN_IMAGES = 4
"""Smaller sets say nothing."""
MAX_REFERENCE_IMAGES = 24
"""Sets above are judged as if they were this large: the spread of random sets has nearly gone, and
the percentile would come too near to their mean."""
_SAMPLE = 192
"""Of larger sets so many pictures are looked at, evenly spread."""


@dataclass(frozen=True)
class Diversity:
    """How different the pictures of a set are."""

    images: int
    """How many were compared."""
    distance: float
    """Mean cosine distance of all pairs: 0 for copies, about 1 for unrelated pictures."""
    threshold: float
    """The 5th percentile of varied sets of this size."""

    @property
    def is_uniform(self) -> bool:
        """Whether the set is less varied than nearly all random ones."""
        return self.distance < self.threshold


def measure_diversity(rows: Sequence[Row], background: tuple[int, int, int]) -> Diversity | None:
    """Measure pictures with the embedded image tower; None for fewer than ``SMALLEST``.

    Args:
        rows: pictures that can be decoded.
        background: colour under transparent ones.
    """
    if len(rows) < MIN_IMAGES:
        return None
    stride = -(-len(rows) // _SAMPLE)
    chosen = rows[::stride]
    pictures = uint8_to_signed(load_square_images(chosen, IMAGE_SIDE, background=background))
    distance = mean_cosine_distance(embed_images(_tower(), pictures))
    return Diversity(len(chosen), distance, diversity_threshold(len(chosen)))


def mean_cosine_distance(embeddings: torch.Tensor) -> float:
    """Return the mean cosine distance of all pairs of unit vectors ``[N, D]``, N at least 2.

    The squared length of their sum holds every pair's product twice, and N ones.
    """
    count = len(embeddings)
    total = embeddings.double().sum(dim=0)
    pairs = count * (count - 1)
    return 1.0 - (float(total @ total) - count) / pairs


def diversity_threshold(count: int) -> float:
    """Return the distance below which a set of ``count`` pictures is all alike."""
    return _thresholds()[min(count, MAX_REFERENCE_IMAGES)]


@lru_cache(maxsize=1)
def _thresholds() -> dict[int, float]:
    table = json.loads(REFERENCE.read_text(encoding="utf-8"))["thresholds"]
    return {int(count): float(distance) for count, distance in table.items()}


@lru_cache(maxsize=1)
def _tower() -> ImageEncoder:
    return load_image_encoder()
