"""How much memory all threads together may use for images that are being decoded.

The size of an image is in its header, so that threads can wait for their turn before they decode:
one photograph of 100 million pixels needs about 2 GB, and there may be as many threads as cores.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from lorasmith.data.images.decode import DECODE_ERRORS, MAX_PIXELS
from lorasmith.data.images.open_image import open_image
from lorasmith.data.reading.row import MAX_FILE_BYTES, Row

_BYTES_PER_PIXEL = 20
"""Of an image of 8 bits: as it is stored, converted to sRGB, with alpha, blended, and in RGB."""
_WIDE_MODES = ("I", "F")
_WIDE_BYTES_PER_PIXEL = 40
"""Of 16-bit grey and numbers."""
_MEMORY_SHARE = 0.25
_DEFAULT_MEMORY = 8 << 30
"""Where the system does not say how much it has."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class MemoryBudget:
    """A number of bytes that threads reserve parts of, waiting for others where it is used up."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes. What is larger than the total gets it alone.

        A thread must not reserve twice: it could wait for itself.
        """
        size = min(size, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self.total)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def physical_memory() -> int:
    """Return the bytes of memory of this machine, or of this container if it has less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        total = _DEFAULT_MEMORY
    try:
        return min(total, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # none, or "max"
        return total


_DECODING = MemoryBudget(int(physical_memory() * _MEMORY_SHARE))


@contextmanager
def reserve_decoding(row: Row, with_image: bool = True, with_mask: bool = True) -> Iterator[None]:
    """Wait until there is memory to read and decode a row's image and its mask, and hold it.

    Args:
        row: what is read; files that cannot be opened need nothing.
        with_image: whether its image is read.
        with_mask: whether its mask is read.
    """
    size = _decoding_size(row) if with_image else 0
    if with_mask and row.mask_path is not None:
        size += _decoding_size(Row(row.key, row.captions, {}, row.mask_path))
    with _DECODING.reserve(size):
        yield


def _decoding_size(row: Row) -> int:
    """Return the bytes that reading and decoding an image takes at most."""
    try:
        with row.open() as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            if size > MAX_FILE_BYTES:
                return 0  # refused before it is read
            return size + estimate_memory(open_image(stream))
    except DECODE_ERRORS:
        return 0


def estimate_memory(image: Image.Image) -> int:
    """Return the bytes that decoding takes at most, from the size in the image's header."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        return 0  # refused before it is decoded
    is_wide = image.mode.startswith(_WIDE_MODES)
    return pixels * (_WIDE_BYTES_PER_PIXEL if is_wide else _BYTES_PER_PIXEL)
