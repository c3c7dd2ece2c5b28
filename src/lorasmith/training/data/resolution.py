"""The sizes that training pictures are brought to."""

from typing import TYPE_CHECKING

from lorasmith.config.train_config import DataConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.images.buckets import Bucket, choose_bucket_step, make_buckets
from lorasmith.models.image_sizes import ImageSizes

if TYPE_CHECKING:
    from lorasmith.models.load import Model


def resolve_resolution(model: "Model", wanted: int | None) -> int:
    """Return the side of square training pictures in pixels.

    Raises:
        ConfigError: the wanted side is not a multiple of what the model can do.
    """
    multiple = ImageSizes.from_model(model).multiple
    side = wanted or model.default_size
    if side % multiple:
        near = max(multiple, (side + multiple // 2) // multiple * multiple)
        raise ConfigError(f"data.resolution: {side} is not a multiple of {multiple}; use {near}")
    return side


def buckets_for_model(model: "Model", data: DataConfig) -> tuple[Bucket, ...]:
    """Return the sizes that pictures are brought to.

    Raises:
        ConfigError: the resolution does not suit the model.
    """
    side = resolve_resolution(model, data.resolution)
    if not data.buckets:
        return (Bucket(side, side),)
    step = choose_bucket_step(side, data.bucket_reso_steps, ImageSizes.from_model(model).multiple)
    return make_buckets(side, step, data.max_aspect_ratio)
