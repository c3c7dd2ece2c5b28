"""Texts through the text encoders, as training and drawing encode them."""

from collections.abc import Sequence

import torch

from lorasmith.models.model import Model
from lorasmith.models.text.encode import Conditioning, TokenIds, encode_tokens, tokenize_texts

BATCH_SIZE = 32


@torch.no_grad()
def encode_captions(
    model: Model, texts: Sequence[str], clip_skip: int = 1, warn: bool = True
) -> list[Conditioning]:
    """Return each text's conditioning, context ``[77, width]`` and pooled ``[P]`` or None.

    All tensors are on the text encoders' device, in their dtype. ``warn`` warns about truncation.

    Raises:
        ConfigError: ``clip_skip`` names a layer that does not exist.
    """
    results: list[Conditioning] = []
    device = model.text_encoders[0].device
    for start in range(0, len(texts), BATCH_SIZE):
        tokens = tokenize_texts(model, texts[start : start + BATCH_SIZE], warn)
        ids_2 = None if tokens.ids_2 is None else tokens.ids_2.to(device)
        context, pooled = encode_tokens(model, TokenIds(tokens.ids.to(device), ids_2), clip_skip)
        pooled_rows = [None] * len(context) if pooled is None else list(pooled)
        results += [Conditioning(*pair) for pair in zip(context, pooled_rows, strict=True)]
    return results
