"""Pictures and masks at their placement: decoded, scaled and cut to their bucket."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from lorasmith.data.images.buckets import BucketAssignment, Size
from lorasmith.data.images.decode import DECODE_ERRORS, Pixels, decode_image, decode_mask
from lorasmith.data.reading.row import Row

Color = tuple[int, int, int]
CropCorner = tuple[int, int]
"""Left and top of a crop, in the scaled picture."""

_LONGEST = 8
"""A crop can lie anywhere in the central part of a picture that is so many bucket sides long."""
_HEADER_TELLS = frozenset({"JPEG", "PNG", "WEBP"})
"""Formats whose size and orientation Pillow knows without decoding the pixels."""
_ORIENTATION = 0x0112
_LYING = frozenset({5, 6, 7, 8})
"""Orientations in which width and height are exchanged."""


class CropBox(NamedTuple):
    """A rectangle of the scaled picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def read_image_size(encoded: bytes, name: str) -> Size:
    """Return width and height of a picture as ``decode`` gives it, without decoding where possible.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        picture = Image.open(io.BytesIO(encoded))
        if picture.format in _HEADER_TELLS:
            width, height = picture.size
            lying = picture.getexif().get(_ORIENTATION) in _LYING
            return (height, width) if lying else (width, height)
    except DECODE_ERRORS:  # `decode` says what is wrong, or makes something of it
        return decode_image(encoded, name).size
    return decode_image(encoded, name).size


def croppable_box(placed: BucketAssignment) -> CropBox:
    """Return the part of the scaled picture that random crops are taken from.

    All of it, but for pictures many times longer than their bucket.
    """
    bucket, (wide, tall) = placed.bucket, placed.resized_size
    width = min(wide, _LONGEST * bucket.width)
    height = min(tall, _LONGEST * bucket.height)
    return CropBox((wide - width) // 2, (tall - height) // 2, width, height)


def resize_and_crop(picture: Image.Image, placed: BucketAssignment, frame: CropBox) -> Pixels:
    """Scale a picture and cut a frame out of it, in one go, so that nothing larger is ever held.

    Args:
        picture: the upright picture, RGB or L.
        placed: how it is scaled.
        frame: what is wanted of the scaled picture.

    Returns:
        uint8 ``[frame.height, frame.width, 3]``, or without the 3 for L.
    """
    left, top, width, height = frame
    if picture.size == placed.resized_size:
        return np.asarray(picture.crop((left, top, left + width, top + height)), dtype=np.uint8)
    across, down = picture.width / placed.resized_size[0], picture.height / placed.resized_size[1]
    box = (
        left * across,
        top * down,
        min((left + width) * across, picture.width),
        min((top + height) * down, picture.height),
    )
    scaled = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(scaled, dtype=np.uint8)


class BucketedImages:
    """Pictures and masks of some rows, each at its placement.

    Up to ``held_gib`` of scaled pictures are kept in memory once they were needed; the others are
    decoded every time, on all cores.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        assignments: Sequence[BucketAssignment],
        background: Color,
        memory_gib: float = 2.0,
    ) -> None:
        self.rows = rows
        self.assignments = assignments
        self.background = background
        room = memory_gib * 2**30
        self._holdable: set[int] = set()
        for number, placed in enumerate(assignments):
            frame = croppable_box(placed)
            room -= frame.width * frame.height * 4
            if room >= 0:
                self._holdable.add(number)
        self._held: dict[int, tuple[Pixels, Pixels | None]] = {}

    def load_center_crop(self, number: int) -> torch.Tensor:
        """Decode one picture and crop its centre; uint8 ``[3, h, w]``."""
        row, placed = self.rows[number], self.assignments[number]
        pixels = resize_and_crop(
            decode_image(row.read_bytes(), row.key, self.background), placed, _centre(placed)
        )
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    def load_center_mask(self, number: int) -> torch.Tensor | None:
        """Decode a picture's mask and crop its centre; uint8 ``[1, h, w]``, or None without one."""
        placed = self.assignments[number]
        mask = self._mask(self.rows[number], placed, _centre(placed))
        return None if mask is None else torch.from_numpy(mask.copy()).unsqueeze(0)

    def load_crops(
        self, numbers: Sequence[int], corners: Sequence[CropCorner]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return crops of pictures of one bucket, and of their masks.

        Args:
            numbers: which pictures.
            corners: where each crop lies in the scaled picture, inside of ``movable``.

        Returns:
            uint8 ``[B, 3, h, w]`` and ``[B, 1, h, w]``; the mask is 255 where there is none.
        """
        bucket = self.assignments[numbers[0]].bucket
        pictures = torch.empty(len(numbers), 3, bucket.height, bucket.width, dtype=torch.uint8)
        masks = torch.full((len(numbers), 1, bucket.height, bucket.width), 255, dtype=torch.uint8)
        parts = self._parts(numbers)
        for place, (number, corner) in enumerate(zip(numbers, corners, strict=True)):
            frame = croppable_box(self.assignments[number])
            left, top = corner[0] - frame.left, corner[1] - frame.top
            window = np.s_[top : top + bucket.height, left : left + bucket.width]
            pixels, mask = parts[place]
            pictures[place] = torch.from_numpy(pixels[window].copy()).permute(2, 0, 1)
            if mask is not None:
                masks[place, 0] = torch.from_numpy(mask[window].copy())
        return pictures, masks

    def _parts(self, numbers: Sequence[int]) -> list[tuple[Pixels, Pixels | None]]:
        if all(number in self._held for number in numbers):
            return [self._held[number] for number in numbers]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            return list(pool.map(self._part, numbers))

    def _part(self, number: int) -> tuple[Pixels, Pixels | None]:
        """Return the part of a picture and its mask that crops are taken from."""
        if number in self._held:
            return self._held[number]
        row, placed = self.rows[number], self.assignments[number]
        frame = croppable_box(placed)
        pixels = resize_and_crop(
            decode_image(row.read_bytes(), row.key, self.background), placed, frame
        )
        part = (pixels, self._mask(row, placed, frame))
        if number in self._holdable:
            self._held[number] = part
        return part

    def _mask(self, row: Row, placed: BucketAssignment, frame: CropBox) -> Pixels | None:
        encoded = row.read_mask()
        if encoded is None:
            return None
        return resize_and_crop(
            decode_mask(encoded, str(row.mask_path), placed.original_size), placed, frame
        )


def _centre(placed: BucketAssignment) -> CropBox:
    left, top, _, _ = placed.crop_box
    return CropBox(left, top, placed.bucket.width, placed.bucket.height)
