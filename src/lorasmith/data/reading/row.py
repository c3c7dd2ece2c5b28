"""One captioned image of a dataset."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.core.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
)
MASK_SUFFIX = ".mask.png"
"""``cat.mask.png`` is the mask of ``cat.jpg``, never a training image."""


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

    def read_bytes(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read() if self.length is None else stream.read(self.length)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error

    def read_mask(self) -> bytes | None:
        """Return the encoded mask, or None without one.

        Raises:
            DataError: the file cannot be read.
        """
        if self.mask_path is None:
            return None
        try:
            return self.mask_path.read_bytes()
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
    """Return the mask file that belongs to an image file, if there is one."""
    mask = image.with_name(image.stem + MASK_SUFFIX)
    return mask if mask.is_file() else None


def is_mask_name(name: str) -> bool:
    return name.lower().endswith(MASK_SUFFIX)
