"""Making an image encoder from its `config.json`, whose sizes are checked before anything is built.

A config without a `kind` is a convolutional encoder's of an earlier version.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lorasmith.core.errors import WeightsError
from lorasmith.models.vision.base import ImageEncoder
from lorasmith.models.vision.conv_encoder import ConvImageEncoder
from lorasmith.models.vision.vision_transformer import VitSizes
from lorasmith.models.vision.vit_encoder import VitImageEncoder

_MAX_STAGES, _MAX_WIDTH, _MAX_DEPTH = 8, 2048, 16
"""Bounds of a convolutional encoder: stages, channels of a stage, and its blocks."""
_MAX_VIT = VitSizes(
    image_size=1024, patch_size=64, hidden_size=_MAX_WIDTH, num_hidden_layers=48,
    num_attention_heads=64, intermediate_size=8192,
)  # fmt: skip


def create_image_encoder(config: Mapping[str, Any], file: Path) -> ImageEncoder:
    """Create an image encoder with random weights.

    Args:
        config: what `config.json` says.
        file: its path, for errors.

    Raises:
        WeightsError: the kind is unknown, or a size is missing or impossible.
    """
    if not _is_sizes([config.get("embedding")], _MAX_WIDTH):
        raise WeightsError(f"{file}: not an image encoder's config: embedding")
    kind = config.get("kind", "conv")
    if kind == "conv":
        return _create_conv(config, file)
    if kind == "vit":
        return _create_vit(config, file)
    raise WeightsError(f"{file}: not an image encoder's config: kind is conv or vit, not {kind!r}")


def _create_conv(config: Mapping[str, Any], file: Path) -> ImageEncoder:
    widths: Any = config.get("channels")
    depths: Any = config.get("blocks")
    if not (_is_sizes(widths, _MAX_WIDTH) and _is_sizes(depths, _MAX_DEPTH)):
        raise WeightsError(
            f"{file}: not an image encoder's config: channels are up to {_MAX_STAGES} "
            f"numbers from 1 to {_MAX_WIDTH}, blocks as many from 1 to {_MAX_DEPTH}"
        )
    if len(widths) != len(depths):
        raise WeightsError(f"{file}: not an image encoder's config: blocks")
    try:
        return ConvImageEncoder(widths, depths, config["embedding"])
    except ValueError as error:  # widths that the groups of the norms do not divide
        raise WeightsError(f"{file}: not an image encoder's config ({error})") from error


def _create_vit(config: Mapping[str, Any], file: Path) -> ImageEncoder:
    for field in fields(VitSizes):
        largest = getattr(_MAX_VIT, field.name)
        if not _is_sizes([config.get(field.name)], largest):
            raise WeightsError(
                f"{file}: not an image encoder's config: {field.name} is a number from 1 to "
                f"{largest}"
            )
    sizes = VitSizes(**{field.name: config[field.name] for field in fields(VitSizes)})
    if sizes.hidden_size % sizes.num_attention_heads or sizes.image_size % sizes.patch_size:
        raise WeightsError(
            f"{file}: not an image encoder's config: hidden_size is a multiple of "
            "num_attention_heads, and image_size of patch_size"
        )
    return VitImageEncoder(sizes, config["embedding"])


def _is_sizes(values: Any, largest: int) -> bool:
    """Tell a short list of whole numbers from 1."""
    return (
        isinstance(values, list)
        and 1 <= len(values) <= _MAX_STAGES
        and all(type(value) is int and 1 <= value <= largest for value in values)
    )
