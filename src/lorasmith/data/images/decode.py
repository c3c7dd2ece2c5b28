"""Decoding one image or mask."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lorasmith.core.errors import DataError
from lorasmith.data.images.color_profile import convert_to_srgb
from lorasmith.data.images.open_image import FORMAT_NAMES, open_image

Pixels = NDArray[np.uint8]

MAX_PIXELS = 120_000_000
"""Larger images are refused before they are decoded."""
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
_ROWS_AT_ONCE = 64
_ANIMATED_FORMATS = frozenset({"GIF", "PNG", "WEBP", "AVIF", "TIFF"})
"""Formats in which several frames are several images; in an MPO they are views of one."""

DECODE_ERRORS = (
    UnidentifiedImageError, OSError, EOFError, ValueError, SyntaxError, LookupError, TypeError,
    AttributeError, ArithmeticError, RuntimeError, struct.error, zlib.error, MemoryError,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's readers raise on damaged files."""


class ImageTooLargeError(DataError):
    """An image has more than ``MAX_PIXELS``; it was not decoded."""


@dataclass(frozen=True)
class DecodedImage:
    """An image, and what its file has besides."""

    image: Image.Image
    """RGB, upright, opaque."""
    has_more_frames: bool
    """The file is animated or has several pages, and this is the first."""
    has_transparency: bool
    """The background colour shows through."""
    is_converted: bool = False
    """Its colours were converted to sRGB from those of an embedded profile."""
    profile_problem: str = ""
    """Why its colour profile was left aside; empty where it has none or it was used."""


def decode_image(
    encoded: bytes, name: str, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Decode an image to sRGB, upright, with transparent parts on ``background``.

    Colours without a profile, or with one that cannot be used, count as sRGB.

    Raises:
        DataError: not an image, damaged, or larger than ``MAX_PIXELS``.
    """
    return decode_with_details(encoded, name, background).image


def decode_with_details(
    encoded: bytes, name: str, background: tuple[int, int, int] = WHITE
) -> DecodedImage:
    """Decode like ``decode_image``, and return what the file has besides."""
    image, is_animated = _load(encoded, name)
    try:
        upright = _rotate_upright(_to_8_bits(image, name))
        srgb = convert_to_srgb(upright)
        rgb, has_transparency = _blend_background(srgb.image, background)
    except DECODE_ERRORS as error:
        raise DataError(f"{name}: cannot be converted from {image.mode} ({error})") from error
    return DecodedImage(rgb, is_animated, has_transparency, srgb.is_converted, srgb.problem)


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Convert an image in memory as ``decode_image`` does one of a file.

    Raises:
        DataError: its values have no known white.
    """
    upright = _rotate_upright(_to_8_bits(image, "image"))
    return _blend_background(convert_to_srgb(upright).image, background)[0]


def decode_mask(encoded: bytes, name: str, size: tuple[int, int]) -> Image.Image:
    """Decode a mask to grey ``L`` in its image's size.

    Transparent parts count as black. Its values are no colours: a colour profile is not applied.

    Args:
        encoded: the mask's file.
        name: its name in errors.
        size: width and height of the upright image.

    Raises:
        DataError: not an image, damaged, too large, or not of the image's shape.
    """
    image, _ = _load(encoded, name)
    try:
        upright = _rotate_upright(_to_8_bits(image, name))
        mask = _blend_background(upright, BLACK)[0].convert("L")
    except DECODE_ERRORS as error:
        raise DataError(f"{name}: cannot be converted from {image.mode} ({error})") from error
    return fit_mask(mask, name, size)


def fit_mask(mask: Image.Image, name: str, size: tuple[int, int]) -> Image.Image:
    """Resize a mask to its image's size.

    Args:
        mask: grey, ``L``.
        name: its name in errors.
        size: width and height of the upright image.

    Raises:
        DataError: not of the image's shape.
    """
    width, height = size
    # The image's aspect ratio, give or take a rounded pixel.
    if abs(mask.height - mask.width * height / width) > max(1.0, mask.width / width):
        raise DataError(
            f"{name}: the mask is {mask.width} x {mask.height} and its image {width} x {height}; "
            "draw it in the image's shape"
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def _load(encoded: bytes, name: str) -> tuple[Image.Image, bool]:
    """Return the first frame as it is stored, and whether there are more."""
    try:
        image = open_image(io.BytesIO(encoded))
        if image.width * image.height > MAX_PIXELS:
            size = f"{image.width} x {image.height} pixels"
            raise ImageTooLargeError(f"{name}: {size} is too large; scale it down")
        # Before loading: looking for a second frame moves the reader.
        is_animated = image.format in _ANIMATED_FORMATS and bool(
            getattr(image, "is_animated", False)
        )
        image.load()
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{name}: is too large; scale it down ({error})") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: cannot be decoded (it is not a {FORMAT_NAMES})") from error
    except DECODE_ERRORS as error:
        raise DataError(f"{name}: cannot be decoded ({error})") from error
    return image, is_animated


def _rotate_upright(image: Image.Image) -> Image.Image:
    """Rotate an image by its EXIF orientation; damaged EXIF data are ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS:
        return image


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale grey of more than 8 bits to 8 bits; a plain conversion would clip it to white.

    Raises:
        DataError: integer or float values without a known white.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        white = 65535.0
    elif image.mode == "F":
        white = 1.0
    else:
        return image
    values = np.asarray(image)
    if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= white):
        raise DataError(
            f"{name}: has values outside of 0..{white:g}, so its white is unknown; "
            "save it with 8 or 16 bits"
        )
    grey = Image.fromarray(_scale_to_bytes(values, 255.0 / white))
    transparent_value = image.info.get("transparency")
    if isinstance(transparent_value, int):  # one 16-bit shade that means transparent
        grey.putalpha(Image.fromarray(((values != transparent_value) * 255).astype(np.uint8)))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return grey


def _scale_to_bytes(values: NDArray[Any], factor: float) -> Pixels:
    """Scale and round values ``[H, W]``, a few rows at a time to need little memory."""
    scaled = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), _ROWS_AT_ONCE):
        rows = values[top : top + _ROWS_AT_ONCE].astype(np.float64)
        scaled[top : top + _ROWS_AT_ONCE] = (rows * factor).round()
    return scaled


def _blend_background(
    image: Image.Image, background: tuple[int, int, int]
) -> tuple[Image.Image, bool]:
    """Return the image in RGB, and whether any of the background shows."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    rgba = image.convert("RGBA")
    is_opaque = rgba.getchannel("A").getextrema() == (255, 255)
    canvas = Image.new("RGBA", rgba.size, (*background, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB"), not is_opaque


def crop_square(image: Image.Image, side: int) -> Pixels:
    """Scale the shorter side to ``side``, crop the centre, return uint8 ``[side, side, 3]``."""
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8)
