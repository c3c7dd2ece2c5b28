"""Opening image files: the only place where Pillow opens one.

Without a list of formats Pillow asks every reader that it has, and some start other programs
(Ghostscript for EPS).
"""

from pathlib import Path
from typing import BinaryIO

from PIL import Image

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""Pillow's names of what is read. Its JPEG reader also reads the MPO files of phones."""
FORMAT_NAMES = "PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF"
"""The same for messages."""


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open an image file without decoding its pixels.

    Args:
        file: a regular file, or its content.

    Raises:
        OSError: it is in none of the ``IMAGE_FORMATS``, damaged, or cannot be read. Damaged files
            may also raise what else is in ``decode.DECODE_ERRORS``.
    """
    return Image.open(file, formats=IMAGE_FORMATS)
