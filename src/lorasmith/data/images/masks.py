"""Masks for inpainting: what of a picture is painted anew, white, and what is given, black."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw

from lorasmith.data.images.decode import Pixels

MASK_THRESHOLD = 128
"""From this grey on a mask counts as white, as in diffusers' pipelines."""
FULL_MASK_PROBABILITY = 0.25
"""Share of masks that are all white, as the published inpainting models were taught. They also
draw from nothing, and a LoRA should not make them forget it."""
_SHAPES = 3
"""A mask has one to so many shapes, each of any kind."""
_TURNS = 5
"""A brush stroke has two to so many straight pieces."""

Point = tuple[float, float]


def draw_random_mask(width: int, height: int, draws: torch.Generator) -> Pixels:
    """Draw a mask: all white with probability `WHOLE`, else rectangles, ellipses and strokes.

    Rectangles and ellipses are an eighth to nine tenths of the picture wide and high, and have
    their centre anywhere in it. A stroke is a round brush, a sixteenth to a quarter of the shorter
    side thick, drawn along a path of straight pieces whose corners lie anywhere.

    Args:
        width: in pixels.
        height: in pixels.
        draws: a CPU generator of this mask.

    Returns:
        uint8 ``[height, width]``, 0 or 255, somewhere 255.
    """
    numbers = _Numbers(draws)
    if numbers.next() < FULL_MASK_PROBABILITY:
        return np.full((height, width), 255, dtype=np.uint8)
    mask = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(mask)
    for _ in range(numbers.below(_SHAPES) + 1):
        kind = numbers.below(3)
        if kind == 2:
            _stroke(pen, width, height, numbers)
        else:
            shape = pen.rectangle if kind == 0 else pen.ellipse
            shape(_box(width, height, numbers), fill=255)
    return np.asarray(mask, dtype=np.uint8)


def blank_masked(pictures: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    """Return pictures that are grey, which is 0, where their masks are white.

    Args:
        pictures: float32 ``[B, 3, H, W]`` in -1..1.
        holes: uint8 ``[B, 1, H, W]`` on their device.
    """
    return pictures * (holes < MASK_THRESHOLD)


def masks_to_latent_size(holes: torch.Tensor, downscale: int) -> torch.Tensor:
    """Return masks of latents, float32 0 or 1 ``[B, 1, h, w]``, for uint8 ``[B, 1, H, W]``."""
    return (holes[..., ::downscale, ::downscale] >= MASK_THRESHOLD).float()


def _box(width: int, height: int, numbers: "_Numbers") -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a rectangle whose centre is in the picture."""
    wide, tall = (side * numbers.between(1 / 8, 9 / 10) for side in (width, height))
    left, top = numbers.next() * width - wide / 2, numbers.next() * height - tall / 2
    return left, top, left + wide, top + tall


def _stroke(pen: ImageDraw.ImageDraw, width: int, height: int, numbers: "_Numbers") -> None:
    thick = max(1.0, min(width, height) * numbers.between(1 / 16, 1 / 4))
    corners = numbers.below(_TURNS - 1) + 3
    path: list[Point] = [
        (numbers.next() * (width - 1), numbers.next() * (height - 1)) for _ in range(corners)
    ]
    pen.line(path, fill=255, width=math.ceil(thick))
    for across, down in path:  # round ends and corners
        half = thick / 2
        pen.ellipse((across - half, down - half, across + half, down + half), fill=255)


class _Numbers:
    """Random numbers from 0 to 1, one at a time."""

    def __init__(self, draws: torch.Generator) -> None:
        self._draws = draws

    def next(self) -> float:
        return float(torch.rand((), generator=self._draws, dtype=torch.float64))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.next()

    def below(self, count: int) -> int:
        return int(self.next() * count)
