"""Pictures to start from: changed as a whole, or painted anew where a mask is white."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lorasmith.core.errors import ConfigError
from lorasmith.data.images.bucketed import Frame, cut
from lorasmith.data.images.buckets import Bucket, place
from lorasmith.data.images.decode import BLACK, Pixels, as_decoded, decode, decode_mask, fitted_mask
from lorasmith.inference.options import Size

ImageInput = str | Path | Image.Image
"""A file, or a picture in memory."""

_MOST = 4
"""Times the pixels that a model was trained at; larger pictures need a size that is asked for."""


@dataclass(frozen=True, eq=False)
class InitImage:
    """What is drawn on."""

    image: Image.Image
    """RGB."""
    mask: Image.Image | None = None
    """L, of the picture's size: white is painted anew. None for the whole picture."""

    @classmethod
    def load(cls, image: ImageInput | None, mask: ImageInput | None = None) -> "InitImage | None":
        """Read a picture and its mask; None without a picture.

        Raises:
            ConfigError: there is no such file, or a mask without a picture.
            DataError: a file is no picture, or the mask has another shape than its picture.
        """
        if image is None:
            if mask is not None:
                raise ConfigError("mask: says what of a picture is painted anew; give the picture")
            return None
        if isinstance(image, Image.Image):
            picture = as_decoded(image)
        else:
            picture = decode(_content(image, "image"), str(image))
        if mask is None:
            return cls(picture)
        if isinstance(mask, Image.Image):
            grey = as_decoded(mask, BLACK).convert("L")
            return cls(picture, fitted_mask(grey, "mask", picture.size))
        return cls(picture, decode_mask(_content(mask, "mask"), str(mask), picture.size))

    def size_for(self, default: int, multiple: int) -> Size:
        """Return (width, height) to draw at where nothing is asked for: its own, rounded down.

        Args:
            default: side of the squares that the model was trained at.
            multiple: pixels per latent.

        Raises:
            ConfigError: it is so large that this can hardly be meant; another size is named.
        """
        width, height = self.image.size
        if width * height > _MOST * default**2:
            scale = default / (width * height) ** 0.5
            near = "x".join(str(_down(side * scale, multiple)) for side in (width, height))
            raise ConfigError(
                f"size: the picture is {width}x{height}, much larger than what the model was "
                f"trained at ({default}x{default}); give a size, such as {near}"
            )
        return _down(width, multiple), _down(height, multiple)

    def image_tensor(self, size: Size) -> torch.Tensor:
        """Return the picture, scaled to cover a size and cut to it: uint8 ``[3, H, W]``."""
        return torch.from_numpy(_fitted(self.image, size)).permute(2, 0, 1)

    def mask_tensor(self, size: Size) -> torch.Tensor:
        """Return what is painted anew, likewise: uint8 ``[1, H, W]``, all white without a mask."""
        if self.mask is None:
            return torch.full((1, size[1], size[0]), 255, dtype=torch.uint8)
        return torch.from_numpy(_fitted(self.mask, size)).unsqueeze(0)


def _fitted(picture: Image.Image, size: Size) -> Pixels:
    placed = place(picture.size, (Bucket(*size),))
    left, top, _, _ = placed.crop
    return np.array(cut(picture, placed, Frame(left, top, *size)))


def _content(file: str | Path, name: str) -> bytes:
    path = Path(file).expanduser()
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {path}: cannot be read ({error.strerror})") from error


def _down(side: float, multiple: int) -> int:
    return max(multiple, int(side) // multiple * multiple)
