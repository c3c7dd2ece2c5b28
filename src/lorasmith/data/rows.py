"""One captioned picture, and the layouts that rows are read from.

Three layouts are understood: a folder of pictures with ``name.txt`` captions beside them, a
folder with ``metadata.jsonl`` (the imagefolder layout of the datasets library), and a packed
tar (``meta.jsonl.zlib`` + ``images.bin``) that holds thousands of small pictures in one file.
"""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.core.errors import DataError

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
)


@dataclass(frozen=True)
class Row:
    """A picture with its captions and whatever else is known about it."""

    key: str
    """Stable name inside the dataset: a relative path, or ``style/icon`` in a packed file."""
    captions: tuple[str, ...]
    """Phrasings of the caption, the main one first. At least one."""
    columns: Mapping[str, Any]
    """Metadata columns, for filters."""
    file: Path
    """The file that holds the picture's bytes."""
    offset: int = 0
    """Where they start in it."""
    length: int | None = None
    """How many they are; None for the whole file."""

    def read_bytes(self) -> bytes:
        """Return the encoded picture.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read() if self.length is None else stream.read(self.length)
        except OSError as error:
            raise DataError(f"{self.file}: cannot be read ({error.strerror})") from error

    @property
    def caption(self) -> str:
        """The main caption."""
        return self.captions[0]


def row_hash(row: Row) -> str:
    """Return a hex SHA-256 over the row's key and its picture: its identity in a manifest."""
    return hashlib.sha256(row.key.encode() + b"\0" + row.read_bytes()).hexdigest()


def read_rows(path: Path) -> list[Row]:
    """Read every captioned picture under ``path``, in a stable order.

    Raises:
        DataError: nothing there, no pictures, or pictures without captions (with counts).
    """
    if path.is_file():
        return _read_packed(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such data folder or packed file")
    listing = path / "metadata.jsonl"
    return _read_listed(path, listing) if listing.is_file() else _read_folder(path)


def _read_folder(folder: Path) -> list[Row]:
    pictures = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()
    )
    if not pictures:
        raise DataError(
            f"{folder}: no pictures found (looked for {', '.join(sorted(PICTURE_SUFFIXES))})"
        )
    captioned = [(picture, _caption_beside(picture)) for picture in pictures]
    without = [picture for picture, caption in captioned if not caption]
    if without:
        raise DataError(
            f"{folder}: {len(without)} of {len(pictures)} pictures have no caption, first "
            f"{without[0].name}; write {without[0].stem}.txt beside it"
        )
    return [
        Row(picture.relative_to(folder).as_posix(), (caption,), {}, picture)
        for picture, caption in captioned
    ]


def _caption_beside(picture: Path) -> str:
    text = picture.with_suffix(".txt")
    if not text.is_file():
        return ""
    try:
        return " ".join(text.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DataError(f"{text}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _read_listed(folder: Path, listing: Path) -> list[Row]:
    rows = []
    try:
        lines = listing.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold U+2028
    except UnicodeDecodeError as error:
        raise DataError(
            f"{listing}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_listed_row(folder, f"{listing}:{number}", line))
    if not rows:
        raise DataError(f"{listing}: lists no pictures")
    return rows


def _listed_row(folder: Path, where: str, line: str) -> Row:
    columns = _json_object(line, where)
    name = columns.get("file_name")
    if not isinstance(name, str):
        raise DataError(f"{where}: has no file_name")
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise DataError(f"{where}: {name} is not a file inside {folder}")
    return Row(name, _captions_of(columns, where), columns, file)


def _read_packed(path: Path) -> list[Row]:
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
    return [
        _packed_row(path, images.offset_data, line, number)
        for number, line in enumerate(meta.split("\n"), start=1)
        if line
    ]


def _packed_row(path: Path, start: int, line: str, number: int) -> Row:
    where = f"{path}: row {number}"
    columns = _json_object(line, where)
    try:
        key = f"{columns['style']}/{columns['icon']}"
        offset, length = int(columns["off"]), int(columns["len"])
    except KeyError as error:
        raise DataError(f"{where}: has no {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: off and len are not whole numbers") from error
    return Row(key, _captions_of(columns, where), columns, path, start + offset, length)


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object")
    return value


def _captions_of(columns: Mapping[str, Any], where: str) -> tuple[str, ...]:
    listed = columns.get("captions") or columns.get("caption") or columns.get("text")
    if not isinstance(listed, list):
        listed = [listed]
    captions = tuple(_distinct(" ".join(text.split()) for text in listed if isinstance(text, str)))
    if not captions:
        raise DataError(f"{where}: has no caption (captions, caption or text)")
    return captions


def _distinct(texts: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(text for text in texts if text)
