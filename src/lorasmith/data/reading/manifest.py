"""Datasets with a ``metadata.jsonl`` (the imagefolder layout of the datasets library)."""

import io
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorasmith.core.errors import DataError
from lorasmith.core.regular_files import read_regular_file
from lorasmith.data.reading.captions.caption_sources import ImageContext, SiblingFiles, find_caption
from lorasmith.data.reading.folder import describe_refused_mask, find_rows_in_folder
from lorasmith.data.reading.links import FOLLOW_SETTING, LinkPolicy
from lorasmith.data.reading.listing import DatasetListing
from lorasmith.data.reading.options import AUTO, ReadOptions
from lorasmith.data.reading.row import Row, find_mask, foreign_mask_stem, is_mask_name

MANIFEST = "metadata.jsonl"
MAX_METADATA_BYTES = 256 << 20
"""Of metadata as text: 16,000 images with several captions each have 15 MiB."""
_MAX_LINES = 1_000_000
_MAX_PROBLEMS = 100_000
_MAX_SHOWN = 100
"""Characters of a name in a message."""


class LineError(Exception):
    """What is wrong with one line of metadata."""


def find_rows_in_manifest(folder: Path, options: ReadOptions) -> DatasetListing:
    """Find the images that ``metadata.jsonl`` names.

    Args:
        folder: holds the manifest.
        options: where captions come from, and which links are followed.

    Raises:
        DataError: the manifest itself cannot be read, or lists nothing.
    """
    manifest, links = folder / MANIFEST, LinkPolicy(folder, options.follow_links)
    listing = DatasetListing()
    siblings: dict[Path, SiblingFiles] = {}
    for line_number, line in enumerate(_read_lines(manifest, links), start=1):
        if not line.strip():
            continue
        listing.image_count += 1
        location = f"{MANIFEST}:{line_number}"
        try:
            path, columns = _parse_line(folder, line, links)
            files = siblings.setdefault(path.parent, SiblingFiles(path.parent))
            image = ImageContext(
                columns["file_name"], path, folder, files, columns,
                default_caption=options.default_caption, links=links,
            )  # fmt: skip
            captions = require_captions(image, options.caption_source, listing)
            row = Row(image.key, captions, columns, path, mask_path=_find_mask(path, links))
            listing.rows.append(row)
        except FileNotFoundError as error:
            listing.add_problem(location, "missing-file", str(error))
        except LineError as error:
            listing.add_problem(location, "bad-line", str(error))
        check_size(listing, manifest)
    if not listing.image_count:
        raise DataError(f"{manifest}: lists no images")
    _report_unlisted(folder, listing)
    return listing


def check_size(listing: DatasetListing, file: Path) -> None:
    """Raises DataError where a file has more lines, or more bad ones, than anybody means."""
    if listing.image_count > _MAX_LINES:
        raise DataError(f"{file}: has more than {_MAX_LINES:,} lines; divide it")
    if len(listing.problems) > _MAX_PROBLEMS:
        first = listing.problems[0]
        raise DataError(
            f"{file}: more than {_MAX_PROBLEMS:,} lines cannot be used, first {first.file}: "
            f"{first.detail}"
        )


def parse_json_object(line: str) -> dict[str, Any]:
    """Raises LineError where a line is not a JSON object."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON ({error.msg})") from error
    except ValueError as error:
        raise LineError("not JSON that can be read (a number of thousands of digits)") from error
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


def _read_lines(manifest: Path, links: LinkPolicy) -> Iterator[str]:
    if links.refuses(manifest):
        raise DataError(
            f"{manifest}: is a link out of the dataset; copy it, or follow links with "
            f"{FOLLOW_SETTING}"
        )
    try:
        text = read_regular_file(manifest, MAX_METADATA_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{manifest}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read ({error.strerror})") from error
    return split_lines(text)


def split_lines(text: str) -> Iterator[str]:
    """Split at line feeds only, as JSON may hold U+2028, and without a list of all lines."""
    return (line.removesuffix("\n") for line in io.StringIO(text, newline="\n"))


def _parse_line(folder: Path, line: str, links: LinkPolicy) -> tuple[Path, Mapping[str, Any]]:
    columns = parse_json_object(line)
    name = columns.get("file_name")
    if not isinstance(name, str) or not name.isprintable():
        raise LineError("has no file_name")
    if is_mask_name(name) or foreign_mask_stem(name) is not None:
        raise LineError(f"{name} is a mask; list the image that it belongs to")
    path = _find_in_any_form(folder, name)
    # Not Path's own methods: they raise for names that are too long.
    if not _is_below(folder, path) or not links.allows_target(path) or not os.path.isfile(path):  # noqa: PTH113
        hint = "" if links.is_inside(path) else f" (links out of it need {FOLLOW_SETTING})"
        raise FileNotFoundError(f"{name[:_MAX_SHOWN]} is not a file inside {folder}{hint}")
    return path, columns


def _find_in_any_form(folder: Path, name: str) -> Path:
    """Return the path of a file whose name may be composed or decomposed (macOS) on disk."""
    names = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    existing = (folder / each for each in names if os.path.isfile(folder / each))  # noqa: PTH113
    return next(existing, folder / name)


def _is_below(folder: Path, path: Path) -> bool:
    """Whether a path names something in a folder, links aside."""
    return Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))


def _find_mask(image: Path, links: LinkPolicy) -> Path | None:
    mask = find_mask(image)
    if mask is not None and links.refuses(mask):
        raise LineError(describe_refused_mask(mask))
    return mask


def _report_unlisted(folder: Path, listing: DatasetListing) -> None:
    """Warn of images in the folder that no line names."""
    listed = {row.path.resolve() for row in listing.rows}
    if len(listed) < listing.image_count:
        return  # which images the faulty lines mean is not known
    for row in find_rows_in_folder(folder, ReadOptions(default_caption="any")).rows:
        if row.path.resolve() not in listed:
            detail = "is not in metadata.jsonl and not used"
            listing.add_problem(row.key, "unlisted", detail, "warning")
