"""Which tokens of a text a LoRA with a token gate may change."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.gating.trigger_tokens import mark_end_tokens, mark_tag_tokens
from lorasmith.models.text.prompt_spans import WeightedPrompt

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from lorasmith.adapters.gating.gate_metadata import GateMetadata


def selects_tokens(gate: "GateMetadata") -> bool:
    """Tell whether a gate opens for some tokens of a text only."""
    return gate.kind in ("token", "token+end")


def token_mask(
    tokenizer: "CLIPTokenizer",
    gate: "GateMetadata",
    prompts: Sequence[WeightedPrompt],
    ids: torch.Tensor,
) -> torch.Tensor:
    """Return the tokens that a LoRA may change.

    A gate that selects no tokens allows all. ``token+end`` also allows the end of the text, but
    only where the text has the tag: training never lets the LoRA write to other texts' ends.

    Args:
        tokenizer: the one that made the tokens.
        gate: the LoRA's gate.
        prompts: captions or prompts.
        ids: their tokens, int64 ``[B, 77 * chunks]``, special tokens included.

    Returns:
        bool ``[B, 77 * chunks]`` on the CPU.
    """
    if not selects_tokens(gate):
        return torch.ones(ids.shape, dtype=torch.bool)
    num_chunks = ids.shape[1] // int(tokenizer.model_max_length)
    is_tag = mark_tag_tokens(tokenizer, gate.tag, prompts, num_chunks)
    if gate.kind == "token":
        return is_tag
    is_end = mark_end_tokens(tokenizer, ids.cpu())
    return is_tag | (is_end & is_tag.any(dim=1, keepdim=True))
