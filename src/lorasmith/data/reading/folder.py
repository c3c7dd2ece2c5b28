"""Datasets that are folders: images with ``name.txt`` beside them, in kohya's layout or flat.

In kohya's layout the images lie in folders such as ``10_some words``: each image comes 10 times in
an epoch, and images without a caption file take the words as their caption.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorasmith.data.reading.caption_sources import (
    AUTO,
    CAPTION_SUFFIX,
    Caption,
    ImageContext,
    SiblingFiles,
    find_caption,
)
from lorasmith.data.reading.listing import DatasetListing, printable_name
from lorasmith.data.reading.problems import ProblemKind
from lorasmith.data.reading.row import (
    IMAGE_SUFFIXES,
    MASK_SUFFIX,
    Row,
    find_mask,
    is_mask_name,
)

MANY_REPEATS = 200
"""More repeats than this are more likely a year or another number in a folder's name."""

_REPEATS = re.compile(r"(\d{1,9})_(.+)")
_MISNAMED_CAPTIONS = (
    ".caption", ".captions", ".text", ".tags", ".cap", ".md", ".json", ".txt.txt",
)  # fmt: skip
_UNSUPPORTED_SUFFIXES = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".raw", ".cr2", ".cr3", ".nef",
     ".arw", ".dng", ".exr", ".hdr", ".tga", ".ico", ".jpe", ".jpg_large", ".pdf"}
)  # fmt: skip
_IGNORED_FOLDER = "__MACOSX"


def find_rows_in_folder(
    root: Path, caption_source: str = AUTO, default_caption: str | None = None
) -> DatasetListing:
    """Find the images of a folder and its subfolders, leaving hidden files and folders out.

    Args:
        root: an existing folder.
        caption_source: a name in ``CAPTION_SOURCES``, or ``auto``.
        default_caption: for images without a caption; without it they are errors.
    """
    listing = DatasetListing()
    images: list[tuple[Path, _Folder]] = []
    for folder in _walk(root, listing):
        _report_unused_files(folder, listing)
        images += [(image, folder) for image in folder.images]
    listing.image_count = len(images)
    for image, folder in sorted(images, key=lambda pair: pair[0]):
        _add_row(image, folder, caption_source, default_caption, listing)
    return listing


@dataclass
class _Folder:
    """One folder inside the dataset."""

    root: Path
    path: Path
    names: list[str]
    repeats: int
    words: str

    def __post_init__(self) -> None:
        names = [n for n in self.names if _suffix(n) in IMAGE_SUFFIXES and not is_mask_name(n)]
        self.images = [self.path / name for name in names]
        self.siblings = SiblingFiles(self.path, self.names)

    def key(self, name: str) -> str:
        return (self.path / name).relative_to(self.root).as_posix()


def _walk(root: Path, listing: DatasetListing) -> Iterator[_Folder]:
    def report_unreadable(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        listing.add_problem(name, "unreadable", f"this folder cannot be read ({error.strerror})")

    for directory, subfolders, files in os.walk(root, onerror=report_unreadable):
        path = Path(directory)
        for name in sorted(subfolders):
            if _suffix(name) in IMAGE_SUFFIXES:
                listing.add_problem(
                    (path / name).relative_to(root).as_posix(), "folder",
                    "is a folder that is named like an image; rename it",
                )  # fmt: skip
        subfolders[:] = [
            name for name in subfolders if _is_visible(name) and _suffix(name) not in IMAGE_SUFFIXES
        ]
        repeats, words = _parse_folder_name(path, root, listing)
        if repeats > 0:
            names = [name for name in files if _is_visible(name)]
            yield _Folder(root, path, names, repeats, words)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != _IGNORED_FOLDER


def _parse_folder_name(path: Path, root: Path, listing: DatasetListing) -> tuple[int, str]:
    """Return the repeats and the caption words that a folder's path gives to its images."""
    parts = path.relative_to(root).parts
    match = _REPEATS.fullmatch(parts[0]) if parts else None
    if match is None:
        return 1, ""
    count = int(match[1])
    if len(parts) == 1 and count == 0:
        detail = "repeats 0 leaves its images out"
        listing.add_problem(parts[0], "no-repeats", detail, "warning")
    if len(parts) == 1 and count > MANY_REPEATS:
        detail = f"its images come {count} times in an epoch; rename it if that is not meant"
        listing.add_problem(parts[0], "many-repeats", detail, "warning")
    return count, " ".join(match[2].replace("_", " ").split())


def _report_unused_files(folder: _Folder, listing: DatasetListing) -> None:
    """Report files that look like a part of the dataset and are not used."""
    stems = {image.stem for image in folder.images}
    for name in sorted(folder.names):
        stem, suffix = Path(name).stem, _suffix(name)
        if is_mask_name(name) and name[: -len(MASK_SUFFIX)] not in stems:
            detail = "there is no image for it"
            listing.add_problem(folder.key(name), "lonely-mask", detail, "warning")
        elif suffix in IMAGE_SUFFIXES or suffix == CAPTION_SUFFIX or stem in stems:
            continue
        elif suffix in _UNSUPPORTED_SUFFIXES or f"{stem}{CAPTION_SUFFIX}" in folder.names:
            detail = f"{suffix or 'this kind of file'} is not read; convert it to PNG or JPEG"
            listing.add_problem(folder.key(name), "unknown-kind", detail, "warning")


def _add_row(
    path: Path,
    folder: _Folder,
    caption_source: str,
    default_caption: str | None,
    listing: DatasetListing,
) -> None:
    key = folder.key(path.name)
    if printable_name(key) != key:
        listing.add_problem(key, "bad-name", "the file's name is not UTF-8 text; rename it")
        return
    if not path.is_file():
        kind: ProblemKind = "missing-file" if path.is_symlink() else "unreadable"
        detail = "is a link to nothing" if path.is_symlink() else "is not a file"
        listing.add_problem(key, kind, detail)
        return
    image = ImageContext(
        key,
        path,
        folder.root,
        folder.siblings,
        folder_words=folder.words,
        default_caption=default_caption,
    )
    caption = find_caption(image, caption_source)
    _report_caption_problems(image, caption, caption_source, listing)
    if caption.texts:
        row = Row(key, caption.texts, {}, path, repeats=folder.repeats, mask_path=find_mask(path))
        listing.rows.append(row)


def _report_caption_problems(
    image: ImageContext, caption: Caption, caption_source: str, listing: DatasetListing
) -> None:
    for problem in caption.problems:
        listing.add_problem(problem.file, problem.kind, problem.detail, problem.severity)
    if not caption.texts and all(problem.severity == "warning" for problem in caption.problems):
        listing.add_problem(image.key, "no-caption", _how_to_add_caption(image, caption_source))


def _how_to_add_caption(image: ImageContext, caption_source: str) -> str:
    if caption_source not in (AUTO, "txt"):
        return f"data.caption_source = {caption_source} has none for it"
    caption_file = image.find_sibling(CAPTION_SUFFIX)
    if caption_file is not None:
        return f"write {caption_file.name}, which is empty"
    path = image.path
    double_suffixes = (path.suffix + suffix for suffix in (CAPTION_SUFFIX, ".caption"))
    for suffix in (*_MISNAMED_CAPTIONS, *double_suffixes):
        misnamed = image.find_sibling(suffix)
        if misnamed is not None:
            return (
                f"captions are read from {path.stem}{CAPTION_SUFFIX}, and there is "
                f"{misnamed.name}: rename it"
            )
    return f"write {path.stem}{CAPTION_SUFFIX} beside it"


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()
