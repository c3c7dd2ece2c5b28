"""Reading the rows of a dataset in any layout.

The layouts are a folder of images with ``name.txt`` captions beside them, the same in kohya's
``10_name`` folders, a folder with ``metadata.jsonl`` (the imagefolder layout of the datasets
library), and a packed tar that holds thousands of small images in one file. Reading never writes
there.
"""

import os
import warnings
from pathlib import Path

from lorasmith.core.errors import DataError, LorasmithWarning
from lorasmith.data.reading.folder import find_rows_in_folder
from lorasmith.data.reading.listing import DatasetListing
from lorasmith.data.reading.manifest import MANIFEST, find_rows_in_manifest
from lorasmith.data.reading.options import DEFAULT_OPTIONS, ReadOptions
from lorasmith.data.reading.packed_tar import find_rows_in_packed_tar
from lorasmith.data.reading.problems import ProblemKind, filter_by_severity, summarize
from lorasmith.data.reading.row import IMAGE_SUFFIXES, Row

_LEFT_OUT: tuple[ProblemKind, ...] = ("linked-outside", "link-loop", "foreign-mask")
"""Warnings about files that look like images of the dataset and are none."""


def find_rows(path: Path, options: ReadOptions = DEFAULT_OPTIONS) -> DatasetListing:
    """Find every captioned image under ``path``, and the problems of the others.

    Images are not opened.

    Args:
        path: a folder or a packed tar.
        options: where captions come from, and which links are followed.

    Raises:
        DataError: nothing there, or nothing that looks like images.
    """
    if path.is_file():
        return find_rows_in_packed_tar(path, options)
    if not path.is_dir():
        raise DataError(f"{path}: no such data folder or packed file")
    if os.path.lexists(path / MANIFEST):
        return find_rows_in_manifest(path, options)
    listing = find_rows_in_folder(path, options)
    if not listing.rows and not filter_by_severity(listing.problems, "error"):
        kinds = ("unknown-kind", *_LEFT_OUT)
        unused = [problem for problem in listing.problems if problem.kind in kinds]
        hint = f"; there is {unused[0].file}: {unused[0].detail}" if unused else ""
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{path}: no images found (looked for {suffixes}){hint}")
    return listing


def read_rows(path: Path, options: ReadOptions = DEFAULT_OPTIONS) -> list[Row]:
    """Read every captioned image under ``path``, in a stable order.

    Files that are left out (links out of the folder, another program's masks) are a
    LorasmithWarning.

    Raises:
        DataError: nothing there, no images, or anything wrong with one of them (with counts).
    """
    listing = find_rows(path, options)
    errors = filter_by_severity(listing.problems, "error")
    if errors:
        raise DataError(f"{path}: {summarize(errors, listing.image_count)}")
    left_out = [problem for problem in listing.problems if problem.kind in _LEFT_OUT]
    if left_out:
        message = f"{path}: {summarize(left_out, listing.image_count)}"
        warnings.warn(message, LorasmithWarning, stacklevel=2)
    return listing.rows
