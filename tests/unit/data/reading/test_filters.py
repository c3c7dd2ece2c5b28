import random
from pathlib import Path

import pytest

from lorasmith.config.data import RowFilter, RowWeight
from lorasmith.core.errors import ConfigError, DataError
from lorasmith.data.reading.filters import (
    compute_row_weights,
    filter_rows,
    matches_filter,
    split_by_hash,
)
from lorasmith.data.reading.row import Row


def row(key: str, **columns: object) -> Row:
    return Row(key, ("x",), columns, Path("x"))


def rule(column: str, op: str, value: object, missing: str = "drop") -> RowFilter:
    return RowFilter(column=column, op=op, value=value, missing=missing)


@pytest.mark.parametrize(
    ("op", "value", "accepted", "rejected"),
    [
        ("==", "base", "base", "holdout"),
        ("==", 3, 3, 4),
        ("!=", "base", "holdout", "base"),
        (">=", 5, 5, 4.9),
        ("<=", 0.5, 0.5, 1),
        ("in", ["a", "b"], "b", "c"),
        ("not in", ["a", "b"], "c", "a"),
        ("contains", "red", ["red", "blue"], ["blue"]),
        ("contains", "red", "a red cat", "a cat"),
        ("contains", "red", ["red"], 7),
    ],
)
def test_filters_support_every_comparison(
    op: str, value: object, accepted: object, rejected: object
) -> None:
    expected = rule("c", op, value)
    assert matches_filter(row("k", c=accepted), expected) is True
    assert matches_filter(row("k", c=rejected), expected) is False


def test_missing_column_drops_or_keeps() -> None:
    rows = [row("a", score=1), row("b"), row("c", score=None)]
    assert [r.key for r in filter_rows(rows, [rule("score", ">=", 0)])] == ["a"]
    assert [r.key for r in filter_rows(rows, [rule("score", ">=", 2, "keep")])] == ["b", "c"]


def test_all_filters_must_pass() -> None:
    rows = [row(str(n), n=n, even=n % 2 == 0) for n in range(10)]
    selected = filter_rows(rows, [rule("n", ">=", 3), rule("even", "==", True)])
    assert [r.key for r in selected] == ["4", "6", "8"]
    with pytest.raises(DataError, match="no rows are left of 10 after 2 filters"):
        filter_rows(rows, [rule("n", ">=", 3), rule("n", "<=", 2)])


def test_unknown_column_is_named_with_close_matches() -> None:
    rows = [row("a", aesthetic=5.0, licence="x")]
    with pytest.raises(DataError, match=r"no row has a column 'asthetic'; did you mean aesthetic"):
        filter_rows(rows, [rule("asthetic", ">=", 5)])
    with pytest.raises(DataError, match=r"no row has a column 'zzz'$"):
        compute_row_weights(rows, [RowWeight(column="zzz", value=1, weight=0.5)])


def test_incomparable_values_are_named() -> None:
    rows = [row("pictures/a.png", score="5.1")]
    with pytest.raises(DataError, match=r"pictures/a\.png: column 'score' is '5\.1'.*>=.* with 5"):
        filter_rows(rows, [rule("score", ">=", 5)])
    with pytest.raises(DataError, match="cannot be compared"):
        filter_rows(rows, [rule("score", "contains", 5)])


@pytest.mark.parametrize(("op", "value"), [("in", "abc"), ("not in", 3), ("==", ["a"])])
def test_lists_are_accepted_by_in_only(op: str, value: object) -> None:
    with pytest.raises(ConfigError, match="does not go with"):
        rule("c", op, value)


def test_row_keeps_its_side_of_the_split() -> None:
    rows = [row(f"style/{index}") for index in range(2000)]
    training, validation = split_by_hash(rows, 0.1)
    assert len(training) + len(validation) == 2000
    assert 150 < len(validation) < 250
    more = rows + [row(f"other/{index}") for index in range(500)]
    random.Random(0).shuffle(more)
    training_now, validation_now = split_by_hash(more[300:], 0.1)
    assert not {r.key for r in training} & {r.key for r in validation_now}
    assert not {r.key for r in validation} & {r.key for r in training_now}
    wider = split_by_hash(rows, 0.2)[1]
    assert {r.key for r in validation} < {r.key for r in wider}


def test_no_share_and_too_large_a_share() -> None:
    rows = [row("a"), row("b")]
    assert split_by_hash(rows, 0.0) == (rows, [])
    with pytest.raises(DataError, match="leaves none of 2 rows"):
        split_by_hash(rows, 0.9999999)


def test_weights_multiply() -> None:
    rows = [row("a", x=1, y="p"), row("b", x=1), row("c", y="p"), row("d")]
    rules = [
        RowWeight(column="x", value=1, weight=0.5),
        RowWeight(column="y", value="p", weight=0.4),
    ]
    assert compute_row_weights(rows, rules) == pytest.approx([0.2, 0.5, 0.4, 1.0])
    assert compute_row_weights(rows, []) == [1.0] * 4
