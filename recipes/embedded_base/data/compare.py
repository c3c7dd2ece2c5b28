"""Compare two packed datasets: rows, captions, and the similarity of images.

python compare.py rebuilt.tar reference.tar
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pack import PackError, Row, decode_picture, read_pack

_POSITION_FIELDS = {"id", "off", "len"}
"""Where a row lies in its pack says nothing about the row."""
_SAME_PICTURE = 99.0
"""PSNR in decibels reported for equal pictures."""

Key = tuple[str, str]


@dataclass
class Comparison:
    """The differences of two packs."""

    only_first: list[Key] = field(default_factory=list)
    only_second: list[Key] = field(default_factory=list)
    common: int = 0
    same_order: bool = True
    differing: dict[str, list[tuple[Key, object, object]]] = field(default_factory=dict)
    """Field -> (style and icon, first value, second value)."""
    psnr: dict[Key, float] = field(default_factory=dict)


def compare_packs(first: Path, second: Path) -> Comparison:
    """Compare two pack files row by row; a row is known by its style and icon."""
    rows_a, rows_b = _by_key(first), _by_key(second)
    common = [key for key in rows_a if key in rows_b]
    result = Comparison(
        only_first=[key for key in rows_a if key not in rows_b],
        only_second=[key for key in rows_b if key not in rows_a],
        common=len(common),
        same_order=common == [key for key in rows_b if key in rows_a],
    )
    for key in common:
        (row_a, image_a), (row_b, image_b) = rows_a[key], rows_b[key]
        for name, value, other in differing_fields(row_a, row_b):
            result.differing.setdefault(name, []).append((key, value, other))
        equal = image_a == image_b
        result.psnr[key] = (
            _SAME_PICTURE if equal else psnr(decode_picture(image_a), decode_picture(image_b))
        )
    return result


def differing_fields(first: Row, second: Row) -> list[tuple[str, object, object]]:
    """List the fields in which two rows differ, with both values (None: field missing)."""
    a, b = dict(first), dict(second)
    names = [name for name in {**a, **b} if name not in _POSITION_FIELDS]
    return [(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)]


def psnr(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit images in decibels, at most 99."""
    if first.shape != second.shape:
        return 0.0
    error = float(((first.astype(np.float64) - second.astype(np.float64)) ** 2).mean())
    return _SAME_PICTURE if error == 0 else min(_SAME_PICTURE, 10 * float(np.log10(255**2 / error)))


def _by_key(path: Path) -> dict[Key, tuple[Row, bytes]]:
    rows, images = read_pack(path)
    table = {
        (row["style"], row["icon"]): (row, image) for row, image in zip(rows, images, strict=True)
    }
    if len(table) != len(rows):
        raise PackError(f"{path} has several rows of the same style and icon")
    return table


def report(result: Comparison, examples: int) -> list[str]:
    """Return the lines of a readable report."""
    order = "same" if result.same_order else "different"
    lines = [f"{result.common} rows in both, in the {order} order"]
    for label, keys in (("first", result.only_first), ("second", result.only_second)):
        styles = dict(Counter(style for style, _ in keys))
        lines.append(f"{len(keys)} rows only in the {label} {styles or ''}".rstrip())
        lines += [f"    {style}/{icon}" for style, icon in keys[:examples]]
    for name, cases in result.differing.items():
        lines.append(f"{len(cases)} rows differ in {name}")
        lines += [
            f"    {style}/{icon}: {value!r} <> {other!r}"
            for (style, icon), value, other in cases[:examples]
        ]
    if result.psnr:
        lines += _picture_lines(result.psnr, examples)
    return lines


def _picture_lines(scores: dict[Key, float], examples: int) -> list[str]:
    values = np.array(list(scores.values()))
    equal = int((values >= _SAME_PICTURE).sum())
    lines = [
        f"pictures: {equal} of {len(values)} equal; PSNR median {np.median(values):.1f} dB, "
        f"1st percentile {np.percentile(values, 1):.1f} dB, minimum {values.min():.1f} dB"
    ]
    worst = sorted((score, key) for key, score in scores.items() if score < _SAME_PICTURE)
    return lines + [
        f"    {style}/{icon}: {score:.1f} dB" for score, (style, icon) in worst[:examples]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status is 1 when rows or captions differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--examples", type=int, default=5, help="cases to show of each kind")
    options = parser.parse_args(arguments)
    try:
        result = compare_packs(options.first, options.second)
    except (PackError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(result, options.examples)))
    return int(bool(result.only_first or result.only_second or result.differing))


if __name__ == "__main__":
    sys.exit(main())
