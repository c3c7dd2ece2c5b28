"""Opening one row's picture and mask to the last byte, before anything depends on them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lorasmith.core.errors import DataError
from lorasmith.data.images.decode import ImageTooLargeError, decode_mask, decode_with_details
from lorasmith.data.reading.row import Row
from lorasmith.data.scan.perceptual_hash import Fingerprint, fingerprint
from lorasmith.data.scan.problems import Kind, Problem

MAX_BYTES = 1 << 30
"""Larger files are refused before they are read."""

_LOOKS_LIKE: Sequence[tuple[bytes, str]] = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML file"),
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a Git LFS pointer without its file (run: git lfs pull)"),
    (b"{", "JSON text"),
)
_PHONES = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc", b"ftypmsf1")


@dataclass(frozen=True)
class ImageInfo:
    """What is known about a picture that was decoded."""

    row: Row
    """Which."""
    size: tuple[int, int]
    """Its width and height, upright."""
    content_hash: str
    """SHA-256 of its file."""
    fingerprint: Fingerprint
    """What it looks like, in a few bytes."""
    is_blank: bool
    """All of it is one colour."""
    has_transparency: bool
    """Some of it lies on the background colour."""


@dataclass
class Inspection:
    """The outcome of one row: a look unless an error stands among the problems."""

    image: ImageInfo | None = None
    problems: list[Problem] = field(default_factory=list)


def inspect_row(row: Row, background: tuple[int, int, int]) -> Inspection:
    """Decode a row's picture and its mask. Raises for no content, however damaged."""
    outcome = Inspection()
    try:
        encoded = _read(row)
    except DataError as error:
        return Inspection(None, [_problem(row, "unreadable", error, str(row.path))])
    if not isinstance(encoded, bytes):
        return Inspection(None, [encoded])
    try:
        decoded = decode_with_details(encoded, row.key, background)
    except ImageTooLargeError as error:
        return Inspection(None, [_problem(row, "too-large", error)])
    except DataError as error:
        return Inspection(None, [_why_not(row, encoded, error)])
    if decoded.has_more_frames:
        detail = "has several frames; only the first is used"
        outcome.problems.append(Problem(row.key, "animated", detail, "warning"))
    outcome.problems += _mask_problems(row, decoded.image.size)
    if not any(problem.severity == "error" for problem in outcome.problems):
        outcome.image = ImageInfo(
            row=row,
            size=decoded.image.size,
            content_hash=hashlib.sha256(encoded).hexdigest(),
            fingerprint=fingerprint(decoded.image),
            is_blank=_is_blank(decoded.image),
            has_transparency=decoded.has_transparency,
        )
    return outcome


def _read(row: Row) -> bytes | Problem:
    if row.length is None and _size_of(row.path) > MAX_BYTES:
        return Problem(row.key, "too-large", "its file is larger than 1 GiB")
    encoded = row.read_bytes()
    if not encoded:
        return Problem(row.key, "empty-file", "is empty (0 bytes); copy it again or delete it")
    return encoded


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def _problem(row: Row, kind: Kind, error: DataError, name: str | None = None) -> Problem:
    """Take an error's text without the name that a problem has beside it."""
    return Problem(row.key, kind, str(error).removeprefix(f"{name or row.key}: "))


def _why_not(row: Row, encoded: bytes, error: DataError) -> Problem:
    """Tell files of another kind from damaged pictures."""
    start = encoded[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, kind in _LOOKS_LIKE:
        if start.startswith(mark):
            return Problem(row.key, "not-a-picture", f"is no picture but {kind}")
    if encoded[4:12] in _PHONES:
        detail = "is a HEIC photo, which is not read; convert it to JPEG or PNG"
        return Problem(row.key, "not-a-picture", detail)
    return _problem(row, "damaged", error)


def _mask_problems(row: Row, size: tuple[int, int]) -> list[Problem]:
    if row.mask_path is None:
        return []
    name = row.mask_path.name
    try:
        encoded = row.read_mask() or b""
        mask = decode_mask(encoded, name, size)
    except DataError as error:
        detail = str(error).removeprefix(f"{row.mask_path}: ").removeprefix(f"{name}: ")
        return [Problem(row.key, "bad-mask", f"{name}: {detail}")]
    if mask.getextrema()[1] == 0:
        detail = f"{name} is all black, so that nothing of the picture would be learned"
        return [Problem(row.key, "bad-mask", detail)]
    return []


def _is_blank(picture: Image.Image) -> bool:
    extrema = picture.getextrema()
    return all(high - low <= 2 for low, high in extrema)  # type: ignore[misc]
