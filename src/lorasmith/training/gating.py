"""Which adapters are active for which images of a step, and at which of their tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.gating.gate import Gate
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.adapters.gating.token_mask import selects_tokens, token_mask
from lorasmith.adapters.gating.trigger_tokens import has_tag
from lorasmith.training.data.batch import Batch
from lorasmith.training.data.captions import TokenMaskFn

if TYPE_CHECKING:
    from lorasmith.models.load import Model


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
    model: "Model",
    own: GateMetadata,
    earlier: Sequence[GateMetadata],
    needs_plain_captions: bool = False,
) -> CaptionGating:
    """Return what the gates of a LoRA and of earlier features need to know about captions.

    Args:
        model: its tokenizer finds trigger words.
        own: the LoRA's gate.
        earlier: the gates of earlier features in the model.
        needs_plain_captions: whether captions without the trigger word are needed.
    """
    tokenizer, gates = model.main_tokenizer, [own, *earlier]

    def mask_tokens(ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([token_mask(tokenizer, gate, ids) for gate in gates], dim=1)

    def activates(gate: GateMetadata) -> Callable[[str], bool]:
        return lambda caption: gate.kind == "none" or has_tag(tokenizer, gate.tag, caption)

    return CaptionGating(
        mask_tokens if any(selects_tokens(gate) for gate in gates) else None,
        activates(own) if selects_tokens(own) else None,
        [activates(gate) for gate in earlier],
        needs_plain_captions,
    )


@dataclass(frozen=True)
class GateRouting:
    """The gates that a LoRA's batches set."""

    own: Gate
    """Of the adapters in training."""
    selects_tokens: bool = False
    """Whether those change chosen tokens only."""
    frozen: Sequence[tuple[Gate, bool]] = ()
    """Of earlier features in the model, and whether they change chosen tokens only."""
    joint: Sequence[Gate] = ()
    """Of LoRAs that are trained at the same time."""

    def activate_only_own(self) -> None:
        """Leave this LoRA alone active, for every image."""
        for gate in (*self.joint, *(gate for gate, _ in self.frozen)):
            gate.close()
        self.own.open()


def set_gates(routings: Sequence[tuple[GateRouting, Batch]], base: bool = False) -> None:
    """Set all gates for the concatenated batches of one or several LoRAs.

    Args:
        routings: the LoRAs with their batches, in the order of the images.
        base: close the gates of the adapters in training; those of earlier features stay.
    """
    for routing, _ in routings:
        for gate in routing.joint:
            gate.close()
    total, first = sum(len(batch.indices) for _, batch in routings), 0
    for routing, batch in routings:
        rows = range(first, first + len(batch.indices))
        _set_own_gate(routing, batch, rows, total, base)
        if routing.frozen:  # staged features: no other LoRA is trained at the same time
            _set_frozen_gates(routing, batch)
        first = rows.stop


def _set_own_gate(routing: GateRouting, batch: Batch, rows: range, total: int, base: bool) -> None:
    """Open a LoRA's gate for its own images.

    Args:
        routing: the LoRA.
        batch: its images.
        rows: where they are among all images of the pass.
        total: how many images the pass has.
        base: close the gate instead.
    """
    if base:
        routing.own.close()
        return
    mask, is_active = None, [row in rows for row in range(total)]
    if routing.selects_tokens and batch.task == "train":
        if batch.token_mask is not None:
            own_mask = batch.token_mask[:, 0]
            mask = own_mask.new_zeros(total, own_mask.shape[-1])
            mask[rows.start : rows.stop] = own_mask
        if batch.has_own_tag is not None:  # layers that do not read text are active per image
            is_active[rows.start : rows.stop] = batch.has_own_tag
    routing.own.set_rows(is_active, batch.latents.device, mask)


def _set_frozen_gates(routing: GateRouting, batch: Batch) -> None:
    """Set the gates of earlier features by the captions, or by whose images they are."""
    is_theirs = batch.task == "preserve_frozen"
    for index, (gate, selects) in enumerate(routing.frozen):
        if is_theirs and index != batch.frozen_index:
            gate.close()
            continue
        is_active = [True] * len(batch.indices) if is_theirs else batch.has_other_tags[index]
        mask = None
        if selects and batch.token_mask is not None:
            mask = batch.token_mask[:, 0 if is_theirs else 1 + index]
        gate.set_rows(is_active, batch.latents.device, mask)
