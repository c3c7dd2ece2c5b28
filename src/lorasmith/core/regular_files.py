"""Reading files that may be anything: only regular ones of a bounded size are read."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_O_BINARY = getattr(os, "O_BINARY", 0)
"""Windows opens descriptors in text mode without it."""
_KINDS = {
    stat.S_IFDIR: "is a folder",
    stat.S_IFIFO: "is a named pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
}


def open_regular_file(path: Path, max_bytes: int) -> BinaryIO:
    """Open a file for reading, if it is a regular one: nothing else may block or never end.

    Raises:
        OSError: it cannot be opened, is a pipe, a device or a folder, or is larger than
            ``max_bytes``; ``strerror`` says which, after the path.
    """
    try:
        # Opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _O_BINARY)
    except ValueError as error:  # NUL, or a surrogate
        raise OSError(errno.EINVAL, "is not a valid file name") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "is something else")
            raise OSError(errno.EINVAL, f"{kind}, not a file")
        if status.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {_format_size(max_bytes)}")
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: as from ``open_regular_file``.
    """
    with open_regular_file(path, max_bytes) as stream:
        return stream.read(max_bytes)  # not more, if it grows meanwhile


def _format_size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} bytes"
