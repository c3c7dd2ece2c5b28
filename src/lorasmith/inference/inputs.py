"""What a model's U-Net wants: whether its parts belong together, and its inputs for one batch."""

from collections.abc import Sequence

import torch

from lorasmith.core.errors import WeightsError
from lorasmith.inference.denoise import Added
from lorasmith.inference.options import Size
from lorasmith.models.family import family_of
from lorasmith.models.load import Model
from lorasmith.models.text import Conditioning


def check_fits(model: Model) -> None:
    """Refuse models whose parts do not belong together or that want inputs we do not give."""
    unet, where = model.unet.config, f"model {model.folder}: unet"
    if family_of(model) == "sdxl-refiner":
        raise WeightsError(
            f"model {model.folder}: this is an SDXL refiner, which finishes pictures of an SDXL "
            "base model and does not draw by itself; use the base model"
        )
    if (family_of(model) == "sdxl") != (model.text_encoder_2 is not None):
        raise WeightsError(
            f"model {model.folder}: unet and text encoders are not of one family; SDXL has two "
            "text encoders and a U-Net that reads sizes, other models have neither"
        )
    if unet.in_channels != model.vae.config.latent_channels:
        raise WeightsError(
            f"{where} takes {unet.in_channels} channels and the vae makes "
            f"{model.vae.config.latent_channels}; inpainting models are not supported"
        )
    width = sum(encoder.config.hidden_size for encoder in model.text_encoders)
    if unet.cross_attention_dim != width:
        raise WeightsError(
            f"{where} reads text of width {unet.cross_attention_dim}, text_encoder writes {width}"
        )


def added_inputs(
    wanted: Sequence[Conditioning], unwanted: Sequence[Conditioning], size: Size
) -> Added | None:
    """Return SDXL's further inputs for one batch: whole pictures of the size that is drawn."""
    pooled = [one.pooled for one in wanted if one.pooled is not None]
    negative = [one.pooled for one in unwanted if one.pooled is not None]
    if not pooled or not negative:
        return None
    summaries = torch.stack(pooled)
    width, height = size
    sizes = torch.tensor([height, width, 0, 0, height, width], device=summaries.device)
    return Added(summaries, torch.stack(negative), sizes.expand(len(pooled), 6))
