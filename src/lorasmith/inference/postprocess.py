"""From decoded tensors to images, and what the safety checker does to them."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from lorasmith.core.errors import LorasmithWarning

if TYPE_CHECKING:
    from lorasmith.inference.safety import SafetyChecker


def blacken_unsafe(
    images: Sequence[Image.Image], safety_checker: "SafetyChecker"
) -> list[Image.Image]:
    """Return the images, black ones in place of unsafe ones, with a warning."""
    is_unsafe = list(safety_checker(images))
    if any(is_unsafe):
        warnings.warn(
            f"{sum(map(bool, is_unsafe))} of {len(images)} images were blackened by the safety "
            "checker",
            LorasmithWarning,
            stacklevel=2,
        )
    return [
        Image.new("RGB", image.size) if unsafe else image
        for image, unsafe in zip(images, is_unsafe, strict=True)
    ]


def tensor_to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Return RGB images from floats in 0..1, ``[B, 3, H, W]``, rounded to 8 bits.

    Values that are not finite become black, with a warning.
    """
    if not torch.isfinite(images).all():
        warnings.warn(
            "the model returned values that are not numbers, shown as black; use float32 or bf16, "
            "and if it is one of them, check for damaged weights",
            LorasmithWarning,
            stacklevel=2,
        )
    pixels = (images.nan_to_num(0.0) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
