"""Datasets that are folders: images with ``name.txt`` beside them, in kohya's layout or flat.

In kohya's layout the images lie in folders such as ``10_some words``: each image comes 10 times in
an epoch, and images without a caption file take the words as their caption.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from lorasmith.data.reading.captions.caption_sources import (
    CAPTION_SUFFIX,
    Caption,
    ImageContext,
    SiblingFiles,
    find_caption,
    same_name,
)
from lorasmith.data.reading.links import FOLLOW_SETTING, LinkPolicy
from lorasmith.data.reading.listing import DatasetListing, printable_name
from lorasmith.data.reading.options import AUTO, ReadOptions
from lorasmith.data.reading.problems import ProblemKind
from lorasmith.data.reading.repeats import parse_folder_name, report_misplaced_repeats
from lorasmith.data.reading.row import (
    IMAGE_SUFFIXES,
    MASK_SUFFIX,
    Row,
    foreign_mask_stem,
    is_image_name,
    is_mask_name,
)
from lorasmith.data.reading.walk import walk_folders

_MISNAMED_CAPTIONS = (
    ".caption", ".captions", ".text", ".tags", ".cap", ".md", ".json", ".txt.txt",
)  # fmt: skip
_UNSUPPORTED_SUFFIXES = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".raw", ".cr2", ".cr3", ".nef",
     ".arw", ".dng", ".exr", ".hdr", ".tga", ".ico", ".jpe", ".jpg_large", ".pdf"}
)  # fmt: skip


def find_rows_in_folder(root: Path, options: ReadOptions) -> DatasetListing:
    """Find the images of a folder and its subfolders, leaving hidden files and folders out.

    Args:
        root: an existing folder.
        options: where captions come from, and which links are followed.
    """
    listing = DatasetListing()
    links = LinkPolicy(root, options.follow_links)
    images: list[tuple[Path, _Folder]] = []
    for path, names in walk_folders(root, links, listing):
        repeats, words = parse_folder_name(path, root, listing)
        if repeats > 0:
            folder = _Folder(root, path, names, repeats, words, links)
            _report_unused_files(folder, listing)
            images += [(image, folder) for image in folder.images]
            _report_shared_captions(folder, listing)
    listing.image_count = len(images)
    report_misplaced_repeats(root, dict.fromkeys(image.parent for image, _ in images), listing)
    for image, folder in sorted(images, key=lambda pair: pair[0]):
        _add_row(image, folder, options, listing)
    return listing


@dataclass
class _Folder:
    """One folder inside the dataset."""

    root: Path
    path: Path
    names: list[str]
    repeats: int
    words: str
    links: LinkPolicy

    def __post_init__(self) -> None:
        self.images = [self.path / name for name in self.names if is_image_name(name)]
        self.siblings = SiblingFiles(self.path, self.names)

    def key(self, name: str) -> str:
        return (self.path / name).relative_to(self.root).as_posix()


def _report_unused_files(folder: _Folder, listing: DatasetListing) -> None:
    """Report files that look like a part of the dataset and are not used."""
    stems = {same_name(image.stem) for image in folder.images}
    for name in sorted(folder.names):
        stem, suffix, masked = Path(name).stem, _suffix(name), foreign_mask_stem(name)
        if masked is not None:
            detail = (
                "is named like a mask of OneTrainer and left out; a mask is read from "
                f"{masked}{MASK_SUFFIX}: rename it"
            )
            listing.add_problem(folder.key(name), "foreign-mask", detail, "warning")
        elif is_mask_name(name) and same_name(name[: -len(MASK_SUFFIX)]) not in stems:
            detail = "there is no image for it"
            listing.add_problem(folder.key(name), "lonely-mask", detail, "warning")
        elif suffix in IMAGE_SUFFIXES or suffix == CAPTION_SUFFIX or same_name(stem) in stems:
            continue
        elif suffix in _UNSUPPORTED_SUFFIXES or folder.siblings.find(stem + CAPTION_SUFFIX):
            detail = f"{suffix or 'this kind of file'} is not read; convert it to PNG or JPEG"
            listing.add_problem(folder.key(name), "unknown-kind", detail, "warning")


def _report_shared_captions(folder: _Folder, listing: DatasetListing) -> None:
    """Report images with one name and different suffixes, which have one caption file."""
    groups: dict[Path, list[str]] = {}
    for image in folder.images:
        caption_file = folder.siblings.find(image.stem + CAPTION_SUFFIX)
        if caption_file is not None:
            groups.setdefault(caption_file, []).append(image.name)
    for caption_file, names in groups.items():
        if len(names) > 1:
            detail = (
                f"is the caption of {' and '.join(sorted(names)[:3])}; rename all but one image, "
                "each with a caption, or delete them"
            )
            key = folder.key(caption_file.name)
            listing.add_problem(key, "shared-caption", detail, "warning")


def _add_row(path: Path, folder: _Folder, options: ReadOptions, listing: DatasetListing) -> None:
    key, links = folder.key(path.name), folder.links
    if printable_name(key) != key:
        listing.add_problem(key, "bad-name", "the file's name is not UTF-8 text; rename it")
        return
    if links.refuses(path):
        detail = (
            "is a link out of the dataset and left out; copy the image, or follow links with "
            f"{FOLLOW_SETTING}"
        )
        listing.add_problem(key, "linked-outside", detail, "warning")
        listing.image_count -= 1
        return
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path's, it never raises
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
        default_caption=options.default_caption,
        links=links,
    )
    caption = find_caption(image, options.caption_source)
    _report_caption_problems(image, caption, options.caption_source, listing)
    mask = folder.siblings.find(path.stem + MASK_SUFFIX)
    if mask is not None and links.refuses(mask):
        listing.add_problem(key, "bad-mask", describe_refused_mask(mask))
    elif caption.texts:
        row = Row(key, caption.texts, {}, path, repeats=folder.repeats, mask_path=mask)
        listing.rows.append(row)


def describe_refused_mask(mask: Path) -> str:
    """Return what is wrong with a mask that is a link out of the dataset, and what to do."""
    return (
        f"{mask.name} is a link out of the dataset; copy the mask, or follow links with "
        f"{FOLLOW_SETTING}"
    )


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
    caption_file = image.siblings.find(image.path.stem + CAPTION_SUFFIX)
    if caption_file is not None:
        return f"write {caption_file.name}, which is empty"
    path = image.path
    double_suffixes = (path.suffix + suffix for suffix in (CAPTION_SUFFIX, ".caption"))
    for suffix in (*_MISNAMED_CAPTIONS, *double_suffixes):
        misnamed = image.siblings.find(path.stem + suffix)
        if misnamed is not None and suffix == ".json":
            return (
                f"captions are read from {path.stem}{CAPTION_SUFFIX}, and {misnamed.name} is "
                f"JSON: write its caption as text into {path.stem}{CAPTION_SUFFIX}"
            )
        if misnamed is not None:
            return (
                f"captions are read from {path.stem}{CAPTION_SUFFIX}, and there is "
                f"{misnamed.name}: rename it"
            )
    return f"write {path.stem}{CAPTION_SUFFIX} beside it"


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()
