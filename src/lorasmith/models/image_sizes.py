"""The image sizes of a model, from its configs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lorasmith.core.errors import WeightsError
from lorasmith.models.files.open import open_source
from lorasmith.models.model import Model, downscale_factor


@dataclass(frozen=True)
class ImageSizes:
    """The sizes of a model's images, in pixels."""

    default: int
    """Side of the square images that it was trained with."""
    multiple: int
    """Sides of training images are multiples of this: each level of the VAE and the U-Net but the
    last halves them."""

    @classmethod
    def read(cls, folder: Path | None = None) -> Self:
        """Read a model's configs; the embedded model by default.

        Raises:
            WeightsError: there is no such model, or its configs lack the sizes.
        """
        source = open_source(folder)
        folder = source.path
        unet, vae = source.config("unet"), source.config("vae")
        downscale = downscale_factor(_levels(vae, folder, "vae"))
        size = unet.get("sample_size")
        if not isinstance(size, int):
            raise WeightsError(f"model {folder}: unet/config.json has no sample_size")
        return cls(size * downscale, downscale * downscale_factor(_levels(unet, folder, "unet")))

    @classmethod
    def from_model(cls, model: Model) -> Self:
        """Return the sizes of a loaded model."""
        levels = len(model.unet.config.block_out_channels)
        return cls(model.default_size, model.vae_scale_factor * downscale_factor(levels))


def _levels(config: dict[str, Any], folder: Path, part: str) -> int:
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise WeightsError(f"model {folder}: {part}/config.json has no block_out_channels")
    return len(channels)
