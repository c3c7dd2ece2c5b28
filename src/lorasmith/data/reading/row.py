"""One captioned image of a dataset."""

import errno
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lorasmith.core.errors import DataError
from lorasmith.core.regular_files import open_regular_file, read_regular_file

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
)
MAX_FILE_BYTES = 1 << 30
"""Larger files of images and masks are refused before they are read."""
MAX_PACKED_BYTES = 1 << 50
"""A packed tar may have any size; its images may not."""
MASK_SUFFIX = ".mask.png"
"""``cat.mask.png`` is the mask of ``cat.jpg``, never a training image."""
_FOREIGN_MASK_SUFFIXES = ("-masklabel.png", "-condlabel.png")
"""OneTrainer's masks and conditioning images, never training images either."""


@dataclass(frozen=True)
class Row:
    """An image with its captions and metadata."""

    key: str
    """Stable name inside the dataset: a relative path, or ``style/icon`` in a packed tar."""
    captions: tuple[str, ...]
    """Phrasings of the caption, the main one first. At least one."""
    columns: Mapping[str, Any]
    """Metadata columns, for filters."""
    path: Path
    """The file that holds the encoded image."""
    offset: int = 0
    """Where the image starts in the file, in bytes."""
    length: int | None = None
    """Bytes of the image; None for the full file."""
    repeats: int = 1
    """How often the image comes in an epoch: the number of its ``10_name`` folder."""
    mask_path: Path | None = None
    """A grey image of the same shape: the loss counts where it is white and not where it is
    black."""

    def open(self) -> BinaryIO:
        """Open the encoded image as a stream of its own.

        Raises:
            OSError: the file cannot be opened, is not a regular one, or is too large.
        """
        if self.length is None:
            return open_regular_file(self.path, MAX_FILE_BYTES)
        if self.length > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, "larger than 1 GiB")
        with open_regular_file(self.path, MAX_PACKED_BYTES) as stream:
            stream.seek(self.offset)
            return io.BytesIO(stream.read(self.length))

    def read_bytes(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: the file cannot be read, is not a regular one, or is too large.
        """
        try:
            with self.open() as stream:
                return stream.read(MAX_FILE_BYTES)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error

    def read_mask(self) -> bytes | None:
        """Return the encoded mask, or None without one.

        Raises:
            DataError: the file cannot be read, is not a regular one, or is too large.
        """
        if self.mask_path is None:
            return None
        try:
            return read_regular_file(self.mask_path, MAX_FILE_BYTES)
        except OSError as error:
            raise DataError(f"{self.mask_path}: cannot be read ({error.strerror})") from error

    @property
    def caption(self) -> str:
        """The main caption."""
        return self.captions[0]


def hash_row(row: Row) -> str:
    """Return a hex SHA-256 over the row's key and its image: its identity in a manifest."""
    return hashlib.sha256(row.key.encode() + b"\0" + row.read_bytes()).hexdigest()


def find_mask(image: Path) -> Path | None:
    """Return the mask file that belongs to an image file, if anything has its name."""
    mask = image.with_name(image.stem + MASK_SUFFIX)
    return mask if os.path.lexists(mask) else None


def is_mask_name(name: str) -> bool:
    return name.lower().endswith(MASK_SUFFIX)


def foreign_mask_stem(name: str) -> str | None:
    """Return the stem of the image that a mask by OneTrainer's naming belongs to, or None."""
    for suffix in _FOREIGN_MASK_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return None


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image of a dataset, and no mask."""
    is_mask = is_mask_name(name) or foreign_mask_stem(name) is not None
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not is_mask
