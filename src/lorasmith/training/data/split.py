"""Which images a run trains on, and which are for the validation loss."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.config.train_config import DataConfig
from lorasmith.core.errors import DataError, LorasmithWarning
from lorasmith.core.text.trigger_word import contains_tag
from lorasmith.data.reading.filters import hash_fraction
from lorasmith.data.reading.row import Row
from lorasmith.data.scan.scan import read_class_rows, read_usable_rows
from lorasmith.loops.progress import progress_bar

_MIN_IMAGES_FOR_VALIDATION = 24
_DEFAULT_SHARE = 1 / 12
"""Share for validation of datasets of at least ``_MIN_IMAGES_FOR_VALIDATION`` images."""


@dataclass(frozen=True)
class DatasetSplit:
    """The images of a run, by purpose."""

    train_rows: Sequence[Row]
    """Images of the new concept, to train on."""
    class_rows: Sequence[Row]
    """Class images (regularisation images): images of its class without it."""
    validation_rows: Sequence[Row]
    """Images of the new concept, for the validation loss."""


def split_dataset(data: DataConfig) -> DatasetSplit:
    """Read all images and split them by purpose.

    Raises:
        DataError: images that cannot be used, none with the tag, or none left to train on.
    """
    train_rows, validation_rows = split_validation(read_train_rows(data), data.validation_split)
    return DatasetSplit(train_rows, read_class_rows(data, progress_bar), validation_rows)


def read_train_rows(data: DataConfig) -> list[Row]:
    """Read the images and check that their captions contain the tag.

    Warns when some do not: the run trains on them too, and changes the model without the tag.

    Raises:
        DataError: no images, or no caption has the tag.
    """
    rows = read_usable_rows(data, progress_bar)
    untagged = [row for row in rows if not contains_tag(row.caption, data.tag)]
    if len(untagged) == len(rows):
        raise DataError(
            f"{data.path}: none of its {len(rows)} captions contains the tag {data.tag!r}; write "
            f"it into them, for instance '{rows[0].caption[:60]}, {data.tag}'"
        )
    if untagged:
        warnings.warn(
            f"{data.path}: {len(untagged)} of {len(rows)} captions do not contain the tag "
            f"{data.tag!r}, first {untagged[0].key}; what they show will appear without the tag "
            "too",
            LorasmithWarning,
            stacklevel=2,
        )
    return rows


def split_validation(rows: Sequence[Row], share: float | None) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and the rows for validation.

    The latter are those whose keys have the smallest hashes, so adding or removing images seldom
    moves another one to the other side.

    Args:
        rows: all rows.
        share: as in ``data.validation_split``.

    Raises:
        DataError: none is left to train on.
    """
    if share is None:
        is_large = len(rows) >= _MIN_IMAGES_FOR_VALIDATION
        count = round(len(rows) * _DEFAULT_SHARE) if is_large else 0
    else:
        count = max(1, round(len(rows) * share)) if share else 0
    if count >= len(rows):
        raise DataError(
            f"data.validation_split: {share:g} of {len(rows)} images leaves none to train on; "
            "lower it"
        )
    by_hash = sorted(rows, key=lambda row: hash_fraction(row.key))
    validation_keys = {row.key for row in by_hash[:count]}
    train_rows = [row for row in rows if row.key not in validation_keys]
    return train_rows, [row for row in rows if row.key in validation_keys]
