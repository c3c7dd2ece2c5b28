"""Square pictures of a dataset as uint8 tensors, kept in memory when they fit."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.data.images.decode import WHITE, crop_square, decode_image
from lorasmith.data.reading.row import Row


class SquareImages:
    """Every row's picture at one resolution.

    Sets of up to ``memory_gib`` are decoded once and held on ``device``; larger ones are decoded
    batch by batch on all cores.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        side: int,
        device: torch.device,
        memory_gib: float,
        advance: Callable[[], None] | None = None,
    ) -> None:
        self.rows = rows
        self.side = side
        self.device = device
        fits = len(rows) * 3 * side * side <= memory_gib * 2**30
        self._held = load_square_images(rows, side, advance).to(device) if fits else None

    def __len__(self) -> int:
        return len(self.rows)

    def get_batch(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return pictures by row number, as float32 ``[B, 3, side, side]`` in -1..1.

        Args:
            numbers: row numbers, int64 ``[B]``.
        """
        if self._held is not None:
            return uint8_to_signed(self._held[numbers.to(self.device)])
        chosen = [self.rows[number] for number in numbers.tolist()]
        return uint8_to_signed(load_square_images(chosen, self.side).to(self.device))


def load_square_images(
    rows: Sequence[Row],
    side: int,
    advance: Callable[[], None] | None = None,
    background: tuple[int, int, int] = WHITE,
) -> torch.Tensor:
    """Decode every row to ``side`` x ``side``; return uint8 ``[N, 3, side, side]``.

    Args:
        rows: the rows, in the order of the result.
        side: picture size in pixels.
        advance: called once per picture, for a progress bar.
        background: colour under transparent pictures.
    """
    pictures = torch.empty(len(rows), 3, side, side, dtype=torch.uint8)

    def fill(number: int) -> None:
        row = rows[number]
        pixels = crop_square(decode_image(row.read_bytes(), row.key, background), side)
        pictures[number] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(rows))):
            if advance is not None:
                advance()
    return pictures


def uint8_to_signed(pictures: torch.Tensor) -> torch.Tensor:
    """Map uint8 0..255 to float32 -1..1, the range that the VAE and the image tower take."""
    return pictures.float().div_(127.5).sub_(1.0)


def signed_to_uint8(pictures: torch.Tensor) -> torch.Tensor:
    """Map -1..1 to uint8 0..255, rounding and clipping."""
    return pictures.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def random_flip(pictures: torch.Tensor, allowed: torch.Tensor, draws: BatchRng) -> torch.Tensor:
    """Mirror each picture with probability one half where ``allowed`` (bool ``[B]``) permits."""
    chosen = ((draws.uniform() < 0.5) & allowed).view(-1, 1, 1, 1)
    return torch.where(chosen, pictures.flip(-1), pictures)
