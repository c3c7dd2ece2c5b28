"""Datasets in one uncompressed tar (``meta.jsonl.zlib`` + ``images.bin``) of many small images."""

import tarfile
import zlib
from pathlib import Path

from lorasmith.core.errors import DataError
from lorasmith.data.reading.caption_sources import AUTO, ImageContext, SiblingFiles
from lorasmith.data.reading.listing import DatasetListing
from lorasmith.data.reading.manifest import LineError, parse_json_object, require_captions
from lorasmith.data.reading.row import Row


def find_rows_in_packed_tar(
    path: Path, caption_source: str = AUTO, default_caption: str | None = None
) -> DatasetListing:
    """Find the images of a packed tar.

    Args:
        path: the tar.
        caption_source: a name in ``CAPTION_SOURCES``, or ``auto``.
        default_caption: for images without a caption.

    Raises:
        DataError: the file is not a packed dataset.
    """
    try:
        with tarfile.open(path, "r:") as tar:  # offsets need an uncompressed tar
            member = tar.getmember("meta.jsonl.zlib")
            stream = tar.extractfile(member)
            metadata = zlib.decompress(stream.read() if stream else b"").decode()
            images = tar.getmember("images.bin")
    except (tarfile.TarError, KeyError, zlib.error, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path}: not a packed dataset (meta.jsonl.zlib + images.bin): {error}"
        ) from error
    listing = DatasetListing()
    for row_number, line in enumerate(metadata.split("\n"), start=1):
        if line:
            listing.image_count += 1
            try:
                row = _parse_row(path, images, line, caption_source, default_caption, listing)
                listing.rows.append(row)
            except LineError as error:
                listing.add_problem(f"row {row_number}", "bad-line", str(error))
    return listing


def _parse_row(
    path: Path,
    images: tarfile.TarInfo,
    line: str,
    caption_source: str,
    default_caption: str | None,
    listing: DatasetListing,
) -> Row:
    columns = parse_json_object(line)
    try:
        key = f"{columns['style']}/{columns['icon']}"
        offset, length = int(columns["off"]), int(columns["len"])
    except KeyError as error:
        raise LineError(f"has no {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise LineError("off and len are not whole numbers") from error
    siblings = SiblingFiles(path.parent)
    image = ImageContext(key, path, path, siblings, columns, default_caption=default_caption)
    captions = require_captions(image, caption_source, listing)
    if offset < 0 or length < 0 or offset + length > images.size:
        raise LineError(f"{key} lies outside of images.bin")
    return Row(key, captions, columns, path, images.offset_data + offset, length)
