"""Scanning a full dataset, usable images and others: the preflight of training.

No single file raises. Problems are collected; training then stops with one line that counts them,
or leaves these images out.
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
from lorasmith.data.reading.options import DEFAULT_OPTIONS, ReadOptions
from lorasmith.data.reading.problems import (
    Problem,
    filter_by_severity,
    group_by_kind,
    summarize,
    summarize_kind,
)
from lorasmith.data.reading.reader import find_rows
from lorasmith.data.reading.repeats import MAX_EPOCH_IMAGES
from lorasmith.data.reading.row import Row
from lorasmith.data.scan.image_inspection import ImageInfo, Inspection, inspect_row

ProgressBarFactory = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""Makes a progress bar from a title and a total; its function advances by a count."""


@dataclass(frozen=True)
class ScanResult:
    """A dataset of which every image was decoded once."""

    path: Path
    images: Sequence[ImageInfo]
    """The usable images, in a stable order."""
    problems: Sequence[Problem]
    image_count: int
    """Images, usable or not, without those that a filter drops."""

    @property
    def rows(self) -> list[Row]:
        """Rows of the usable images, in a stable order."""
        return [image.row for image in self.images]

    @property
    def errors(self) -> list[Problem]:
        """The problems that make images unusable."""
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
    background: tuple[int, int, int] = WHITE,
    bar: ProgressBarFactory = no_bar,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> ScanResult:
    """Read every image, mask and caption under ``path``.

    Args:
        path: a folder or a packed tar.
        filters: only rows that pass all of these are opened.
        background: colour under transparent images.
        bar: shows progress, such as ``loops.progress.progress_bar``.
        options: where captions come from, and which links are followed.

    Raises:
        DataError: nothing there, nothing that looks like images, a manifest that cannot be read,
            or filters that leave nothing.
    """
    listing = find_rows(path, options)
    rows = filter_rows(listing.rows, filters) if filters else listing.rows
    images, problems = [], list(listing.problems)
    with bar("checking images", len(rows)) as advance:
        for inspection in _inspect_rows(rows, background):
            problems += inspection.problems
            if inspection.image is not None:
                images.append(inspection.image)
            advance(1)
    dropped = len(listing.rows) - len(rows)
    return ScanResult(path, images, problems, listing.image_count - dropped)


def read_options(data: DataConfig, default_caption: str | None = None) -> ReadOptions:
    """Return how settings read their datasets.

    Args:
        data: the settings.
        default_caption: for images without a caption; without it they are errors.
    """
    return ReadOptions(data.caption_source, default_caption, data.follow_links)


def _inspect_rows(rows: Sequence[Row], background: tuple[int, int, int]) -> Iterator[Inspection]:
    """Inspect rows on all cores, in order."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(lambda row: inspect_row(row, background), rows)


def read_usable_rows(data: DataConfig, bar: ProgressBarFactory = no_bar) -> list[Row]:
    """Return the training images; ``data.bad_images`` decides about unusable ones.

    Each kind of warning in the dataset is one LorasmithWarning.

    Raises:
        DataError: one image or more cannot be used and the setting is ``stop``, or none can.
    """
    scan = scan_dataset(data.path, data.filters, data.background_rgb, bar, read_options(data))
    rows = _keep_usable(scan, skip_errors=data.bad_images == "skip")
    _check_epoch_length(scan.path, rows, data.num_repeats)
    return rows


def read_class_rows(data: DataConfig, bar: ProgressBarFactory = no_bar) -> list[Row]:
    """Return the class images; those without a caption get ``data.reg_caption``.

    An empty list without ``data.reg_data_dir``.

    Raises:
        DataError: as from ``read_usable_rows``.
    """
    if data.reg_data_dir is None:
        return []
    options = read_options(data, data.reg_caption)
    scan = scan_dataset(data.reg_data_dir, (), data.background_rgb, bar, options)
    rows = _keep_usable(scan, skip_errors=data.bad_images == "skip")
    _check_epoch_length(scan.path, rows, data.num_repeats)
    return rows


def _check_epoch_length(path: Path, rows: Sequence[Row], num_repeats: int) -> None:
    """Refuse repeats that make an epoch too long to be kept in memory.

    Raises:
        DataError: they do.
    """
    length = sum(row.repeats for row in rows) * num_repeats
    if length > max(MAX_EPOCH_IMAGES, len(rows)):
        raise DataError(
            f"{path}: its {len(rows)} images come {length:,} times in an epoch, and "
            f"{MAX_EPOCH_IMAGES:,} is the most; lower data.num_repeats or the numbers of the "
            "folders, train.steps says how long a run is"
        )


def _keep_usable(scan: ScanResult, skip_errors: bool) -> list[Row]:
    for group in group_by_kind(scan.warnings).values():
        _warn(f"{scan.path}: {summarize_kind(group, scan.image_count)}")
    if scan.errors:
        summary = f"{scan.path}: {summarize(scan.errors, scan.image_count)}"
        if not skip_errors:
            raise DataError(
                f"{summary} (`lorasmith check {scan.path}` lists everything; "
                "data.bad_images=skip leaves it out)"
            )
        if not scan.rows:
            raise DataError(f"{summary}; no image is left to train on")
        _warn(f"{summary}; left out, {len(scan.rows)} of {scan.image_count} images are used")
    return scan.rows


def _warn(message: str) -> None:
    warnings.warn(message, LorasmithWarning, stacklevel=4)
