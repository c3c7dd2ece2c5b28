"""One captioned picture."""

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
"""``cat.mask.png`` belongs to ``cat.jpg``; it is never a picture of its own."""


@dataclass(frozen=True)
class Row:
    """A picture with its captions and whatever else is known about it."""

    key: str
    """Stable name inside the dataset: a relative path, or ``style/icon`` in a packed file."""
    captions: tuple[str, ...]
    """Phrasings of the caption, the main one first. At least one."""
    columns: Mapping[str, Any]
    """Metadata columns, for filters."""
    path: Path
    """The file that holds the picture's bytes."""
    offset: int = 0
    """Where they start in it."""
    length: int | None = None
    """How many they are; None for the whole file."""
    repeats: int = 1
    """How often it comes in an epoch: the number of its ``10_name`` folder."""
    mask_path: Path | None = None
    """A grey picture of the same shape: where it is white the picture is learned, where it is
    black it is not."""

    def read_bytes(self) -> bytes:
        """Return the encoded picture.

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
    """Return a hex SHA-256 over the row's key and its picture: its identity in a manifest."""
    return hashlib.sha256(row.key.encode() + b"\0" + row.read_bytes()).hexdigest()
