"""Finding similar images among tens of thousands by their fingerprints.

Every pair that can be similar is compared, so the result is exact. Four things make it quick:
images are sorted by brightness, and similar ones lie near each other; differing bits are counted
for blocks of pairs at once; colours are compared on a coarse grid before the fine one; and pairs of
one group are not compared again.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROWS, _COLUMNS = 256, 4096
"""Pairs of so many images are compared at once: their bits fit into a processor's cache."""
_BLOCK = 4
"""Side of the blocks of a grid that make a coarse one."""


def label_similar(
    bits: NDArray[np.uint64],
    colors: NDArray[np.uint8],
    max_bit_distance: int,
    max_color_distance: float,
) -> NDArray[np.int64]:
    """Label images so that those joined by a chain of similar ones have the same label.

    Args:
        bits: difference hashes, ``[N, 2]``.
        colors: colours on a grid, ``[N, GRID, GRID, 3]``.
        max_bit_distance: bits that differ between similar images at most.
        max_color_distance: root mean square difference of their colours at most, in 0..255.

    Returns:
        labels, ``[N]``; their values mean nothing else.
    """
    fine = colors.reshape(len(colors), -1)
    values = fine.shape[1]
    max_squares = math.floor(max_color_distance**2 * values)
    # The sums of similar grids differ by no more, by the inequality of Cauchy and Schwarz.
    max_sum_difference = math.isqrt(max_squares * values)
    sums = fine.sum(axis=1, dtype=np.int64)
    order = np.argsort(sums, kind="stable")
    sums, bits = sums[order], bits[order]
    grids = _Grids(fine[order], _sum_blocks(colors[order]), max_squares)
    labels = np.arange(len(order))
    for top in range(0, len(order), _ROWS):
        bottom = min(top + _ROWS, len(order))
        end = int(np.searchsorted(sums, sums[bottom - 1] + max_sum_difference, side="right"))
        for left in range(top, end, _COLUMNS):
            rows, columns = np.arange(top, bottom), np.arange(left, min(left + _COLUMNS, end))
            is_candidate = _bit_distances(bits[rows], bits[columns]) <= max_bit_distance
            is_candidate &= labels[rows, None] != labels[None, columns]
            _join(labels, grids.select_similar(_Pairs(rows, columns, is_candidate)))
    result = np.empty_like(labels)
    result[order] = labels
    return result


class _Pairs(NamedTuple):
    """Pairs of images."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    is_chosen: NDArray[np.bool_]
    """Which pairs of a row and a column are meant, ``[rows, columns]``."""

    def shrink(self) -> "_Pairs":
        """Leave out rows and columns of which no pair is chosen."""
        rows = np.flatnonzero(self.is_chosen.any(axis=1))
        columns = np.flatnonzero(self.is_chosen.any(axis=0))
        chosen = self.is_chosen[np.ix_(rows, columns)]
        return _Pairs(self.rows[rows], self.columns[columns], chosen)


class _Grids(NamedTuple):
    """The colours of all images."""

    fine: NDArray[np.uint8]
    """``[N, values]``"""
    coarse: NDArray[np.int64]
    """Sums of blocks of values, ``[N, values / BLOCK ** 2]``."""
    max_squares: int
    """Sum of the squared differences of similar fine grids at most."""

    def select_similar(self, pairs: _Pairs) -> _Pairs:
        """Choose the pairs with similar colours."""
        # Blocks of similar grids differ by no more, as in `label_similar`.
        for grids, limit in (
            (self.coarse, _BLOCK**2 * self.max_squares),
            (self.fine, self.max_squares),
        ):
            pairs = pairs.shrink()
            squares = _square_distances(grids[pairs.rows], grids[pairs.columns])
            pairs = pairs._replace(is_chosen=pairs.is_chosen & (squares <= limit))
        return pairs


def _sum_blocks(colors: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Add up blocks of grids ``[N, GRID, GRID, 3]``: ``[N, blocks * 3]``."""
    count, side = len(colors), colors.shape[1] // _BLOCK
    blocks = colors.reshape(count, side, _BLOCK, side, _BLOCK, 3)
    return np.asarray(blocks.sum(axis=(2, 4), dtype=np.int64).reshape(count, -1))


def _bit_distances(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Count the bits that differ between hashes ``[M, 2]`` and ``[N, 2]``: ``[M, N]``."""
    distances: NDArray[np.uint8] = np.bitwise_count(first[:, None, 0] ^ second[None, :, 0])
    distances += np.bitwise_count(first[:, None, 1] ^ second[None, :, 1])
    return distances


def _join(labels: NDArray[np.int64], pairs: _Pairs) -> None:
    """Give both images of each pair the same label, in place."""
    for image, is_similar in zip(pairs.rows, pairs.is_chosen, strict=True):
        joined = np.unique(labels[pairs.columns[is_similar]])
        joined = joined[joined != labels[image]]
        if len(joined):
            labels[np.isin(labels, joined)] = labels[image]


def _square_distances(
    first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Return sums of squared differences between ``[M, values]`` and ``[N, values]``: ``[M, N]``.

    They are exact: all are whole numbers below 2 ** 53.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None]
    return np.asarray(squares - 2.0 * (a @ b.T))
