"""The attention of diffusers' transformers with as few passes over its activations as possible.

q, k and v, which read the same input, are one operation with their adapters, and nothing is divided
by a factor of one. The attention itself is torch's own.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from lorasmith.adapters.nn.wrapper import forward_shared_input
from lorasmith.training.acceleration.module_patch import ModulePatch


@cache
def attention_patch() -> ModulePatch:
    """Return the patch of ``Attention``; a function because diffusers takes long to import."""
    from diffusers.models.attention_processor import Attention

    class FusedQKVAttention(Attention):  # type: ignore[misc]
        """An attention whose q, k and v are one operation."""

        def forward(
            self,
            hidden_states: torch.Tensor,
            encoder_hidden_states: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> torch.Tensor:
            """Return the attention's output ``[B, T, C]``."""
            if attention_mask is not None or kwargs or hidden_states.ndim != 3:
                original: torch.Tensor = super().forward(
                    hidden_states, encoder_hidden_states, attention_mask, **kwargs
                )
                return original
            return _attend(self, hidden_states, encoder_hidden_states)

    return ModulePatch(Attention, FusedQKVAttention, _is_plain)


def _attend(attn: Any, x: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
    """Return the attention of ``x`` to itself or to a text, ``[B, T, C]``."""
    if text is None:
        q, k, v = forward_shared_input(x, (attn.to_q, attn.to_k, attn.to_v))
    else:
        q = attn.to_q(x)
        k, v = forward_shared_input(text, (attn.to_k, attn.to_v))
    q, k, v = (y.view(*y.shape[:2], attn.heads, -1).transpose(1, 2) for y in (q, k, v))
    y: torch.Tensor = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    y = attn.to_out[1](attn.to_out[0](y))
    return y if attn.rescale_output_factor == 1.0 else y / attn.rescale_output_factor


def _is_plain(attention: Any) -> bool:
    """Return whether an attention has the default processor and no norms or residual of its own."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    norms = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")
    return (
        type(attention.processor) is AttnProcessor2_0
        and not attention.residual_connection
        and not any(getattr(attention, name, None) for name in norms)
    )
