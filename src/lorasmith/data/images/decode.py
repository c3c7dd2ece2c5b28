"""Decoding one picture to RGB pixels of a wanted size."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lorasmith.core.errors import DataError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 120_000_000
"""Larger pictures are refused before they are decoded."""
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
_MOVING = frozenset({"GIF", "PNG", "WEBP", "AVIF", "TIFF"})
"""Formats in which several frames are several pictures; in an MPO they are views of one."""

DECODE_ERRORS = (
    UnidentifiedImageError, OSError, EOFError, ValueError, SyntaxError, LookupError, TypeError,
    AttributeError, ArithmeticError, RuntimeError, struct.error, zlib.error, MemoryError,
)  # fmt: skip
"""What Pillow's readers raise on files that are not what they say."""


class ImageTooLargeError(DataError):
    """A picture has more than ``MAX_PIXELS``; its pixels were not touched."""


@dataclass(frozen=True)
class DecodedImage:
    """A picture as it is learned from, and what was left out of it."""

    image: Image.Image
    """RGB, upright, opaque."""
    has_more_frames: bool
    """The file is animated or has several pages, and this is the first."""
    has_transparency: bool
    """Some of it lies on the background colour."""


def decode_image(
    encoded: bytes, name: str, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Decode a picture to RGB, upright, with transparency laid on ``background``.

    Raises:
        DataError: not a picture, damaged, or larger than ``MAX_PIXELS``.
    """
    return decode_with_details(encoded, name, background).image


def decode_with_details(
    encoded: bytes, name: str, background: tuple[int, int, int] = WHITE
) -> DecodedImage:
    """Decode like ``decode``, and tell what was left out."""
    picture, moving = _load(encoded, name)
    upright = _upright(_to_eight_bits(picture, name))
    shown, transparent = _on_background(upright, background)
    return DecodedImage(shown, moving, transparent)


def to_rgb(picture: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return a picture that is in memory as ``decode`` returns that of a file.

    Raises:
        DataError: its values have no known white.
    """
    return _on_background(_upright(_to_eight_bits(picture, "picture")), background)[0]


def decode_mask(encoded: bytes, name: str, size: tuple[int, int]) -> Image.Image:
    """Decode a mask to grey ``L`` of its picture's size: 255 is learned, 0 is not.

    What is transparent counts as black.

    Args:
        encoded: the mask's file.
        name: what errors call it.
        size: width and height of the upright picture.

    Raises:
        DataError: not a picture, damaged, too large, or not of the picture's shape.
    """
    return fit_mask(decode_image(encoded, name, BLACK).convert("L"), name, size)


def fit_mask(mask: Image.Image, name: str, size: tuple[int, int]) -> Image.Image:
    """Bring a mask to its picture's size.

    Args:
        mask: grey, ``L``.
        name: what errors call it.
        size: width and height of the upright picture.

    Raises:
        DataError: not of the picture's shape.
    """
    width, height = size
    # As high as the picture would be at the mask's width, give or take a rounded pixel.
    if abs(mask.height - mask.width * height / width) > max(1.0, mask.width / width):
        raise DataError(
            f"{name}: the mask is {mask.width} x {mask.height} and its picture {width} x {height}; "
            "draw it in the picture's shape"
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def _load(encoded: bytes, name: str) -> tuple[Image.Image, bool]:
    """Return the first frame as it is stored, and whether there are more."""
    try:
        picture = Image.open(io.BytesIO(encoded))
        if picture.width * picture.height > MAX_PIXELS:
            size = f"{picture.width} x {picture.height} pixels"
            raise ImageTooLargeError(f"{name}: {size} is too large; scale it down")
        # Asked before loading: looking for a second frame moves the reader.
        moving = picture.format in _MOVING and bool(getattr(picture, "is_animated", False))
        picture.load()
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{name}: is too large; scale it down ({error})") from error
    except DECODE_ERRORS as error:
        raise DataError(f"{name}: cannot be decoded ({error})") from error
    return picture, moving


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF data say; damaged data say nothing."""
    try:
        return ImageOps.exif_transpose(picture)
    except DECODE_ERRORS:
        return picture


def _to_eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Bring grey of more than 8 bits to 8 by scaling; a plain conversion would clip it to white.

    Raises:
        DataError: a picture of whole or floating numbers without a known white.
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        white = 65535.0
    elif picture.mode == "F":
        white = 1.0
    else:
        return picture
    wide = np.asarray(picture, dtype=np.float64)
    if not (np.isfinite(wide).all() and wide.min() >= 0.0 and wide.max() <= white):
        raise DataError(
            f"{name}: has values outside of 0..{white:g}, so that it is unknown what is white; "
            "save it with 8 or 16 bits"
        )
    grey = Image.fromarray((wide * (255.0 / white)).round().astype(np.uint8))
    hidden = picture.info.get("transparency")
    if isinstance(hidden, int):  # one shade of 16 bits that stands for "nothing here"
        grey.putalpha(Image.fromarray(((wide != hidden) * 255).astype(np.uint8)))
    grey.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return grey


def _on_background(
    picture: Image.Image, background: tuple[int, int, int]
) -> tuple[Image.Image, bool]:
    """Return the picture in RGB, and whether any of the background shows."""
    if not picture.has_transparency_data:
        return picture.convert("RGB"), False
    shown = picture.convert("RGBA")
    opaque = shown.getchannel("A").getextrema() == (255, 255)
    paper = Image.new("RGBA", shown.size, (*background, 255))
    return Image.alpha_composite(paper, shown).convert("RGB"), not opaque


def crop_square(picture: Image.Image, side: int) -> Pixels:
    """Scale the shorter side to ``side``, crop the centre, return uint8 ``[side, side, 3]``."""
    if picture.size != (side, side):
        picture = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
    return np.asarray(picture, dtype=np.uint8)
