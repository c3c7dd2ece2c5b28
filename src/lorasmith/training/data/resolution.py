"""Resolution and buckets of training images."""

from typing import TYPE_CHECKING

from lorasmith.config.train_config import DataConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.images.buckets import Bucket, choose_bucket_step, make_buckets
from lorasmith.models.image_sizes import ImageSizes

if TYPE_CHECKING:
    from lorasmith.models.model import Model


def resolve_resolution(model: "Model", resolution: int | None) -> int:
    """Return the side of square training images in pixels; None is the model's own.

    Raises:
        ConfigError: it is not a multiple of what the model supports.
    """
    multiple = ImageSizes.from_model(model).multiple
    side = resolution or model.default_size
    if side % multiple:
        near = max(multiple, (side + multiple // 2) // multiple * multiple)
        raise ConfigError(f"data.resolution: {side} is not a multiple of {multiple}; use {near}")
    return side


def buckets_for_model(model: "Model", data: DataConfig) -> tuple[Bucket, ...]:
    """Return the buckets for images of a run.

    Raises:
        ConfigError: the resolution does not suit the model.
    """
    side = resolve_resolution(model, data.resolution)
    if not data.buckets:
        return (Bucket(side, side),)
    step = choose_bucket_step(side, data.bucket_reso_steps, ImageSizes.from_model(model).multiple)
    return make_buckets(side, step, data.max_aspect_ratio)
