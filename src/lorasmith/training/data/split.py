"""Which pictures a run learns from, and which it only measures."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.config.train_config import DataConfig
from lorasmith.core.errors import DataError, LorasmithWarning
from lorasmith.data.reading.filters import hash_fraction
from lorasmith.data.reading.row import Row
from lorasmith.data.scan.scan import read_class_rows, read_usable_rows
from lorasmith.data.tags import contains_tag
from lorasmith.loops.progress import progress_bar

_MANY = 24
_HELD_OUT = 1 / 12
"""Share of sets of ``_MANY`` pictures and more that is held out unless a setting says otherwise."""


@dataclass(frozen=True)
class DatasetSplit:
    """The pictures of a run, by what they are for."""

    train_rows: Sequence[Row]
    """Pictures with the new thing, to learn from."""
    class_rows: Sequence[Row]
    """Pictures of its class without it."""
    validation_rows: Sequence[Row]
    """Pictures with the new thing that are only measured."""


def split_dataset(data: DataConfig) -> DatasetSplit:
    """Read all pictures and decide what each is for.

    Raises:
        DataError: pictures that cannot be used, none with the tag, or none left to learn from.
    """
    learned, held_out = split_validation(read_train_rows(data), data.validation_split)
    return DatasetSplit(learned, read_class_rows(data, progress_bar), held_out)


def read_train_rows(data: DataConfig) -> list[Row]:
    """Read the pictures and check that their captions name the tag.

    Warns when some do not: they are trained on all the same, and pull the model without it.

    Raises:
        DataError: nothing to read, or no caption has the tag.
    """
    rows = read_usable_rows(data, progress_bar)
    without = [row for row in rows if not contains_tag(row.caption, data.tag)]
    if len(without) == len(rows):
        raise DataError(
            f"{data.path}: none of its {len(rows)} captions contains the tag {data.tag!r}; write "
            f"it into them, for instance '{rows[0].caption[:60]}, {data.tag}'"
        )
    if without:
        warnings.warn(
            f"{data.path}: {len(without)} of {len(rows)} captions do not contain the tag "
            f"{data.tag!r}, first {without[0].key}; what they show will appear without the tag too",
            LorasmithWarning,
            stacklevel=2,
        )
    return rows


def split_validation(rows: Sequence[Row], share: float | None) -> tuple[list[Row], list[Row]]:
    """Return the rows to learn from and the rows that are only measured.

    The latter are those whose keys have the smallest hashes: adding or removing pictures seldom
    moves another one to the other side.

    Args:
        rows: all rows.
        share: as in ``data.validation_split``.

    Raises:
        DataError: none would be left to learn from.
    """
    if share is None:
        count = round(len(rows) * _HELD_OUT) if len(rows) >= _MANY else 0
    else:
        count = max(1, round(len(rows) * share)) if share else 0
    if count >= len(rows):
        raise DataError(
            f"data.validation_split: {share:g} of {len(rows)} pictures leaves none to learn from; lower it"
        )
    held = {row.key for row in sorted(rows, key=lambda row: hash_fraction(row.key))[:count]}
    return [row for row in rows if row.key not in held], [row for row in rows if row.key in held]
