"""Images to start from: changed everywhere, or inpainted where a mask is white."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lorasmith.core.errors import ConfigError, LorasmithWarning
from lorasmith.core.regular_files import read_regular_file
from lorasmith.data.images.bucketed_images import CropBox, resize_and_crop
from lorasmith.data.images.buckets import Bucket, assign_bucket
from lorasmith.data.images.decode import (
    BLACK,
    Pixels,
    decode_mask,
    decode_with_details,
    fit_mask,
    to_rgb,
)
from lorasmith.data.reading.row import MAX_FILE_BYTES
from lorasmith.inference.options import Size

ImageInput = str | Path | Image.Image
"""A file, or an image in memory."""

_MAX_AREA_RATIO = 4
"""Times the pixels that a model was trained at; for larger images the user has to give a size."""


@dataclass(frozen=True, eq=False)
class InitImage:
    """The image that generation starts from."""

    image: Image.Image
    """RGB."""
    mask: Image.Image | None = None
    """L, of the image's size: white is inpainted. None for the full image."""

    @classmethod
    def load(cls, image: ImageInput | None, mask: ImageInput | None = None) -> "InitImage | None":
        """Read an image and its mask; None without an image.

        Raises:
            ConfigError: there is no such file, or a mask without an image.
            DataError: a file is no image, or the mask has another shape than its image.
        """
        if image is None:
            if mask is not None:
                raise ConfigError("mask: says what of an image is inpainted; give the image too")
            return None
        if isinstance(image, Image.Image):
            rgb = to_rgb(image)
        else:
            rgb = _decode(_read_bytes(image, "image"), str(image))
        if mask is None:
            return cls(rgb)
        if isinstance(mask, Image.Image):
            grey = to_rgb(mask, BLACK).convert("L")
            return cls(rgb, fit_mask(grey, "mask", rgb.size))
        return cls(rgb, decode_mask(_read_bytes(mask, "mask"), str(mask), rgb.size))

    def default_size(self, model_side: int, multiple: int) -> Size:
        """Return (width, height) where the user gives none: the image's, rounded down.

        Args:
            model_side: side of the squares that the model was trained at.
            multiple: pixels per latent.

        Raises:
            ConfigError: it is so large that the user hardly means it; another size is named.
        """
        width, height = self.image.size
        if width * height > _MAX_AREA_RATIO * model_side**2:
            scale = model_side / (width * height) ** 0.5
            sides = (_round_down(side * scale, multiple) for side in (width, height))
            raise ConfigError(
                f"size: the image is {width}x{height}, much larger than what the model was "
                f"trained at ({model_side}x{model_side}); give a size, such as "
                f"{'x'.join(map(str, sides))}"
            )
        return _round_down(width, multiple), _round_down(height, multiple)

    def image_tensor(self, size: Size) -> torch.Tensor:
        """Return the image, scaled to cover a size and cropped to it: uint8 ``[3, H, W]``."""
        return torch.from_numpy(_cover_and_crop(self.image, size)).permute(2, 0, 1)

    def mask_tensor(self, size: Size) -> torch.Tensor:
        """Return the mask likewise: uint8 ``[1, H, W]``, all white without a mask."""
        if self.mask is None:
            return full_mask(size)
        return torch.from_numpy(_cover_and_crop(self.mask, size)).unsqueeze(0)


def full_mask(size: Size) -> torch.Tensor:
    """Return a mask that inpaints everything: uint8 ``[1, H, W]``, all white."""
    return torch.full((1, size[1], size[0]), 255, dtype=torch.uint8)


def _cover_and_crop(image: Image.Image, size: Size) -> Pixels:
    placement = assign_bucket(image.size, (Bucket(*size),))
    left, top, _, _ = placement.crop_box
    return np.array(resize_and_crop(image, placement, CropBox(left, top, *size)))


def _read_bytes(file: str | Path, name: str) -> bytes:
    path = Path(file).expanduser()
    try:
        return read_regular_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{name}: {path}: cannot be read ({error.strerror})") from error


def _decode(encoded: bytes, name: str) -> Image.Image:
    decoded = decode_with_details(encoded, name)
    if decoded.profile_problem:
        warnings.warn(
            f"{name}: its colour profile cannot be used ({decoded.profile_problem}); its colours "
            "are read as sRGB",
            LorasmithWarning,
            stacklevel=4,
        )
    return decoded.image


def _round_down(side: float, multiple: int) -> int:
    return max(multiple, int(side) // multiple * multiple)
