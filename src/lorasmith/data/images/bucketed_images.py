"""Images and masks decoded, resized and cropped to their bucket."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from lorasmith.data.images.buckets import BucketAssignment, Size
from lorasmith.data.images.color_profile import needs_conversion
from lorasmith.data.images.decode import (
    DECODE_ERRORS,
    Pixels,
    decode_image,
    decode_mask,
    decode_with_details,
)
from lorasmith.data.images.memory_budget import reserve_decoding
from lorasmith.data.images.open_image import open_image
from lorasmith.data.reading.row import Row

Color = tuple[int, int, int]
CropCorner = tuple[int, int]
"""Left and top of a crop, in the resized image."""

_MAX_BUCKET_SIDES = 8
"""Random crops come from the central area of at most this many bucket sides."""
_HEADER_FORMATS = frozenset({"JPEG", "PNG", "WEBP"})
"""Formats whose size and orientation Pillow knows without decoding the pixels."""
_ORIENTATION_TAG = 0x0112
_SIDEWAYS_ORIENTATIONS = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height."""


class CropBox(NamedTuple):
    """A rectangle of the resized image, in pixels."""

    left: int
    top: int
    width: int
    height: int


class ImageHeader(NamedTuple):
    """What is known about an image without its pixels."""

    size: Size
    """Width and height of the decoded image."""
    is_converted: bool
    """Whether decoding converts its colours to sRGB from those of an embedded profile."""


def read_image_header(encoded: bytes, name: str) -> ImageHeader:
    """Return the size of an image and whether its colours are converted.

    Without decoding it if possible.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        image = open_image(io.BytesIO(encoded))
        if image.format in _HEADER_FORMATS:
            width, height = image.size
            is_sideways = image.getexif().get(_ORIENTATION_TAG) in _SIDEWAYS_ORIENTATIONS
            size = (height, width) if is_sideways else (width, height)
            return ImageHeader(size, needs_conversion(image))
    except DECODE_ERRORS:  # `decode_with_details` raises, or can still decode it
        pass
    decoded = decode_with_details(encoded, name)
    return ImageHeader(decoded.image.size, decoded.is_converted)


def croppable_box(assignment: BucketAssignment) -> CropBox:
    """Return the area of the resized image that random crops come from.

    All of it, except in images many times longer than their bucket.
    """
    bucket, (resized_width, resized_height) = assignment.bucket, assignment.resized_size
    width = min(resized_width, _MAX_BUCKET_SIDES * bucket.width)
    height = min(resized_height, _MAX_BUCKET_SIDES * bucket.height)
    left, top = (resized_width - width) // 2, (resized_height - height) // 2
    return CropBox(left, top, width, height)


def resize_and_crop(image: Image.Image, assignment: BucketAssignment, box: CropBox) -> Pixels:
    """Resize an image and crop a box, at once, so that nothing larger is ever in memory.

    Args:
        image: the upright image, RGB or L.
        assignment: how it is resized.
        box: the area of the resized image.

    Returns:
        uint8 ``[box.height, box.width, 3]``, or without the 3 for L.
    """
    left, top, width, height = box
    if image.size == assignment.resized_size:
        return np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.uint8)
    x_scale = image.width / assignment.resized_size[0]
    y_scale = image.height / assignment.resized_size[1]
    source = (
        left * x_scale,
        top * y_scale,
        min((left + width) * x_scale, image.width),
        min((top + height) * y_scale, image.height),
    )
    resized = image.resize((width, height), Image.Resampling.LANCZOS, box=source)
    return np.asarray(resized, dtype=np.uint8)


class BucketedImages:
    """Images and masks of rows, each resized for its bucket.

    Up to ``memory_gib`` of resized images stay in memory after their first use; the others are
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
        free_bytes = memory_gib * 2**30
        self._cacheable: set[int] = set()
        for index, assignment in enumerate(assignments):
            box = croppable_box(assignment)
            free_bytes -= box.width * box.height * 4
            if free_bytes >= 0:
                self._cacheable.add(index)
        self._areas: dict[int, tuple[Pixels, Pixels | None]] = {}

    def load_center_crop(self, index: int) -> torch.Tensor:
        """Decode one image and crop its centre; uint8 ``[3, h, w]``."""
        row, assignment = self.rows[index], self.assignments[index]
        box = _center_box(assignment)
        with reserve_decoding(row, with_mask=False):
            image = decode_image(row.read_bytes(), row.key, self.background)
            pixels = resize_and_crop(image, assignment, box)
            del image
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    def load_center_mask(self, index: int) -> torch.Tensor | None:
        """Decode an image's mask and crop its centre; uint8 ``[1, h, w]``, or None without one."""
        row, assignment = self.rows[index], self.assignments[index]
        with reserve_decoding(row, with_image=False):
            mask = self._load_mask(row, assignment, _center_box(assignment))
        return None if mask is None else torch.from_numpy(mask.copy()).unsqueeze(0)

    def load_crops(
        self, indices: Sequence[int], corners: Sequence[CropCorner]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return crops of images of one bucket, and of their masks.

        Args:
            indices: which images.
            corners: where each crop lies in the resized image, inside its ``croppable_box``.

        Returns:
            uint8 ``[B, 3, h, w]`` and ``[B, 1, h, w]``; the mask is 255 where there is none.
        """
        bucket = self.assignments[indices[0]].bucket
        images = torch.empty(len(indices), 3, bucket.height, bucket.width, dtype=torch.uint8)
        masks = torch.full((len(indices), 1, bucket.height, bucket.width), 255, dtype=torch.uint8)
        areas = self._load_areas(indices)
        for position, (index, corner) in enumerate(zip(indices, corners, strict=True)):
            box = croppable_box(self.assignments[index])
            left, top = corner[0] - box.left, corner[1] - box.top
            window = np.s_[top : top + bucket.height, left : left + bucket.width]
            pixels, mask = areas[position]
            images[position] = torch.from_numpy(pixels[window].copy()).permute(2, 0, 1)
            if mask is not None:
                masks[position, 0] = torch.from_numpy(mask[window].copy())
        return images, masks

    def _load_areas(self, indices: Sequence[int]) -> list[tuple[Pixels, Pixels | None]]:
        if all(index in self._areas for index in indices):
            return [self._areas[index] for index in indices]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            return list(pool.map(self._load_area, indices))

    def _load_area(self, index: int) -> tuple[Pixels, Pixels | None]:
        """Return the croppable area of an image and of its mask."""
        if index in self._areas:
            return self._areas[index]
        row, assignment = self.rows[index], self.assignments[index]
        box = croppable_box(assignment)
        with reserve_decoding(row):
            image = decode_image(row.read_bytes(), row.key, self.background)
            area = (
                resize_and_crop(image, assignment, box),
                self._load_mask(row, assignment, box),
            )
            del image
        if index in self._cacheable:
            self._areas[index] = area
        return area

    def _load_mask(self, row: Row, assignment: BucketAssignment, box: CropBox) -> Pixels | None:
        encoded = row.read_mask()
        if encoded is None:
            return None
        return resize_and_crop(
            decode_mask(encoded, str(row.mask_path), assignment.original_size), assignment, box
        )


def _center_box(assignment: BucketAssignment) -> CropBox:
    left, top, _, _ = assignment.crop_box
    return CropBox(left, top, assignment.bucket.width, assignment.bucket.height)
