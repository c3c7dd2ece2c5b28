"""Measuring what a U-Net predicts, for files that do not say it."""

from typing import Any

import torch

from lorasmith.models.families.family import PredictionType

_SIDE = 32
_SEED = 0
_TOKENS = 77


@torch.no_grad()
def measure_prediction_type(unet: Any) -> PredictionType:
    """Return what a U-Net of SD 2.x predicts, from one pass on pure noise.

    At the last timestep the input is noise except for 0.5% of the power. A U-Net that predicts the
    noise returns its input there; v of arXiv:2202.00512 (eq. D.1) is the negative image there,
    which is independent of the input. The correlation of input and output is near 1 or near 0. The
    text is zeros, as it matters little there. Models that predict the clean latents always say so.

    Args:
        unet: a U-Net without further inputs, on the CPU.
    """
    config = unet.config
    noise = torch.randn(
        1, config.in_channels, _SIDE, _SIDE, generator=torch.Generator().manual_seed(_SEED)
    )
    context = torch.zeros(1, _TOKENS, config.cross_attention_dim, dtype=unet.dtype)
    output = unet(noise.to(unet.dtype), torch.tensor([999]), context).sample.float()
    pair = torch.stack([noise.flatten(), output.flatten()])
    return "epsilon" if float(torch.corrcoef(pair)[0, 1]) > 0.5 else "v_prediction"
