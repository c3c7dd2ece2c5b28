"""Which adapters are at work for which pictures of a step, and at which of their tokens."""

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
    """What the batches of a set shall say for gates and for preservation."""

    marker: TokenMaskFn | None = None
    """Marks the tokens of each feature that has a token gate; None where none has."""
    own: Callable[[str], bool] | None = None
    """Does a caption call the feature? None where it is at work for every caption."""
    earlier: Sequence[Callable[[str], bool]] = ()
    """For each earlier feature: does a caption call it?"""
    plain: bool = False
    """Whether captions without the tag are wanted."""


NO_GATING = CaptionGating()
"""Of a set that only its own adapters see, all of it."""


def caption_gating(
    model: "Model", own: GateMetadata, earlier: Sequence[GateMetadata], plain: bool = False
) -> CaptionGating:
    """Return what a feature's batches shall say.

    Args:
        model: its tokenizer says where tags are.
        own: the gate of the feature.
        earlier: those of features that are in the model already.
        plain: whether captions without the tag are wanted.
    """
    every = [own, *earlier]

    def mark(ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([token_mask(model.main_tokenizer, gate, ids) for gate in every], dim=1)

    def called(one: GateMetadata) -> Callable[[str], bool]:
        return lambda caption: one.kind == "none" or has_tag(model.main_tokenizer, one.tag, caption)

    chooses = any(selects_tokens(gate) for gate in every)
    return CaptionGating(
        mark if chooses else None,
        called(own) if selects_tokens(own) else None,
        [called(one) for one in earlier],
        plain,
    )


@dataclass(frozen=True)
class GateRouting:
    """The gates that a feature's batches set."""

    own: Gate
    """Of the adapters in training."""
    by_token: bool = False
    """Whether they write to chosen tokens only."""
    earlier: Sequence[tuple[Gate, bool]] = ()
    """Of features that are in the model already, and whether they choose tokens."""
    others: Sequence[Gate] = ()
    """Of features that are trained at the same time."""

    def activate_only_own(self) -> None:
        """Leave the model with this feature alone at work, for every picture."""
        for gate in (*self.others, *(gate for gate, _ in self.earlier)):
            gate.close()
        self.own.open()


def set_gates(shares: Sequence[tuple[GateRouting, Batch]], base: bool = False) -> None:
    """Set all gates for a batch that is put together of those of several features.

    Args:
        shares: the features' batches in their order; of one feature, or of several that are
            trained at the same time.
        base: shut the adapters in training; those of earlier features stay as they are.
    """
    for lane, _ in shares:
        for gate in lane.others:
            gate.close()
    whole, first = sum(len(batch.indices) for _, batch in shares), 0
    for lane, batch in shares:
        own = range(first, first + len(batch.indices))
        _set_own(lane, batch, own, whole, base)
        if lane.earlier:  # features have these one after another, never side by side
            _set_earlier(lane, batch)
        first = own.stop


def _set_own(lane: GateRouting, batch: Batch, own: range, whole: int, base: bool) -> None:
    if base:
        lane.own.close()
        return
    tokens, rows = None, [k in own for k in range(whole)]
    if lane.by_token and batch.task == "train":
        if batch.token_mask is not None:
            places = batch.token_mask[:, 0]
            tokens = places.new_zeros(whole, places.shape[-1])
            tokens[own.start : own.stop] = places
        if batch.has_own_tag is not None:  # layers that read no text are at work as pictures say
            rows[own.start : own.stop] = batch.has_own_tag
    lane.own.set_rows(rows, batch.latents.device, tokens)


def _set_earlier(lane: GateRouting, batch: Batch) -> None:
    """Set the gates of earlier features by the captions, or by whose pictures they are."""
    theirs = batch.task == "preserve_frozen"
    for number, (gate, chooses) in enumerate(lane.earlier):
        if theirs and number != batch.frozen_index:
            gate.close()
            continue
        rows = [True] * len(batch.indices) if theirs else batch.has_other_tags[number]
        tokens = None
        if chooses and batch.token_mask is not None:
            tokens = batch.token_mask[:, 0 if theirs else 1 + number]
        gate.set_rows(rows, batch.latents.device, tokens)
