"""Random changes to pictures. All of one picture's come from its own generator."""

from typing import NamedTuple

import torch

from lorasmith.data.images.bucketed_images import CropCorner, croppable_box
from lorasmith.data.images.buckets import BucketAssignment

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
"""How bright red, green and blue are (ITU-R BT.601)."""


class Augmentation(NamedTuple):
    """How one picture is shown in one step."""

    crop_corner: CropCorner
    """Where its crop lies in the scaled picture."""
    is_flipped: bool
    """Whether the crop is mirrored then."""
    color_factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """By what brightness, contrast and saturation are multiplied."""

    def visible_corner(self, placed: BucketAssignment) -> CropCorner:
        """Return the crop's corner as seen in the mirrored or unmirrored scaled picture."""
        left, top = self.crop_corner
        return (placed.crop_slack[0] - left if self.is_flipped else left), top


def draw_augmentation(
    placed: BucketAssignment, random_crop: bool, flip: bool, jitter: float, draws: torch.Generator
) -> Augmentation:
    """Draw how a picture is shown.

    The same numbers are drawn whatever is switched on, so that one setting does not change what
    another does.

    Args:
        placed: the picture's placement.
        random_crop: crop anywhere, not in the centre.
        flip: mirror it with probability one half.
        jitter: largest change of brightness, contrast and saturation, as a share.
        draws: a CPU generator of this picture in this step.
    """
    across, down, side, *amounts = torch.rand(6, generator=draws, dtype=torch.float64).tolist()
    corner = placed.crop_box[:2]
    if random_crop:
        frame, bucket = croppable_box(placed), placed.bucket
        corner = (
            frame.left + int(across * (frame.width - bucket.width + 1)),
            frame.top + int(down * (frame.height - bucket.height + 1)),
        )
    light, contrast, colour = (1.0 + jitter * (2.0 * amount - 1.0) for amount in amounts)
    return Augmentation(corner, flip and side < 0.5, (light, contrast, colour))


def apply_color_jitter(pictures: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast (about the picture's mean grey) and saturation, in this order.

    Args:
        pictures: float32 ``[B, 3, H, W]`` in 0..1.
        factors: float32 ``[B, 3]``; 1 leaves a picture alone.

    Returns:
        The like, clipped to 0..1 after each change.
    """
    light, contrast, colour = factors[..., None, None, None].unbind(1)
    bright = (pictures * light).clamp(0.0, 1.0)
    middle = _grey(bright).mean((2, 3), keepdim=True)
    hard = (middle + (bright - middle) * contrast).clamp(0.0, 1.0)
    grey = _grey(hard)
    return (grey + (hard - grey) * colour).clamp(0.0, 1.0)


def _grey(pictures: torch.Tensor) -> torch.Tensor:
    """Return how bright each pixel is, ``[B, 1, H, W]``."""
    red, green, blue = pictures.unbind(1)
    return (_RED * red + _GREEN * green + _BLUE * blue).unsqueeze(1)
