"""What a model's U-Net wants: whether its parts belong together, and its inputs for one batch."""

from collections.abc import Sequence

import torch

from lorasmith.core.errors import WeightsError
from lorasmith.inference.denoise import AddedConditioning
from lorasmith.inference.options import Size
from lorasmith.models.family import detect_family
from lorasmith.models.load import Model
from lorasmith.models.text.encode import Conditioning

_SCORE, _NEGATIVE_SCORE = 6.0, 2.5
"""How good pictures shall look, and how good those of the negative prompt do."""


def check_components(model: Model) -> None:
    """Refuse models whose parts do not belong together or that want inputs we do not give."""
    unet, where = model.unet.config, f"model {model.folder}: unet"
    two = detect_family(model) in ("sdxl", "sdxl-refiner")
    if two != (model.text_encoder_2 is not None):
        raise WeightsError(
            f"model {model.folder}: unet and text encoders are not of one family; SDXL has two "
            "text encoders and a U-Net that reads sizes, other models have neither"
        )
    channels = int(model.vae.config.latent_channels)
    if unet.in_channels not in (channels, 2 * channels + 1):
        raise WeightsError(
            f"{where} takes {unet.in_channels} channels and the vae makes {channels}; use a model "
            f"that takes {channels}, or {2 * channels + 1} for inpainting"
        )
    width = sum(encoder.config.hidden_size for encoder in model.text_encoders)
    if unet.cross_attention_dim != width:
        raise WeightsError(
            f"{where} reads text of width {unet.cross_attention_dim}, text_encoder writes {width}"
        )


def make_added_conditioning(
    model: Model, wanted: Sequence[Conditioning], unwanted: Sequence[Conditioning], size: Size
) -> AddedConditioning | None:
    """Return SDXL's further inputs for one batch: whole pictures of the size that is drawn.

    The refiner is told scores instead, those of diffusers' pipelines.
    """
    pooled = [one.pooled for one in wanted if one.pooled is not None]
    negative = [one.pooled for one in unwanted if one.pooled is not None]
    if not pooled or not negative:
        return None
    summaries = torch.stack(pooled)
    width, height = size
    frame = [float(height), float(width), 0.0, 0.0]
    if detect_family(model) != "sdxl-refiner":
        sizes = _rows([*frame, *frame[:2]], summaries)
        return AddedConditioning(summaries, torch.stack(negative), sizes, sizes)
    wished, shunned = [*frame, _SCORE], [*frame, _NEGATIVE_SCORE]
    return AddedConditioning(
        summaries, torch.stack(negative), _rows(wished, summaries), _rows(shunned, summaries)
    )


def _rows(numbers: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers, device=like.device).expand(len(like), -1)
