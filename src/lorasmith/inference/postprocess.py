"""From decoded tensors to pictures, and what a judge leaves of them."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from lorasmith.core.errors import LorasmithWarning

if TYPE_CHECKING:
    from lorasmith.inference.safety import SafetyChecker


def blacken_unsafe(images: Sequence[Image.Image], judge: "SafetyChecker") -> list[Image.Image]:
    """Return pictures, black ones for those that must not be shown."""
    bad = list(judge(images))
    if any(bad):
        warnings.warn(
            f"{sum(map(bool, bad))} of {len(images)} pictures were blackened by the safety checker",
            LorasmithWarning,
            stacklevel=2,
        )
    pairs = zip(images, bad, strict=True)
    return [Image.new("RGB", image.size) if hide else image for image, hide in pairs]


def tensor_to_pil(pictures: torch.Tensor) -> list[Image.Image]:
    """Return RGB pictures from floats in 0..1, ``[B, 3, H, W]``, rounded to 8 bits.

    Values that are not finite become black, with a warning.
    """
    if not torch.isfinite(pictures).all():
        warnings.warn(
            "the model returned values that are not numbers, drawn black; use precision no or "
            "bf16, and if it is one of them, look for damaged weights",
            LorasmithWarning,
            stacklevel=2,
        )
    bytes_ = (pictures.nan_to_num(0.0) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in bytes_]
