"""The blocks of diffusers' transformers, whose sums and norms are one pass."""

from functools import cache
from typing import Any

import torch
from torch import nn

from lorasmith.ops import layer_norm
from lorasmith.training.acceleration.module_patch import exchange, put_back


def use_kernels(network: nn.Module) -> None:
    """Make a network's blocks use the kernels where they can; ``use_own`` takes that back."""
    exchange(network, *_classes(), _is_plain)


def use_own(network: nn.Module) -> None:
    """Let a network's blocks run as they are written again."""
    put_back(network, *_classes())


@cache
def _classes() -> tuple[Any, Any]:
    """Return diffusers' class, and one of the same layers that calls the kernels."""
    from diffusers.models.attention import BasicTransformerBlock

    class FastBlock(BasicTransformerBlock):  # type: ignore[misc]
        """A block with the same parameters."""

        def forward(
            self,
            hidden_states: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            encoder_hidden_states: torch.Tensor | None = None,
            encoder_attention_mask: torch.Tensor | None = None,
            *_: Any,
            **__: Any,
        ) -> torch.Tensor:
            """Return the block's output, ``[B, T, C]``."""
            text = encoder_hidden_states
            x, normed = layer_norm.layer_norm(hidden_states, self.norm1)
            own = text if self.only_cross_attention else None
            given = self.attn1(normed, own, attention_mask=attention_mask)
            x, normed = layer_norm.add_layer_norm(x, given, self.norm2)
            given = self.attn2(normed, text, attention_mask=encoder_attention_mask)
            x, normed = layer_norm.add_layer_norm(x, given, self.norm3)
            y: torch.Tensor = x + self.ff(normed)
            return y

    FastBlock.__name__ = BasicTransformerBlock.__name__  # by which blocks are found
    return BasicTransformerBlock, FastBlock


def _is_plain(block: Any) -> bool:
    """Tell whether a block is two attentions and a feed-forward layer, and no more."""
    norms = (block.norm1, block.norm2, block.norm3)
    return (
        block.norm_type == "layer_norm"
        and block.attn2 is not None
        and block.pos_embed is None
        and block._chunk_size is None
        and not hasattr(block, "fuser")
        and all(layer_norm.is_supported(one) for one in norms)
    )
