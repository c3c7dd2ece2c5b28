"""The attention of diffusers' transformers with as few passes over its activations as it can be.

q, k and v, which read the same input, are one operation with their adapters, and nothing is divided
by a factor that is one. The attention itself is torch's own.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.adapters.nn.wrapper import forward_shared_input


class FusedQKVAttnProcessor:
    """An attention processor for layers without norms of their own, masks and residuals."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the attention's output ``[B, T, C]``, as diffusers' own processor does."""
        if attention_mask is not None:
            plain = _plain_processor()()
            masked: torch.Tensor = plain(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
            return masked
        if encoder_hidden_states is None:
            q, k, v = forward_shared_input(hidden_states, (attn.to_q, attn.to_k, attn.to_v))
        else:
            q = attn.to_q(hidden_states)
            k, v = forward_shared_input(encoder_hidden_states, (attn.to_k, attn.to_v))
        q, k, v = (one.view(*one.shape[:2], attn.heads, -1).transpose(1, 2) for one in (q, k, v))
        y: torch.Tensor = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = attn.to_out[1](attn.to_out[0](y))
        return y if attn.rescale_output_factor == 1.0 else y / attn.rescale_output_factor


def use_swift(network: nn.Module) -> None:
    """Let a network's attentions be computed this way where they can; ``use_own`` takes it back."""
    for one in _attentions(network):
        if type(one.processor) is _plain_processor() and _is_plain(one):
            one.processor = _SWIFT


def use_own(network: nn.Module) -> None:
    """Let them be computed by diffusers' own processor again."""
    for one in _attentions(network):
        if one.processor is _SWIFT:
            one.processor = _plain_processor()()


_SWIFT = FusedQKVAttnProcessor()


def _attentions(network: nn.Module) -> Iterator[Any]:
    from diffusers.models.attention_processor import Attention

    return (one for one in network.modules() if isinstance(one, Attention))


def _plain_processor() -> Any:
    from diffusers.models.attention_processor import AttnProcessor2_0

    return AttnProcessor2_0


def _is_plain(attention: Any) -> bool:
    """Tell whether an attention does no more than `SwiftProcessor` does."""
    more = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")
    return not attention.residual_connection and not any(
        getattr(attention, name, None) for name in more
    )
