"""Decoding one row's image and mask fully, before anything depends on them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lorasmith.core.errors import DataError
from lorasmith.data.images.decode import ImageTooLargeError, decode_mask, decode_with_details
from lorasmith.data.images.memory_budget import reserve_decoding
from lorasmith.data.reading.problems import Problem, ProblemKind
from lorasmith.data.reading.row import MAX_FILE_BYTES, Row
from lorasmith.data.scan.perceptual_hash import Fingerprint, fingerprint

_FILE_SIGNATURES: Sequence[tuple[bytes, str]] = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML file"),
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a Git LFS pointer without its file (run: git lfs pull)"),
    (b"%!ps", "a PostScript file"),
    (b"8bps", "a Photoshop file"),
    (b"{", "JSON text"),
)
_HEIC_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc", b"ftypmsf1")


@dataclass(frozen=True)
class ImageInfo:
    """What is known about an image that was decoded."""

    row: Row
    size: tuple[int, int]
    """Width and height, upright."""
    content_hash: str
    """Hex SHA-256 of the file."""
    fingerprint: Fingerprint
    is_blank: bool
    """All of it is one colour."""
    has_transparency: bool
    """The background colour shows through."""


@dataclass
class Inspection:
    """What came of one row: an image, unless there is an error among the problems."""

    image: ImageInfo | None = None
    problems: list[Problem] = field(default_factory=list)


def inspect_row(row: Row, background: tuple[int, int, int]) -> Inspection:
    """Decode a row's image and its mask. No content raises, however damaged."""
    with reserve_decoding(row):
        return _inspect(row, background)


def _inspect(row: Row, background: tuple[int, int, int]) -> Inspection:
    inspection = Inspection()
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
        return Inspection(None, [_explain_failure(row, encoded, error)])
    if decoded.has_more_frames:
        detail = "has several frames; only the first is used"
        inspection.problems.append(Problem(row.key, "animated", detail, "warning"))
    if decoded.profile_problem:
        detail = (
            f"its colour profile cannot be used ({decoded.profile_problem}); its colours are read "
            "as sRGB: save it as sRGB if they look wrong"
        )
        inspection.problems.append(Problem(row.key, "color-profile", detail, "warning"))
    inspection.problems += _mask_problems(row, decoded.image.size)
    if not any(problem.severity == "error" for problem in inspection.problems):
        inspection.image = ImageInfo(
            row=row,
            size=decoded.image.size,
            content_hash=hashlib.sha256(encoded).hexdigest(),
            fingerprint=fingerprint(decoded.image),
            is_blank=_is_blank(decoded.image),
            has_transparency=decoded.has_transparency,
        )
    return inspection


def _read(row: Row) -> bytes | Problem:
    size = row.length if row.length is not None else _file_size(row.path)
    if size > MAX_FILE_BYTES:
        return Problem(row.key, "too-large", "its file is larger than 1 GiB")
    encoded = row.read_bytes()
    if not encoded:
        return Problem(row.key, "empty-file", "is empty (0 bytes); copy it again or delete it")
    return encoded


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _problem(row: Row, kind: ProblemKind, error: DataError, name: str | None = None) -> Problem:
    """Make a problem of an error, without the file name that its text begins with."""
    return Problem(row.key, kind, str(error).removeprefix(f"{name or row.key}: "))


def _explain_failure(row: Row, encoded: bytes, error: DataError) -> Problem:
    """Distinguish files of another kind from damaged images."""
    start = encoded[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, kind in _FILE_SIGNATURES:
        if start.startswith(signature):
            return Problem(row.key, "not-an-image", f"is not an image but {kind}")
    if encoded[4:12] in _HEIC_BRANDS:
        detail = "is a HEIC photo, which is not supported; convert it to JPEG or PNG"
        return Problem(row.key, "not-an-image", detail)
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
        detail = f"{name} is all black, so that nothing of the image would be trained"
        return [Problem(row.key, "bad-mask", detail)]
    return []


def _is_blank(image: Image.Image) -> bool:
    extrema = image.getextrema()
    return all(high - low <= 2 for low, high in extrema)  # type: ignore[misc]
