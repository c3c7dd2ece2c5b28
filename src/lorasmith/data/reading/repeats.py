"""Kohya's folder names: ``10_some words`` repeats its images 10 times in an epoch."""

import re
from collections.abc import Iterable
from pathlib import Path

from lorasmith.data.reading.listing import DatasetListing

MAX_REPEATS = 999
"""Larger numbers are years, dates and the like: the folder's name is then only a name."""
MANY_REPEATS = 200
"""More repeats than this are probably not meant."""
MAX_EPOCH_IMAGES = 10_000_000
"""Images that an epoch may have with all repeats; their order is kept in memory."""

_REPEATS = re.compile(r"(\d+)_(.+)")
_CLASS_FOLDER = re.compile(r"reg(s|ulari[sz]ation)?([ _-].*)?", re.IGNORECASE)
"""What kohya's trainers call the folder of class images, beside ``img``."""


def parse_folder_name(path: Path, root: Path, listing: DatasetListing) -> tuple[int, str]:
    """Return the repeats and the caption words that a folder's path gives to its images.

    Only folders directly in the dataset count. What is probably meant otherwise is reported.
    """
    parts = path.relative_to(root).parts
    match = _REPEATS.fullmatch(parts[0]) if parts else None
    if match is None:
        return 1, ""
    count = _read_count(match[1])
    is_top = len(parts) == 1
    if count is None:
        if is_top:
            detail = (
                f"numbers up to {MAX_REPEATS} are repeats and {match[1][:20]} is not: it is read "
                "as a plain folder, and its images come once in an epoch"
            )
            listing.add_problem(parts[0], "many-repeats", detail, "warning")
        return 1, ""
    if is_top and count == 0:
        detail = "repeats 0 leaves its images out"
        listing.add_problem(parts[0], "no-repeats", detail, "warning")
    if is_top and count > MANY_REPEATS:
        detail = f"its images come {count} times in an epoch; rename it if that is not meant"
        listing.add_problem(parts[0], "many-repeats", detail, "warning")
    return count, " ".join(match[2].replace("_", " ").split())


def report_misplaced_repeats(
    root: Path, folders_with_images: Iterable[Path], listing: DatasetListing
) -> None:
    """Report ``10_name`` folders that are not directly in the dataset, or are the dataset.

    The folder above kohya's ``img`` and ``reg`` is an error: it would train on the class images.
    """
    nested: dict[Path, Path] = {}
    for path in folders_with_images:
        parts = path.relative_to(root).parts
        if len(parts) > 1 and has_repeats(parts[1]) and not has_repeats(parts[0]):
            nested.setdefault(root / parts[0], root / parts[0] / parts[1])
        if not parts and has_repeats(root.absolute().name):
            above = root.absolute().parent
            detail = f"its repeats and words count in {above} only: give that as the data folder"
            listing.add_problem(root.absolute().name, "misplaced-repeats", detail, "warning")
    is_class = {folder: bool(_CLASS_FOLDER.fullmatch(folder.name)) for folder in nested}
    for folder, example in nested.items():
        name = example.relative_to(root).as_posix()
        if is_class[folder] and len(nested) > 1:
            data = next((other for other in nested if not is_class[other]), folder)
            detail = (
                f"these are class images, in the folder above the training images: give {data} as "
                f"the data folder and {folder} as data.reg_data_dir"
            )
            listing.add_problem(name, "misplaced-repeats", detail)
        else:
            detail = f"its repeats are not read so deep: give {folder} as the data folder"
            listing.add_problem(name, "misplaced-repeats", detail, "warning")


def has_repeats(name: str) -> bool:
    """Return whether a folder's name begins with a number of repeats."""
    match = _REPEATS.fullmatch(name)
    return match is not None and _read_count(match[1]) is not None


def _read_count(digits: str) -> int | None:
    """Return a number of repeats, or None where the number is too large to be one."""
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= len(str(MAX_REPEATS)) else None
