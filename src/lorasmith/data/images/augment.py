"""Image augmentation: random crop, flip and color jitter, each image with its own generator."""

from typing import NamedTuple

import torch

from lorasmith.data.images.bucketed_images import CropCorner, croppable_box
from lorasmith.data.images.buckets import BucketAssignment

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
"""Luma of red, green and blue (ITU-R BT.601)."""


class Augmentation(NamedTuple):
    """How one image is augmented in one step."""

    crop_corner: CropCorner
    """Left and top of the crop in the resized image."""
    is_flipped: bool
    """Whether the crop is flipped afterwards."""
    color_factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors of brightness, contrast and saturation."""

    def visible_corner(self, assignment: BucketAssignment) -> CropCorner:
        """Return the crop's corner in the resized image, flipped where the crop is."""
        left, top = self.crop_corner
        return (assignment.crop_slack[0] - left if self.is_flipped else left), top


def draw_augmentation(
    assignment: BucketAssignment,
    random_crop: bool,
    flip: bool,
    jitter: float,
    generator: torch.Generator,
) -> Augmentation:
    """Draw an augmentation.

    Every call draws the same random numbers, so that one setting does not change the result of
    another.

    Args:
        assignment: how the image is resized.
        random_crop: crop anywhere, not in the centre.
        flip: flip it with probability one half.
        jitter: largest change of brightness, contrast and saturation, as a share.
        generator: a CPU generator for this image in this step.
    """
    x, y, flip_draw, *amounts = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    corner = assignment.crop_box[:2]
    if random_crop:
        area, bucket = croppable_box(assignment), assignment.bucket
        corner = (
            area.left + int(x * (area.width - bucket.width + 1)),
            area.top + int(y * (area.height - bucket.height + 1)),
        )
    brightness, contrast, saturation = (1.0 + jitter * (2.0 * amount - 1.0) for amount in amounts)
    return Augmentation(corner, flip and flip_draw < 0.5, (brightness, contrast, saturation))


def apply_color_jitter(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast (about the image's mean grey) and saturation, in this order.

    Args:
        images: float32 ``[B, 3, H, W]`` in 0..1.
        factors: float32 ``[B, 3]``; 1 leaves an image as it is.

    Returns:
        Images, clipped to 0..1 after each change.
    """
    brightness, contrast, saturation = factors[..., None, None, None].unbind(1)
    brightened = (images * brightness).clamp(0.0, 1.0)
    mean_grey = _grey(brightened).mean((2, 3), keepdim=True)
    contrasted = (mean_grey + (brightened - mean_grey) * contrast).clamp(0.0, 1.0)
    grey = _grey(contrasted)
    return (grey + (contrasted - grey) * saturation).clamp(0.0, 1.0)


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Return the brightness of each pixel, ``[B, 1, H, W]``."""
    red, green, blue = images.unbind(1)
    return (_RED * red + _GREEN * green + _BLUE * blue).unsqueeze(1)
