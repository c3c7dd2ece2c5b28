"""Putting adapters into a network and taking them out again, which restores it exactly."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.gating.gate import Gate
from lorasmith.adapters.gating.gate_metadata import GateMetadata, read_gate
from lorasmith.adapters.injection.compatibility import fit_to_model
from lorasmith.adapters.naming.layer_names import UNET, LayerRef, LayerRefs
from lorasmith.adapters.nn.lora import Adapter
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasmith.models.load import Model


@dataclass(frozen=True)
class _Slot:
    """An adapter and the child of a parent module that it belongs to."""

    parent: nn.Module
    child: str
    adapter: Adapter
    place: LayerRef


class AttachedLora:
    """Adapters that sit in a network, until ``detach`` is called."""

    def __init__(self, slots: Mapping[str, _Slot], gate: Gate, facts: GateMetadata) -> None:
        self._slots = dict(slots)
        self.gate = gate
        """The one gate of all of them; open until it is told otherwise."""
        self.gate_metadata = facts
        """What is to open it; nobody obeys that here."""

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters by the names of their layers in files."""
        return {path: slot.adapter for path, slot in self._slots.items()}

    @property
    def affects_text_encoder(self) -> bool:
        """Whether any of them is in a text encoder, with a weight other than 0."""
        return any(
            slot.place.part != UNET and slot.adapter.strength != 0 for slot in self._slots.values()
        )

    def set_strength(self, weight: float) -> None:
        """Set the multiplier of all adapters; at 0 they are not computed at all.

        Raises:
            ConfigError: the weight is not a finite number.
        """
        self.set_strengths(lambda _: weight)

    def set_strengths(self, weight_at: Callable[[LayerRef], float]) -> None:
        """Set the multiplier of each adapter by the place where it is.

        Raises:
            ConfigError: a weight is not a finite number.
        """
        weights = {name: float(weight_at(slot.place)) for name, slot in self._slots.items()}
        for weight in weights.values():
            if not math.isfinite(weight):
                raise ConfigError(f"LoRA weight {weight} is not a finite number")
        for name, slot in self._slots.items():
            slot.adapter.strength = weights[name]

    def detach(self) -> None:
        """Take the adapters out. A layer without any left is the original module again.

        Adapters may be detached in any order, and twice.
        """
        for slot in self._slots.values():
            _take_out(slot)
        self._slots.clear()


def attach_lora(
    model: "Model", file: LoraFile, strength: float = 1.0, strict: bool = True
) -> AttachedLora:
    """Attach every layer of a LoRA file to a model's U-Net and text encoders.

    The factors are held in each layer's dtype and are not trainable. Nothing is changed unless
    all of the file fits. Whatever the file says about its gate, it is open; whoever knows the
    prompts sets ``gate``.

    Args:
        model: the model.
        file: the file.
        weight: the multiplier of all adapters.
        strict: see `lorasmith.adapters.injection.compatibility.fit`.

    Raises:
        WeightsError: none or not all of the file's layers belong to the model, with both numbers,
            a layer has another shape, or the file says that it was made for another kind of model,
            or something impossible about its gate.
        ConfigError: the weight is not a finite number.
    """
    facts, found = read_gate(file), fit_to_model(model, file, strict)
    attached = inject_adapters(found.refs, found.adapters, facts)
    try:
        attached.set_strength(strength)
    except ConfigError:
        attached.detach()
        raise
    return attached


def inject_adapters(
    refs: LayerRefs, adapters: Mapping[str, Adapter], gate_metadata: GateMetadata | None = None
) -> AttachedLora:
    """Put adapters into their places; both go by the names in files.

    Each layer is replaced by a ``LoraWrapper`` around it. One that has adapters already
    gets one more; their contributions add up. From now on the adapters share one gate.

    Args:
        places: where they go.
        adapters: the adapters of one LoRA.
        facts: what is to open its gate; None is one that is always open.
    """
    gate = Gate()
    for name, one in adapters.items():
        one.gate, one.reads_text = gate, _reads_text(refs[name])
    slots = {name: _put_in(refs[name], one) for name, one in adapters.items()}
    return AttachedLora(slots, gate, gate_metadata or GateMetadata())


def _reads_text(place: LayerRef) -> bool:
    """Tell whether a layer's input is the text, token by token."""
    return place.part == UNET and place.path.endswith((".attn2.to_k", ".attn2.to_v"))


def _put_in(place: LayerRef, adapter: Adapter) -> _Slot:
    root, path = place.location
    above, _, child = path.rpartition(".")
    parent = root.get_submodule(above)
    layer = parent.get_submodule(child)
    if not isinstance(layer, LoraWrapper):
        layer = LoraWrapper(layer)
        setattr(parent, child, layer)
    layer.adapters.append(adapter)
    return _Slot(parent, child, adapter, place)


def _take_out(slot: _Slot) -> None:
    layer = slot.parent.get_submodule(slot.child)
    if not isinstance(layer, LoraWrapper):
        return
    layer.adapters = nn.ModuleList(_others(layer, slot.adapter))
    if not layer.adapters:
        setattr(slot.parent, slot.child, layer.base)


def _others(layer: LoraWrapper, adapter: Adapter) -> Iterator[nn.Module]:
    return (one for one in layer.adapters if one is not adapter)
