"""Reading the rows of a dataset, whatever its layout.

Understood are a folder of pictures with ``name.txt`` captions beside them, the same in kohya's
``10_name`` folders, a folder with ``metadata.jsonl`` (the imagefolder layout of the datasets
library), and a packed tar that holds thousands of small pictures in one file. Nothing is ever
written there.
"""

from pathlib import Path

from lorasmith.core.errors import DataError
from lorasmith.data.reading.folder import DatasetListing, find_rows_in_folder
from lorasmith.data.reading.manifest import MANIFEST, find_rows_in_manifest, find_rows_in_packed_tar
from lorasmith.data.reading.row import IMAGE_SUFFIXES, MASK_SUFFIX, Row, hash_row
from lorasmith.data.scan.problems import filter_by_severity, summarize

__all__ = ["MASK_SUFFIX", "IMAGE_SUFFIXES", "Row", "find_rows", "read_rows", "hash_row"]


def find_rows(path: Path, caption: str | None = None) -> DatasetListing:
    """Find every captioned picture under ``path``, and what is wrong with the others.

    Pictures are not opened.

    Args:
        path: a folder or a packed tar.
        caption: for pictures that have none; without it they are errors.

    Raises:
        DataError: nothing there, or nothing that looks like pictures.
    """
    if path.is_file():
        return find_rows_in_packed_tar(path, caption)
    if not path.is_dir():
        raise DataError(f"{path}: no such data folder or packed file")
    if (path / MANIFEST).is_file():
        return find_rows_in_manifest(path, caption)
    found = find_rows_in_folder(path, caption)
    if not found.rows and not filter_by_severity(found.problems, "error"):
        some = [problem for problem in found.problems if problem.kind == "unknown-kind"]
        instead = f"; there is {some[0].file}: {some[0].detail}" if some else ""
        looked = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{path}: no pictures found (looked for {looked}){instead}")
    return found


def read_rows(path: Path) -> list[Row]:
    """Read every captioned picture under ``path``, in a stable order.

    Raises:
        DataError: nothing there, no pictures, or anything wrong with one of them (with counts).
    """
    found = find_rows(path)
    errors = filter_by_severity(found.problems, "error")
    if errors:
        raise DataError(f"{path}: {summarize(errors, found.image_count)}")
    return found.rows
