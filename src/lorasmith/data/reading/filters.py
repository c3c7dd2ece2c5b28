"""Filters on metadata columns, a validation split by hash, and weights of rows."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from lorasmith.config.data import RowFilter, RowWeight
from lorasmith.core.errors import DataError, did_you_mean
from lorasmith.data.reading.row import Row


def filter_rows(rows: Sequence[Row], filters: Sequence[RowFilter]) -> list[Row]:
    """Return the rows that pass every filter.

    Raises:
        DataError: a filter's column exists in no row, or no row passes.
    """
    passing = list(rows)
    for rule in filters:
        _require_column(rows, rule.column)
        passing = [row for row in passing if matches_filter(row, rule)]
    if not passing:
        raise DataError(
            f"no rows are left of {len(rows)} after {len(filters)} filters; loosen them"
        )
    return passing


def matches_filter(row: Row, rule: RowFilter) -> bool:
    """Whether a row passes one filter; without the column, ``missing`` decides.

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

    A row stays on its side when others are added or removed.
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
    """Return a hash of a row's key as a number from 0 to 1: the same in every run."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _require_column(rows: Sequence[Row], column: str) -> None:
    known = {name for row in rows for name in row.columns}
    if column not in known:
        raise DataError(f"no row has a column {column!r}{did_you_mean(column, known)}")


def _contains(value: Any, operand: Any) -> bool:
    return operand in value if isinstance(value, (list, str)) else False


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda value, operand: value == operand,
    "!=": lambda value, operand: value != operand,
    ">=": lambda value, operand: value >= operand,
    "<=": lambda value, operand: value <= operand,
    "in": lambda value, operand: value in operand,
    "not in": lambda value, operand: value not in operand,
    "contains": _contains,
}
