"""The U-Net's inputs for one batch, and whether a model's parts fit together."""

from collections.abc import Sequence

import torch

from lorasmith.core.errors import WeightsError
from lorasmith.inference.denoise import AddedConditioning
from lorasmith.inference.options import Size
from lorasmith.models.families.family import detect_family
from lorasmith.models.model import Model
from lorasmith.models.text.encode import Conditioning

_AESTHETIC_SCORE, _NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""Diffusers' defaults for the SDXL refiner."""


def check_components(model: Model) -> None:
    """Check that a model's parts belong together.

    Raises:
        WeightsError: they do not, or the U-Net needs inputs that lorasmith does not give.
    """
    unet, name = model.unet.config, f"model {model.path}: unet"
    is_sdxl = detect_family(model).uses_size_conditioning
    if is_sdxl != (model.text_encoder_2 is not None):
        raise WeightsError(
            f"model {model.path}: unet and text encoders are not of one family; SDXL has two "
            "text encoders and a U-Net that reads sizes, other models have neither"
        )
    channels = int(model.vae.config.latent_channels)
    if unet.in_channels not in (channels, 2 * channels + 1):
        raise WeightsError(
            f"{name} takes {unet.in_channels} channels and the vae makes {channels}; use a model "
            f"that takes {channels}, or {2 * channels + 1} for inpainting"
        )
    width = sum(encoder.config.hidden_size for encoder in model.text_encoders)
    if unet.cross_attention_dim != width:
        raise WeightsError(
            f"{name} reads text of width {unet.cross_attention_dim}, text_encoder writes {width}"
        )


def make_added_conditioning(
    model: Model,
    positive: Sequence[Conditioning],
    negative: Sequence[Conditioning],
    size: Size,
) -> AddedConditioning | None:
    """Return SDXL's added conditioning for uncropped images of a size; None for other models.

    The refiner gets the aesthetic scores of diffusers' pipelines.

    Args:
        model: tells the family.
        positive: the prompts of a batch.
        negative: their negative prompts.
        size: width and height in pixels.
    """
    pooled = [text.pooled for text in positive if text.pooled is not None]
    negative_pooled = [text.pooled for text in negative if text.pooled is not None]
    if not pooled or not negative_pooled:
        return None
    embeds, negative_embeds = torch.stack(pooled), torch.stack(negative_pooled)
    width, height = size
    size_and_crop = [float(height), float(width), 0.0, 0.0]
    if detect_family(model).uses_aesthetic_score:
        time_ids = _repeat([*size_and_crop, _AESTHETIC_SCORE], embeds)
        negative_time_ids = _repeat([*size_and_crop, _NEGATIVE_AESTHETIC_SCORE], embeds)
    else:
        time_ids = _repeat([*size_and_crop, *size_and_crop[:2]], embeds)
        negative_time_ids = time_ids
    return AddedConditioning(embeds, negative_embeds, time_ids, negative_time_ids)


def _repeat(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device).expand(len(like), -1)
