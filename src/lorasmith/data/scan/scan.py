"""Everything that is in a dataset, usable or not: the preflight of training.

No single file raises. What is wrong is collected, and training then stops with one line that
counts it, or leaves it out.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorasmith.config.data import RowFilter
from lorasmith.config.train_data import DataConfig
from lorasmith.core.errors import DataError, LorasmithWarning
from lorasmith.data.images.decode import WHITE
from lorasmith.data.reading.filters import filter_rows
from lorasmith.data.reading.reader import Row, find_rows
from lorasmith.data.scan.inspect import ImageInfo, Inspection, inspect_row
from lorasmith.data.scan.problems import (
    Problem,
    filter_by_severity,
    group_by_kind,
    summarize,
    summarize_kind,
)

ProgressBarFactory = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""Makes a progress bar from a title and a total; its function advances by a count."""


@dataclass(frozen=True)
class ScanResult:
    """A dataset, every picture of which was decoded once."""

    path: Path
    """What was scanned."""
    images: Sequence[ImageInfo]
    """What each usable picture looks like."""
    problems: Sequence[Problem]
    """Everything wrong or strange."""
    image_count: int
    """How many pictures there are, usable or not; those that a filter drops are not counted."""

    @property
    def rows(self) -> list[Row]:
        """The usable pictures, in a stable order."""
        return [look.row for look in self.images]

    @property
    def errors(self) -> list[Problem]:
        """The problems that make pictures unusable."""
        return filter_by_severity(self.problems, "error")

    @property
    def warnings(self) -> list[Problem]:
        """The problems that do not."""
        return filter_by_severity(self.problems, "warning")


@contextmanager
def no_bar(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Show no progress."""
    del title, total
    yield lambda count=1: None


def scan_dataset(
    path: Path,
    filters: Sequence[RowFilter] = (),
    caption: str | None = None,
    background: tuple[int, int, int] = WHITE,
    bar: ProgressBarFactory = no_bar,
) -> ScanResult:
    """Read every picture, mask and caption under ``path``.

    Args:
        path: a folder or a packed tar.
        filters: only rows that pass all of these are opened.
        caption: for pictures that have none; without it they are errors.
        background: colour under transparent pictures.
        bar: shows progress, such as ``loops.progress.progress_bar``.

    Raises:
        DataError: nothing there, nothing that looks like pictures, a listing that cannot be
            read, or filters that leave nothing.
    """
    found = find_rows(path, caption)
    rows = filter_rows(found.rows, filters) if filters else found.rows
    looks, problems = [], list(found.problems)
    with bar("checking pictures", len(rows)) as advance:
        for outcome in _examined(rows, background):
            problems += outcome.problems
            if outcome.image is not None:
                looks.append(outcome.image)
            advance(1)
    return ScanResult(path, looks, problems, found.image_count - (len(found.rows) - len(rows)))


def _examined(rows: Sequence[Row], background: tuple[int, int, int]) -> Iterator[Inspection]:
    """Examine rows on all cores, in order."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(lambda row: inspect_row(row, background), rows)


def read_usable_rows(data: DataConfig, bar: ProgressBarFactory = no_bar) -> list[Row]:
    """Return the pictures to learn from; ``data.bad_images`` decides about the others.

    What is only strange is a LorasmithWarning, one for each kind.

    Raises:
        DataError: one picture or more cannot be used and the setting is ``stop``, or none can.
    """
    found = scan_dataset(data.path, data.filters, background=data.background_rgb, bar=bar)
    return _decided(found, data)


def read_class_rows(data: DataConfig, bar: ProgressBarFactory = no_bar) -> list[Row]:
    """Return the class pictures; ``data.reg_caption`` stands for captions they do not have.

    An empty list without ``data.reg_data_dir``.

    Raises:
        DataError: as from ``usable_rows``.
    """
    if data.reg_data_dir is None:
        return []
    found = scan_dataset(
        data.reg_data_dir, caption=data.reg_caption, background=data.background_rgb, bar=bar
    )
    return _decided(found, data)


def _decided(found: ScanResult, data: DataConfig) -> list[Row]:
    for group in group_by_kind(found.warnings).values():
        _warn(f"{found.path}: {summarize_kind(group, found.image_count)}")
    if found.errors:
        wrong = f"{found.path}: {summarize(found.errors, found.image_count)}"
        if data.bad_images == "stop":
            raise DataError(
                f"{wrong} (`lorasmith check {found.path}` lists everything; "
                "data.bad_images=skip leaves it out)"
            )
        if not found.rows:
            raise DataError(f"{wrong}; nothing is left to learn from")
        _warn(f"{wrong}; left out, {len(found.rows)} of {found.image_count} pictures are used")
    return found.rows


def _warn(message: str) -> None:
    warnings.warn(message, LorasmithWarning, stacklevel=4)
