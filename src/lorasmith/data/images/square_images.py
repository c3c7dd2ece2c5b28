"""Square images of a dataset as uint8 tensors, in memory when they fit."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.data.images.decode import WHITE, crop_square, decode_image
from lorasmith.data.images.memory_budget import reserve_decoding
from lorasmith.data.reading.row import Row


class SquareImages:
    """Every row's image at one resolution.

    Datasets of up to ``memory_gib`` are decoded once and stay on ``device``; larger ones are
    decoded batch by batch on all cores.
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
        self._images = load_square_images(rows, side, advance).to(device) if fits else None

    def __len__(self) -> int:
        return len(self.rows)

    def get_batch(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images by row index, as float32 ``[B, 3, side, side]`` in -1..1.

        Args:
            indices: row indices, int64 ``[B]``.
        """
        if self._images is not None:
            return uint8_to_signed(self._images[indices.to(self.device)])
        rows = [self.rows[index] for index in indices.tolist()]
        return uint8_to_signed(load_square_images(rows, self.side).to(self.device))


def load_square_images(
    rows: Sequence[Row],
    side: int,
    advance: Callable[[], None] | None = None,
    background: tuple[int, int, int] = WHITE,
) -> torch.Tensor:
    """Decode every row to ``side`` x ``side``; return uint8 ``[N, 3, side, side]``.

    Args:
        rows: the rows, in the order of the result.
        side: image size in pixels.
        advance: called once per image, for a progress bar.
        background: colour under transparent images.
    """
    images = torch.empty(len(rows), 3, side, side, dtype=torch.uint8)

    def fill(index: int) -> None:
        row = rows[index]
        with reserve_decoding(row, with_mask=False):
            pixels = crop_square(decode_image(row.read_bytes(), row.key, background), side)
        images[index] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(rows))):
            if advance is not None:
                advance()
    return images


def uint8_to_signed(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 0..255 to float32 -1..1, the range of the VAE and the image encoder."""
    return images.float().div_(127.5).sub_(1.0)


def signed_to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Map -1..1 to uint8 0..255, rounding and clipping."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def random_flip(images: torch.Tensor, allowed: torch.Tensor, rng: BatchRng) -> torch.Tensor:
    """Flip each image with probability one half where ``allowed`` (bool ``[B]``) permits."""
    is_flipped = ((rng.uniform() < 0.5) & allowed).view(-1, 1, 1, 1)
    return torch.where(is_flipped, images.flip(-1), images)
