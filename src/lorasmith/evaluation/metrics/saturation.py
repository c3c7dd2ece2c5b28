"""How colorful images are, which shows whether a black-and-white style was learned."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

_DARK, _LIGHT = 0.2, 0.8


class ColorStats(NamedTuple):
    """Means over images, each between 0 and 1."""

    saturation: float
    """Largest minus smallest of a pixel's red, green and blue: 0 for grey."""
    two_tone: float
    """Share of the pixels that are nearly black or nearly white in brightness."""


def measure_color(images: Sequence[Image.Image]) -> ColorStats:
    """Measure RGB images, at least one."""
    measured = [_measure_image(image) for image in images]
    saturation, two_tone = np.mean(measured, axis=0).tolist()
    return ColorStats(saturation, two_tone)


def _measure_image(image: Image.Image) -> tuple[float, float]:
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
    saturation = pixels.max(axis=-1) - pixels.min(axis=-1)
    brightness = pixels.mean(axis=-1)
    two_tone = (brightness < _DARK) | (brightness > _LIGHT)
    return float(saturation.mean()), float(two_tone.mean())
