"""Which tokens of a text a LoRA with a token gate may change."""

from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.gating.trigger_tokens import mark_end_tokens, mark_tag_tokens

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from lorasmith.adapters.gating.gate_metadata import GateMetadata


def selects_tokens(gate: "GateMetadata") -> bool:
    """Tell whether a gate opens for some tokens of a text only."""
    return gate.kind in ("token", "token+end")


def token_mask(tokenizer: "CLIPTokenizer", gate: "GateMetadata", ids: torch.Tensor) -> torch.Tensor:
    """Return the tokens that a LoRA may change.

    A gate that selects no tokens allows all. ``token+end`` also allows the end of the text, but
    only where the text has the tag: training never lets the LoRA write to other texts' ends.

    Args:
        tokenizer: the one that made the tokens.
        gate: the LoRA's gate.
        ids: int64 ``[B, L]``, special tokens included.

    Returns:
        bool ``[B, L]`` on the device of ``ids``.

    Raises:
        ConfigError: the tag has no tokens.
    """
    if not selects_tokens(gate):
        return torch.ones_like(ids, dtype=torch.bool)
    is_tag = mark_tag_tokens(tokenizer, gate.tag, ids)
    if gate.kind == "token":
        return is_tag
    return is_tag | (mark_end_tokens(tokenizer, ids) & is_tag.any(dim=1, keepdim=True))
