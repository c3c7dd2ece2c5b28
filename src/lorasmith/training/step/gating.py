"""Which adapters are active for which images of a step, and at which of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.adapters.gating.gate import Gate
from lorasmith.training.data.batch import Batch


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
