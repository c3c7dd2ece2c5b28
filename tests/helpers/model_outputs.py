"""A prediction of a full model, text encoders included, to see what adapters change."""

import torch

from lorasmith.models.model import Model
from lorasmith.models.text.encode import encode_tokens, tokenize_texts

TEXTS = ["a red apple", "inkmono style, a cat"]


@torch.no_grad()
def prediction(model: Model) -> torch.Tensor:
    """Return the U-Net's output for two texts and fixed noise, ``[2, 4, 8, 8]``."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(model.unet.dtype)
    context, pooled = encode_tokens(model, tokenize_texts(model, TEXTS))
    extra = None
    if pooled is not None:
        sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 2)
        extra = {"text_embeds": pooled, "time_ids": sizes.to(pooled.dtype)}
    return model.unet(
        latents, torch.tensor([10, 700]), context, added_cond_kwargs=extra, return_dict=False
    )[0]
