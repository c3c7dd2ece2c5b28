"""All pictures of a small-picture dataset in memory, decoded once."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from lorasmith.data.picture import decode, square
from lorasmith.data.rows import Row


def load_squares(
    rows: Sequence[Row], side: int, advance: Callable[[], None] | None = None
) -> torch.Tensor:
    """Decode every row to ``side`` x ``side``; return uint8 ``[N, 3, side, side]``.

    Args:
        rows: the rows, in the order of the result.
        side: picture size in pixels.
        advance: called once per picture, for a progress bar.
    """
    pictures = torch.empty(len(rows), 3, side, side, dtype=torch.uint8)

    def fill(number: int) -> None:
        row = rows[number]
        pixels = square(decode(row.read_bytes(), row.key), side)
        pictures[number] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(rows))):
            if advance is not None:
                advance()
    return pictures


def to_signed(pictures: torch.Tensor) -> torch.Tensor:
    """Map uint8 0..255 to float32 -1..1, the range that the VAE and the image tower take."""
    return pictures.float().div_(127.5).sub_(1.0)


def from_signed(pictures: torch.Tensor) -> torch.Tensor:
    """Map -1..1 to uint8 0..255, rounding and clipping."""
    return pictures.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
