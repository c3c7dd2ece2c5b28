"""How coloured a picture is: what a LoRA of a black-and-white style has to change."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

_DARK, _LIGHT = 0.2, 0.8


class ColorStats(NamedTuple):
    """Means over some pictures, each between 0 and 1."""

    saturation: float
    """Largest less smallest of a pixel's red, green and blue: 0 for grey."""
    two_tone: float
    """Share of the pixels that are nearly black or nearly white in brightness."""


def measure_color(pictures: Sequence[Image.Image]) -> ColorStats:
    """Measure RGB pictures. At least one."""
    measured = [_measure_image(picture) for picture in pictures]
    saturation, two_tone = np.mean(measured, axis=0).tolist()
    return ColorStats(saturation, two_tone)


def _measure_image(picture: Image.Image) -> tuple[float, float]:
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255.0
    saturation = pixels.max(axis=-1) - pixels.min(axis=-1)
    brightness = pixels.mean(axis=-1)
    two_tone = (brightness < _DARK) | (brightness > _LIGHT)
    return float(saturation.mean()), float(two_tone.mean())
