"""Datasets with a ``metadata.jsonl`` (the imagefolder layout of the datasets library)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorasmith.core.errors import DataError
from lorasmith.data.reading.caption_sources import (
    AUTO,
    ImageContext,
    SiblingFiles,
    find_caption,
)
from lorasmith.data.reading.folder import find_rows_in_folder
from lorasmith.data.reading.listing import DatasetListing
from lorasmith.data.reading.row import Row, find_mask, is_mask_name

MANIFEST = "metadata.jsonl"


class LineError(Exception):
    """What is wrong with one line of metadata."""


def find_rows_in_manifest(
    folder: Path, caption_source: str = AUTO, default_caption: str | None = None
) -> DatasetListing:
    """Find the images that ``metadata.jsonl`` names.

    Args:
        folder: holds the manifest.
        caption_source: a name in ``CAPTION_SOURCES``, or ``auto``.
        default_caption: for images without a caption.

    Raises:
        DataError: the manifest itself cannot be read, or lists nothing.
    """
    manifest = folder / MANIFEST
    listing = DatasetListing()
    siblings: dict[Path, SiblingFiles] = {}
    for line_number, line in enumerate(_read_lines(manifest), start=1):
        if not line.strip():
            continue
        listing.image_count += 1
        try:
            path, columns = _parse_line(folder, line)
            files = siblings.setdefault(path.parent, SiblingFiles(path.parent))
            image = ImageContext(
                columns["file_name"], path, folder, files, columns, default_caption=default_caption
            )
            captions = require_captions(image, caption_source, listing)
            row = Row(image.key, captions, columns, path, mask_path=find_mask(path))
            listing.rows.append(row)
        except FileNotFoundError as error:
            listing.add_problem(f"{MANIFEST}:{line_number}", "missing-file", str(error))
        except LineError as error:
            listing.add_problem(f"{MANIFEST}:{line_number}", "bad-line", str(error))
    if not listing.image_count:
        raise DataError(f"{manifest}: lists no images")
    _report_unlisted(folder, listing)
    return listing


def parse_json_object(line: str) -> dict[str, Any]:
    """Raises LineError where a line is not a JSON object."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON ({error.msg})") from error
    except RecursionError as error:
        raise LineError("not JSON that can be read (too deep)") from error
    if not isinstance(value, dict):
        raise LineError("not a JSON object")
    return value


def require_captions(
    image: ImageContext, caption_source: str, listing: DatasetListing
) -> tuple[str, ...]:
    """Return the captions of a listed image, noting warnings; without any raise LineError."""
    caption = find_caption(image, caption_source)
    for problem in caption.problems:
        if problem.severity == "error":
            raise LineError(f"{problem.file}: {problem.detail}")
        listing.add_problem(problem.file, problem.kind, problem.detail, problem.severity)
    if caption.texts:
        return caption.texts
    if caption_source in (AUTO, "metadata"):
        raise LineError("has no caption (captions, caption or text)")
    raise LineError(f"data.caption_source = {caption_source} has no caption for {image.key}")


def _read_lines(manifest: Path) -> list[str]:
    try:
        return manifest.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold U+2028
    except UnicodeDecodeError as error:
        raise DataError(
            f"{manifest}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read ({error.strerror})") from error


def _parse_line(folder: Path, line: str) -> tuple[Path, Mapping[str, Any]]:
    columns = parse_json_object(line)
    name = columns.get("file_name")
    if not isinstance(name, str) or not name.isprintable():
        raise LineError("has no file_name")
    if is_mask_name(name):
        raise LineError(f"{name} is a mask; list the image that it belongs to")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise FileNotFoundError(f"{name} is not a file inside {folder}")
    return path, columns


def _report_unlisted(folder: Path, listing: DatasetListing) -> None:
    """Warn of images in the folder that no line names."""
    listed = {row.path.resolve() for row in listing.rows}
    if len(listed) < listing.image_count:
        return  # which images the faulty lines mean is not known
    for row in find_rows_in_folder(folder, default_caption="any").rows:
        if row.path.resolve() not in listed:
            detail = "is not in metadata.jsonl and not used"
            listing.add_problem(row.key, "unlisted", detail, "warning")
