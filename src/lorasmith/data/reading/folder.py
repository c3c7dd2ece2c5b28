"""Datasets that are folders: pictures with ``name.txt`` beside them, in kohya's layout or flat.

In kohya's layout the pictures lie in folders called ``10_some words``: each comes 10 times in an
epoch, and those without a caption file take the words as their caption.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lorasmith.data.reading.caption_file import read_caption_file
from lorasmith.data.reading.row import IMAGE_SUFFIXES, MASK_SUFFIX, Row
from lorasmith.data.scan.problems import Kind, Problem, Severity

MANY_REPEATS = 200
"""More repeats than this are more likely a year or a number in a folder's name."""

_REPEATS = re.compile(r"(\d{1,9})_(.+)")
_CAPTION = ".txt"
_OTHER_CAPTIONS = (".caption", ".captions", ".text", ".tags", ".cap", ".md", ".json", ".txt.txt")
_UNREAD = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".raw", ".cr2", ".cr3", ".nef",
     ".arw", ".dng", ".exr", ".hdr", ".tga", ".ico", ".jpe", ".jpg_large", ".pdf"}
)  # fmt: skip
_NOT_OURS = "__MACOSX"


@dataclass
class DatasetListing:
    """What a place holds, before any picture is opened."""

    rows: list[Row] = field(default_factory=list)
    """Captioned pictures that exist, in a stable order."""
    problems: list[Problem] = field(default_factory=list)
    """Everything that is wrong or strange."""
    image_count: int = 0
    """How many pictures there are, with and without captions."""

    def note(self, file: str, kind: Kind, detail: str, severity: Severity = "error") -> None:
        """Add a problem."""
        self.problems.append(Problem(printable_name(file), kind, detail, severity))


def find_rows_in_folder(folder: Path, caption: str | None = None) -> DatasetListing:
    """Find the pictures of a folder and below; hidden files and folders are not looked at.

    Args:
        folder: it exists.
        caption: for pictures that have none; without it they are errors.
    """
    found = DatasetListing()
    pictures: list[tuple[Path, _Folder]] = []
    for place in _walk(folder, found):
        _look_around(place, found)
        pictures += [(picture, place) for picture in place.pictures]
    found.image_count = len(pictures)
    for picture, place in sorted(pictures, key=lambda pair: pair[0]):
        _add_row(picture, place, caption, found)
    return found


def find_mask(picture: Path) -> Path | None:
    """Return the mask that belongs to a picture, if there is one."""
    mask = picture.with_name(picture.stem + MASK_SUFFIX)
    return mask if mask.is_file() else None


def is_mask_name(name: str) -> bool:
    """Tell whether a file is a mask by its name."""
    return name.lower().endswith(MASK_SUFFIX)


def printable_name(name: str) -> str:
    """Return a file name as text that can be printed and written anywhere."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass
class _Folder:
    """One folder inside the dataset."""

    root: Path
    path: Path
    names: list[str]
    repeats: int
    words: str

    def __post_init__(self) -> None:
        pictures = [n for n in self.names if _suffix(n) in IMAGE_SUFFIXES and not is_mask_name(n)]
        self.pictures = [self.path / name for name in pictures]
        # Captions are found in any spelling of their ending, as some file systems do by themselves.
        self.lower = {name.lower(): name for name in reversed(self.names)}

    def key(self, name: str) -> str:
        return (self.path / name).relative_to(self.root).as_posix()

    def beside(self, picture: Path, ending: str) -> str | None:
        """Return the name of the file that a picture's stem and an ending make, if it exists."""
        exact = picture.stem + ending
        return exact if exact in self.names else self.lower.get(exact.lower())


def _walk(root: Path, found: DatasetListing) -> Iterator[_Folder]:
    def unreadable(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        found.note(name, "unreadable", f"this folder cannot be read ({error.strerror})")

    for place, folders, files in os.walk(root, onerror=unreadable):
        path = Path(place)
        for name in sorted(folders):
            if _suffix(name) in IMAGE_SUFFIXES:
                found.note(
                    (path / name).relative_to(root).as_posix(), "folder",
                    "is a folder that is named like a picture; rename it",
                )  # fmt: skip
        folders[:] = [n for n in folders if _ours(n) and _suffix(n) not in IMAGE_SUFFIXES]
        repeats, words = _repeats(path, root, found)
        if repeats > 0:
            yield _Folder(root, path, [n for n in files if _ours(n)], repeats, words)


def _ours(name: str) -> bool:
    return not name.startswith(".") and name != _NOT_OURS


def _repeats(path: Path, root: Path, found: DatasetListing) -> tuple[int, str]:
    """Return the repeats and the words that a folder's place gives to its pictures."""
    parts = path.relative_to(root).parts
    match = _REPEATS.fullmatch(parts[0]) if parts else None
    if match is None:
        return 1, ""
    count = int(match[1])
    if len(parts) == 1 and count == 0:
        found.note(parts[0], "no-repeats", "repeats 0 leaves its pictures out", "warning")
    if len(parts) == 1 and count > MANY_REPEATS:
        detail = f"its pictures come {count} times in an epoch; rename it if that is not meant"
        found.note(parts[0], "many-repeats", detail, "warning")
    return count, " ".join(match[2].replace("_", " ").split())


def _look_around(place: _Folder, found: DatasetListing) -> None:
    """Note files that look as if they should be part of the dataset and are not."""
    stems = {picture.stem for picture in place.pictures}
    for name in sorted(place.names):
        stem, suffix = Path(name).stem, _suffix(name)
        if is_mask_name(name) and name[: -len(MASK_SUFFIX)] not in stems:
            found.note(place.key(name), "lonely-mask", "there is no picture for it", "warning")
        elif suffix in IMAGE_SUFFIXES or suffix == _CAPTION or stem in stems:
            continue
        elif suffix in _UNREAD or f"{stem}{_CAPTION}" in place.names:
            detail = f"{suffix or 'this kind of file'} is not read; convert it to PNG or JPEG"
            found.note(place.key(name), "unknown-kind", detail, "warning")


def _add_row(picture: Path, place: _Folder, caption: str | None, found: DatasetListing) -> None:
    key = place.key(picture.name)
    if printable_name(key) != key:
        found.note(key, "bad-name", "the file's name is not UTF-8 text; rename it")
    elif not picture.is_file():
        kind: Kind = "missing-file" if picture.is_symlink() else "unreadable"
        found.note(key, kind, "is a link to nothing" if picture.is_symlink() else "is not a file")
    else:
        text = _caption(picture, place, caption, found)
        if text:
            repeats, mask = place.repeats, find_mask(picture)
            found.rows.append(Row(key, (text,), {}, picture, repeats=repeats, mask_path=mask))


def _caption(picture: Path, place: _Folder, caption: str | None, found: DatasetListing) -> str:
    """Return a picture's caption, or an empty text when a problem was noted."""
    key = place.key(picture.name)
    name = place.beside(picture, _CAPTION)
    if name is not None:
        read = read_caption_file(place.path / name)
        if read.error:
            found.note(place.key(name), "bad-caption", read.error)
            return ""
        if read.has_bom:
            detail = "starts with a byte order mark, which is left out"
            found.note(place.key(name), "caption-mark", detail, "warning")
        if read.text:
            return read.text
    fallback = caption or (place.words if name is None else "")
    if not fallback:
        found.note(key, "no-caption", _what_to_write(picture, place, name))
    elif caption is None:
        detail = f"has no caption and takes {fallback!r} from its folder's name"
        found.note(key, "folder-caption", detail, "warning")
    return fallback


def _what_to_write(picture: Path, place: _Folder, name: str | None) -> str:
    if name is not None:
        return f"write {name}, which is empty"
    wanted = picture.stem + _CAPTION
    for ending in (*_OTHER_CAPTIONS, *(picture.suffix + e for e in (_CAPTION, ".caption"))):
        other = place.beside(picture, ending)
        if other is not None:
            return f"captions are read from {wanted}, and there is {other}: rename it"
    return f"write {wanted} beside it"


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()
