"""Choosing rows: filters on metadata columns, a validation split, and weights."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from lorasmith.config.data import RowFilter, RowWeight
from lorasmith.core.errors import DataError, did_you_mean
from lorasmith.data.reading.row import Row


def filter_rows(rows: Sequence[Row], filters: Sequence[RowFilter]) -> list[Row]:
    """Return the rows that pass every filter.

    Raises:
        DataError: a filter's column exists in no row, or nothing is left.
    """
    kept = list(rows)
    for rule in filters:
        _require_column(rows, rule.column)
        kept = [row for row in kept if matches_filter(row, rule)]
    if not kept:
        raise DataError(
            f"no rows are left of {len(rows)} after {len(filters)} filters; loosen them"
        )
    return kept


def matches_filter(row: Row, rule: RowFilter) -> bool:
    """Tell whether a row passes one filter; without the column, ``missing`` decides.

    Raises:
        DataError: the column's value cannot be compared with the filter's.
    """
    value = row.columns.get(rule.column)
    if value is None:
        return rule.missing == "keep"
    try:
        return bool(_COMPARE[rule.op](value, rule.value))
    except TypeError as error:
        raise DataError(
            f"{row.key}: column {rule.column!r} is {value!r}, which cannot be compared "
            f"({rule.op}) with {rule.value!r}"
        ) from error


def split_by_hash(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Return ``(training, validation)``, deciding each row by a hash of its key.

    A row keeps its side when others are added or removed.
    """
    validation = [row for row in rows if hash_fraction(row.key) < share]
    training = [row for row in rows if hash_fraction(row.key) >= share]
    if not training:
        raise DataError(
            f"a validation share of {share} leaves none of {len(rows)} rows to train on"
        )
    return training, validation


def compute_row_weights(rows: Sequence[Row], rules: Sequence[RowWeight]) -> list[float]:
    """Return each row's weight: the product of the rules that match it, 1.0 without any."""
    for rule in rules:
        _require_column(rows, rule.column)
    result = []
    for row in rows:
        weight = 1.0
        for rule in rules:
            if row.columns.get(rule.column) == rule.value:
                weight *= rule.weight
        result.append(weight)
    return result


def hash_fraction(key: str) -> float:
    """Return a number from 0 to 1 that is a hash of a row's key: the same in every run."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _require_column(rows: Sequence[Row], column: str) -> None:
    known = {name for row in rows for name in row.columns}
    if column not in known:
        raise DataError(f"no row has a column {column!r}{did_you_mean(column, known)}")


def _contains(value: Any, wanted: Any) -> bool:
    return wanted in value if isinstance(value, (list, str)) else False


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    ">=": lambda value, wanted: value >= wanted,
    "<=": lambda value, wanted: value <= wanted,
    "in": lambda value, wanted: value in wanted,
    "not in": lambda value, wanted: value not in wanted,
    "contains": _contains,
}
