"""What the gates of a LoRA need to know about captions: who is activated, and at which tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.adapters.gating.token_mask import selects_tokens, token_mask
from lorasmith.core.text.trigger_word import contains_tag
from lorasmith.models.model import Model
from lorasmith.models.text.prompt_spans import unweighted_prompt
from lorasmith.training.data.captions.captions import TokenMaskFn


@dataclass(frozen=True)
class CaptionGating:
    """What gates and preservation need to know about a dataset's captions."""

    token_mask_fn: TokenMaskFn | None = None
    """Masks the tokens of each LoRA with a token gate; None if none has one."""
    has_own_tag: Callable[[str], bool] | None = None
    """Whether a caption activates the LoRA; None if every caption does."""
    has_other_tags: Sequence[Callable[[str], bool]] = ()
    """For each earlier feature, whether a caption activates it."""
    needs_plain_captions: bool = False
    """Whether captions without the trigger word are needed."""


NO_GATING = CaptionGating()
"""For a dataset whose captions always activate the one LoRA that there is."""


def caption_gating(
    model: Model,
    own: GateMetadata,
    earlier: Sequence[GateMetadata],
    needs_plain_captions: bool = False,
) -> CaptionGating:
    """Return what the gates of a LoRA and of earlier features need to know about captions.

    Args:
        model: its tokenizer finds the tokens of trigger words.
        own: the LoRA's gate.
        earlier: the gates of earlier features in the model.
        needs_plain_captions: whether captions without the trigger word are needed.
    """
    tokenizer, gates = model.main_tokenizer, [own, *earlier]

    def mask_tokens(captions: Sequence[str], ids: torch.Tensor) -> torch.Tensor:
        prompts = [unweighted_prompt(caption) for caption in captions]
        masks = [token_mask(tokenizer, gate, prompts, ids) for gate in gates]
        return torch.stack(masks, dim=1)

    def activates(gate: GateMetadata) -> Callable[[str], bool]:
        return lambda caption: gate.kind == "none" or contains_tag(caption, gate.tag)

    return CaptionGating(
        mask_tokens if any(selects_tokens(gate) for gate in gates) else None,
        activates(own) if selects_tokens(own) else None,
        [activates(gate) for gate in earlier],
        needs_plain_captions,
    )
