"""The blocks of diffusers' transformers: each residual sum and the norm after it are one pass."""

from functools import cache
from typing import Any

import torch

from lorasmith.ops import layer_norm
from lorasmith.training.acceleration.module_patch import ModulePatch


@cache
def transformer_block_patch() -> ModulePatch:
    """Return the patch of ``BasicTransformerBlock``."""
    from diffusers.models.attention import BasicTransformerBlock

    class FusedTransformerBlock(BasicTransformerBlock):  # type: ignore[misc]
        """Two attentions and a feed-forward layer."""

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
            first_text = text if self.only_cross_attention else None
            x, normed = layer_norm.layer_norm(hidden_states, self.norm1)
            attended = self.attn1(normed, first_text, attention_mask=attention_mask)
            x, normed = layer_norm.add_layer_norm(x, attended, self.norm2)
            attended = self.attn2(normed, text, attention_mask=encoder_attention_mask)
            x, normed = layer_norm.add_layer_norm(x, attended, self.norm3)
            y: torch.Tensor = x + self.ff(normed)
            return y

    return ModulePatch(BasicTransformerBlock, FusedTransformerBlock, _is_plain)


def _is_plain(block: Any) -> bool:
    """Return whether a block is two attentions and a feed-forward layer and nothing else."""
    norms = (block.norm1, block.norm2, block.norm3)
    return (
        block.norm_type == "layer_norm"
        and block.attn2 is not None
        and block.pos_embed is None
        and block._chunk_size is None
        and not hasattr(block, "fuser")
        and all(layer_norm.is_supported(norm) for norm in norms)
    )
