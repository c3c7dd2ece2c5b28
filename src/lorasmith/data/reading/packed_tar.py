"""Datasets in one uncompressed tar (``meta.jsonl.zlib`` + ``images.bin``) of many small images."""

import tarfile
import zlib
from pathlib import Path
from typing import IO, Any, BinaryIO

from lorasmith.core.errors import DataError
from lorasmith.core.regular_files import open_regular_file
from lorasmith.data.reading.captions.caption_sources import ImageContext, SiblingFiles
from lorasmith.data.reading.listing import DatasetListing
from lorasmith.data.reading.manifest import (
    MAX_METADATA_BYTES,
    LineError,
    check_size,
    parse_json_object,
    require_captions,
    split_lines,
)
from lorasmith.data.reading.options import ReadOptions
from lorasmith.data.reading.row import MAX_PACKED_BYTES, Row

METADATA, IMAGES = "meta.jsonl.zlib", "images.bin"
_MAX_HEADER_BYTES = 1 << 20
"""Headers of a tar are read at once, whatever length they declare."""


def find_rows_in_packed_tar(path: Path, options: ReadOptions) -> DatasetListing:
    """Find the images of a packed tar.

    Args:
        path: the tar.
        options: where captions come from.

    Raises:
        DataError: the file is not a packed dataset, or its metadata are larger than
            ``MAX_METADATA_BYTES``.
    """
    try:
        metadata, images = _read_members(path)
    except (tarfile.TarError, KeyError, ValueError, zlib.error, OSError, ArithmeticError,
            RecursionError) as error:  # fmt: skip
        raise DataError(f"{path}: not a packed dataset ({METADATA} + {IMAGES}): {error}") from error
    listing = DatasetListing()
    for row_number, line in enumerate(split_lines(metadata), start=1):
        if line:
            listing.image_count += 1
            try:
                listing.rows.append(_parse_row(path, images, line, options, listing))
            except LineError as error:
                listing.add_problem(f"row {row_number}", "bad-line", str(error))
            check_size(listing, path)
    return listing


class _BoundedReads:
    """A file that refuses to read much at once, as tar headers may ask it to."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


def _read_members(path: Path) -> tuple[str, tarfile.TarInfo]:
    """Return the metadata as text, and where the images are in the file."""
    with open_regular_file(path, MAX_PACKED_BYTES) as stream:
        reader: Any = _BoundedReads(stream)
        with tarfile.open(fileobj=reader, mode="r:") as tar:  # offsets need an uncompressed tar
            metadata, images = tar.getmember(METADATA), tar.getmember(IMAGES)
        for member in (metadata, images):
            if not member.isreg() or member.issparse():
                raise tarfile.ReadError(f"{member.name} is not a plain file")
        if metadata.size > MAX_METADATA_BYTES:
            raise tarfile.ReadError(f"{METADATA} has {metadata.size:,} bytes")
        stream.seek(metadata.offset_data)
        return _decompress(stream, metadata.size).decode(), images


def _decompress(stream: IO[bytes], size: int) -> bytes:
    """Decompress what a stream holds next, up to ``MAX_METADATA_BYTES``."""
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(stream.read(size), MAX_METADATA_BYTES)
    if unpacker.unconsumed_tail:
        limit = MAX_METADATA_BYTES >> 20
        raise zlib.error(f"{METADATA} unpacks to more than {limit} MiB; divide the dataset")
    if not unpacker.eof:
        raise zlib.error(f"{METADATA} is cut off")
    return text


def _parse_row(
    path: Path,
    images: tarfile.TarInfo,
    line: str,
    options: ReadOptions,
    listing: DatasetListing,
) -> Row:
    columns = parse_json_object(line)
    try:
        key = f"{columns['style']}/{columns['icon']}"
        offset, length = columns["off"], columns["len"]
    except KeyError as error:
        raise LineError(f"has no {error.args[0]}") from error
    if type(offset) is not int or type(length) is not int:
        raise LineError("off and len are not whole numbers")
    if not key.isprintable():
        raise LineError("style and icon are not printable text")
    image = ImageContext(
        key, path, path, SiblingFiles(path.parent), columns,
        default_caption=options.default_caption,
    )  # fmt: skip
    captions = require_captions(image, options.caption_source, listing)
    if offset < 0 or length < 0 or offset + length > images.size:
        raise LineError(f"{key} lies outside of {IMAGES}")
    return Row(key, captions, columns, path, images.offset_data + offset, length)
