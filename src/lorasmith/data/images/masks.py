"""Masks for inpainting: white where the model inpaints, black where the image is kept."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw

from lorasmith.data.images.decode import Pixels

MASK_THRESHOLD = 128
"""Greys from here on count as white, as in diffusers' pipelines."""
FULL_MASK_PROBABILITY = 0.25
"""Share of masks that are all white, as in the training of the published inpainting models. They
can also generate full images, and a LoRA should not make them forget it."""
_MAX_SHAPES = 3
_MAX_STROKE_SEGMENTS = 5
"""A brush stroke has at least two."""

Point = tuple[float, float]


def draw_random_mask(width: int, height: int, generator: torch.Generator) -> Pixels:
    """Draw a mask of rectangles, ellipses and strokes, or, with `FULL_MASK_PROBABILITY`, all white.

    Rectangles and ellipses have sides of 1/8 to 9/10 of the image's, and their centre anywhere in
    it. A stroke is a round brush, 1/16 to 1/4 of the shorter side thick, along straight segments
    with corners anywhere.

    Args:
        width: in pixels.
        height: in pixels.
        generator: a CPU generator for this mask.

    Returns:
        uint8 ``[height, width]``, 0 or 255, and 255 at least once.
    """
    random = _RandomNumbers(generator)
    if random.next() < FULL_MASK_PROBABILITY:
        return np.full((height, width), 255, dtype=np.uint8)
    mask = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(mask)
    for _ in range(random.below(_MAX_SHAPES) + 1):
        kind = random.below(3)
        if kind == 2:
            _stroke(pen, width, height, random)
        else:
            shape = pen.rectangle if kind == 0 else pen.ellipse
            shape(_box(width, height, random), fill=255)
    return np.asarray(mask, dtype=np.uint8)


def blank_masked(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return images that are grey (0) where their masks are white.

    Args:
        images: float32 ``[B, 3, H, W]`` in -1..1.
        masks: uint8 ``[B, 1, H, W]`` on their device.
    """
    return images * (masks < MASK_THRESHOLD)


def masks_to_latent_size(masks: torch.Tensor, scale_factor: int) -> torch.Tensor:
    """Sample uint8 masks ``[B, 1, H, W]`` at each latent: float32 0 or 1, ``[B, 1, h, w]``."""
    return (masks[..., ::scale_factor, ::scale_factor] >= MASK_THRESHOLD).float()


def _box(width: int, height: int, random: "_RandomNumbers") -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a rectangle whose centre is in the image."""
    box_width, box_height = (side * random.between(1 / 8, 9 / 10) for side in (width, height))
    left, top = random.next() * width - box_width / 2, random.next() * height - box_height / 2
    return left, top, left + box_width, top + box_height


def _stroke(pen: ImageDraw.ImageDraw, width: int, height: int, random: "_RandomNumbers") -> None:
    thickness = max(1.0, min(width, height) * random.between(1 / 16, 1 / 4))
    corners = random.below(_MAX_STROKE_SEGMENTS - 1) + 3
    path: list[Point] = [
        (random.next() * (width - 1), random.next() * (height - 1)) for _ in range(corners)
    ]
    pen.line(path, fill=255, width=math.ceil(thickness))
    for x, y in path:  # round ends and corners
        half = thickness / 2
        pen.ellipse((x - half, y - half, x + half, y + half), fill=255)


class _RandomNumbers:
    """Draws single random numbers."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def next(self) -> float:
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.next()

    def below(self, count: int) -> int:
        return int(self.next() * count)
