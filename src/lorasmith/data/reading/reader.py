"""Reading the rows of a dataset in any layout.

The layouts are a folder of images with ``name.txt`` captions beside them, the same in kohya's
``10_name`` folders, a folder with ``metadata.jsonl`` (the imagefolder layout of the datasets
library), and a packed tar that holds thousands of small images in one file. Reading never writes
there.
"""

from pathlib import Path

from lorasmith.core.errors import DataError
from lorasmith.data.reading.caption_sources import AUTO
from lorasmith.data.reading.folder import find_rows_in_folder
from lorasmith.data.reading.listing import DatasetListing
from lorasmith.data.reading.manifest import MANIFEST, find_rows_in_manifest
from lorasmith.data.reading.packed_tar import find_rows_in_packed_tar
from lorasmith.data.reading.problems import filter_by_severity, summarize
from lorasmith.data.reading.row import IMAGE_SUFFIXES, Row


def find_rows(
    path: Path, caption_source: str = AUTO, default_caption: str | None = None
) -> DatasetListing:
    """Find every captioned image under ``path``, and the problems of the others.

    Images are not opened.

    Args:
        path: a folder or a packed tar.
        caption_source: a name in ``CAPTION_SOURCES``, or ``auto``.
        default_caption: for images without a caption; without it they are errors.

    Raises:
        DataError: nothing there, or nothing that looks like images.
    """
    if path.is_file():
        return find_rows_in_packed_tar(path, caption_source, default_caption)
    if not path.is_dir():
        raise DataError(f"{path}: no such data folder or packed file")
    if (path / MANIFEST).is_file():
        return find_rows_in_manifest(path, caption_source, default_caption)
    listing = find_rows_in_folder(path, caption_source, default_caption)
    if not listing.rows and not filter_by_severity(listing.problems, "error"):
        unknown = [problem for problem in listing.problems if problem.kind == "unknown-kind"]
        hint = f"; there is {unknown[0].file}: {unknown[0].detail}" if unknown else ""
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{path}: no images found (looked for {suffixes}){hint}")
    return listing


def read_rows(path: Path, caption_source: str = AUTO) -> list[Row]:
    """Read every captioned image under ``path``, in a stable order.

    Raises:
        DataError: nothing there, no images, or anything wrong with one of them (with counts).
    """
    listing = find_rows(path, caption_source)
    errors = filter_by_severity(listing.problems, "error")
    if errors:
        raise DataError(f"{path}: {summarize(errors, listing.image_count)}")
    return listing.rows
