"""Decoding one picture to RGB pixels of a wanted size."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lorasmith.core.errors import DataError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 120_000_000
"""Larger pictures are refused before they are decoded."""


def decode(
    encoded: bytes, name: str, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """Decode a picture to RGB, upright, with transparency laid on ``background``.

    Raises:
        DataError: not a picture, damaged, or larger than ``MAX_PIXELS``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(encoded))
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {picture.width} x {picture.height} pixels is too large; scale it down"
                )
            picture.load()
    except (
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"{name}: cannot be decoded ({error})") from error
    return _on_background(ImageOps.exif_transpose(picture), background)


def _on_background(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # A plain conversion to RGB clips 16-bit grey to white; scale it to 8 bits first.
        wide = np.asarray(picture, dtype=np.float64)
        picture = Image.fromarray((wide / 257.0).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        shown = picture.convert("RGBA")
        paper = Image.new("RGBA", shown.size, (*background, 255))
        return Image.alpha_composite(paper, shown).convert("RGB")
    return picture.convert("RGB")


def square(picture: Image.Image, side: int) -> Pixels:
    """Scale the shorter side to ``side``, crop the centre, return uint8 ``[side, side, 3]``."""
    if picture.size != (side, side):
        picture = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
    return np.asarray(picture, dtype=np.uint8)
