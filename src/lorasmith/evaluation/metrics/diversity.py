"""How different the images of a set are from each other, by the embedded image encoder.

The measure is the mean cosine distance over all pairs. It is compared with random sets of equal
size that are known to be varied: a set below their 5th percentile counts as all alike.

The encoder distinguishes images in an unknown style less than others, whatever they show. So that
a set is not called alike for its unusual style, the random sets are in the plainest style: images
of one style each, traced to black lines on white. The file with the percentiles names the command
that makes it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from lorasmith.data.images.square_images import load_square_images, uint8_to_signed
from lorasmith.data.reading.row import Row
from lorasmith.models.image_encoder import embed_images, load_image_encoder
from lorasmith.models.vision.base import ImageEncoder

REFERENCE = Path(__file__).with_name("diversity_reference.json")
IMAGE_SIDE = 64
"""Side of the images that the encoder takes."""
MIN_IMAGES = 4
"""Smaller sets are not measured."""
MAX_REFERENCE_IMAGES = 24
"""Larger sets use the threshold of this size: for them the spread of random sets is so small that
the percentile is too close to their mean."""
_MAX_COMPARED = 192
"""Images that are compared; of more, evenly spaced ones."""


@dataclass(frozen=True)
class Diversity:
    """How different the images of a set are."""

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
    """Measure images with the embedded image encoder; None for fewer than ``MIN_IMAGES``.

    Args:
        rows: images that can be decoded.
        background: colour under transparent ones.
    """
    if len(rows) < MIN_IMAGES:
        return None
    stride = -(-len(rows) // _MAX_COMPARED)
    sample = rows[::stride]
    images = uint8_to_signed(load_square_images(sample, IMAGE_SIDE, background=background))
    distance = mean_cosine_distance(embed_images(_encoder(), images))
    return Diversity(len(sample), distance, diversity_threshold(len(sample)))


def mean_cosine_distance(embeddings: torch.Tensor) -> float:
    """Return the mean cosine distance of all pairs of unit vectors ``[N, D]``, N at least 2.

    The squared length of their sum holds every pair's product twice, and N ones.
    """
    count = len(embeddings)
    total = embeddings.double().sum(dim=0)
    pairs = count * (count - 1)
    return 1.0 - (float(total @ total) - count) / pairs


def diversity_threshold(count: int) -> float:
    """Return the distance below which a set of ``count`` images is all alike."""
    return _thresholds()[min(count, MAX_REFERENCE_IMAGES)]


@lru_cache(maxsize=1)
def _thresholds() -> dict[int, float]:
    table = json.loads(REFERENCE.read_text(encoding="utf-8"))["thresholds"]
    return {int(count): float(distance) for count, distance in table.items()}


@lru_cache(maxsize=1)
def _encoder() -> ImageEncoder:
    return load_image_encoder()
