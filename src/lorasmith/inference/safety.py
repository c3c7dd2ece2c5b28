"""An optional safety checker: any function, or Stable Diffusion's from a local folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lorasmith.core.errors import WeightsError
from lorasmith.models.files.source import naming_part
from lorasmith.models.load import load_clip_network

SafetyChecker = Callable[[Sequence[Image.Image]], Sequence[bool]]
"""Says of each image whether it is unsafe."""

# Mean and standard deviation of the images OpenAI's CLIP was trained on (red, green, blue).
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_safety_checker(folder: str | Path, device: torch.device) -> SafetyChecker:
    """Open the folder ``safety_checker`` of a diffusers model.

    Raises:
        WeightsError: there is none, or it is damaged or something else.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise WeightsError(
            f"safety checker {path}: there is no config.json; name the folder safety_checker of a "
            "diffusers model"
        )
    with naming_part(path.parent, path.name):
        network = load_clip_network(StableDiffusionSafetyChecker, path)
    return _StableDiffusionChecker(network.to(device))


class _StableDiffusionChecker:
    """Stable Diffusion's checker, which compares images with concepts in CLIP's space."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._side = int(network.config.vision_config.image_size)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[bool]:
        device = next(self._network.parameters()).device
        inputs = torch.stack([preprocess_for_clip(image, self._side) for image in images])
        # The network blackens its second argument, which we do not use.
        dummy = np.zeros((len(images), 1, 1, 3))
        return [bool(unsafe) for unsafe in self._network(inputs.to(device), dummy)[1]]


def preprocess_for_clip(image: Image.Image, side: int) -> torch.Tensor:
    """Return an image as CLIP's input, float32 ``[3, side, side]``.

    The shorter side is resized (bicubic), the centre cropped, channels are normalised.
    """
    width, height = image.size
    scale = side / min(width, height)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    cropped = resized.crop((left, top, left + side, top + side))
    values = torch.from_numpy(np.asarray(cropped).copy()).permute(2, 0, 1).float() / 255
    mean = torch.tensor(_CLIP_MEAN)[:, None, None]
    std = torch.tensor(_CLIP_STD)[:, None, None]
    return (values - mean) / std
