"""Datasets that say in JSON what is in them: ``metadata.jsonl``, and packed tars.

A packed tar (``meta.jsonl.zlib`` + ``images.bin``) holds thousands of small pictures in one file.
"""

import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorasmith.core.errors import DataError
from lorasmith.data.reading.folder import (
    DatasetListing,
    find_mask,
    find_rows_in_folder,
    is_mask_name,
)
from lorasmith.data.reading.row import Row

MANIFEST = "metadata.jsonl"


class _LineError(Exception):
    """What is wrong with a line, and of which picture it speaks."""


def find_rows_in_manifest(folder: Path, caption: str | None = None) -> DatasetListing:
    """Find the pictures that ``metadata.jsonl`` names (the imagefolder layout).

    Args:
        folder: holds the listing.
        caption: for pictures that have none.

    Raises:
        DataError: the listing itself cannot be read, or lists nothing.
    """
    listing = folder / MANIFEST
    found = DatasetListing()
    for number, line in enumerate(_lines(listing), start=1):
        if not line.strip():
            continue
        found.image_count += 1
        try:
            found.rows.append(_listed_row(folder, line, caption))
        except FileNotFoundError as error:
            found.note(f"{MANIFEST}:{number}", "missing-file", str(error))
        except _LineError as error:
            found.note(f"{MANIFEST}:{number}", "bad-line", str(error))
    if not found.image_count:
        raise DataError(f"{listing}: lists no pictures")
    _note_unlisted(folder, found)
    return found


def _lines(listing: Path) -> list[str]:
    try:
        return listing.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold U+2028
    except UnicodeDecodeError as error:
        raise DataError(
            f"{listing}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{listing}: cannot be read ({error.strerror})") from error


def _listed_row(folder: Path, line: str, caption: str | None) -> Row:
    columns = _json_object(line)
    name = columns.get("file_name")
    if not isinstance(name, str) or not name.isprintable():
        raise _LineError("has no file_name")
    if is_mask_name(name):
        raise _LineError(f"{name} is a mask; list the picture that it belongs to")
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise FileNotFoundError(f"{name} is not a file inside {folder}")
    captions = _captions_of(columns, caption)
    return Row(name, captions, columns, file, mask_path=find_mask(file))


def _note_unlisted(folder: Path, found: DatasetListing) -> None:
    """Warn of pictures that lie in the folder and are named by no line."""
    listed = {row.path.resolve() for row in found.rows}
    if len(listed) < found.image_count:
        return  # which pictures the faulty lines mean is not known
    around = find_rows_in_folder(folder, caption="any")
    for row in around.rows:
        if row.path.resolve() not in listed:
            found.note(row.key, "unlisted", "is not in metadata.jsonl and not used", "warning")


def find_rows_in_packed_tar(path: Path, caption: str | None = None) -> DatasetListing:
    """Find the pictures of a packed tar.

    Raises:
        DataError: the file is not a packed dataset.
    """
    try:
        with tarfile.open(path, "r:") as tar:  # offsets need an uncompressed tar
            member = tar.getmember("meta.jsonl.zlib")
            stream = tar.extractfile(member)
            meta = zlib.decompress(stream.read() if stream else b"").decode()
            images = tar.getmember("images.bin")
    except (tarfile.TarError, KeyError, zlib.error, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path}: not a packed dataset (meta.jsonl.zlib + images.bin): {error}"
        ) from error
    found = DatasetListing()
    for number, line in enumerate(meta.split("\n"), start=1):
        if line:
            found.image_count += 1
            try:
                found.rows.append(_packed_row(path, images, line, caption))
            except _LineError as error:
                found.note(f"row {number}", "bad-line", str(error))
    return found


def _packed_row(path: Path, images: tarfile.TarInfo, line: str, caption: str | None) -> Row:
    columns = _json_object(line)
    try:
        key = f"{columns['style']}/{columns['icon']}"
        offset, length = int(columns["off"]), int(columns["len"])
    except KeyError as error:
        raise _LineError(f"has no {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise _LineError("off and len are not whole numbers") from error
    captions = _captions_of(columns, caption)
    if offset < 0 or length < 0 or offset + length > images.size:
        raise _LineError(f"{key} lies outside of images.bin")
    start = images.offset_data + offset
    return Row(key, captions, columns, path, start, length)


def _json_object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _LineError(f"not JSON ({error.msg})") from error
    except RecursionError as error:
        raise _LineError("not JSON that can be read (too deep)") from error
    if not isinstance(value, dict):
        raise _LineError("not a JSON object")
    return value


def _captions_of(columns: Mapping[str, Any], caption: str | None) -> tuple[str, ...]:
    listed = columns.get("captions") or columns.get("caption") or columns.get("text")
    if not isinstance(listed, list):
        listed = [listed]
    texts = [" ".join(text.split()) for text in listed if isinstance(text, str)]
    captions = tuple(_distinct(texts)) or ((caption,) if caption else ())
    if not captions:
        raise _LineError("has no caption (captions, caption or text)")
    return captions


def _distinct(texts: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(text for text in texts if text)
