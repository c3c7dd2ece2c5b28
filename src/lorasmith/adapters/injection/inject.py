"""Putting adapters into a network and taking them out again, which restores it exactly."""

import math
from collections.abc import Callable, Mapping
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
    from lorasmith.models.model import Model

_TEXT_READING_LAYERS = (".attn2.to_k", ".attn2.to_v")


@dataclass(frozen=True)
class _Slot:
    """An adapter, and the child of a parent module that it belongs to."""

    parent: nn.Module
    child: str
    adapter: Adapter
    ref: LayerRef


class AttachedLora:
    """The adapters of one LoRA in a network, until ``detach`` is called.

    Attributes:
        gate: the gate that all of the adapters share; fully open until it is set.
        gate_metadata: what activates the LoRA. Nothing here acts on it.
    """

    def __init__(self, slots: Mapping[str, _Slot], gate: Gate, gate_metadata: GateMetadata) -> None:
        self._slots = dict(slots)
        self.gate = gate
        self.gate_metadata = gate_metadata

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters by the kohya names of their layers."""
        return {name: slot.adapter for name, slot in self._slots.items()}

    @property
    def affects_text_encoder(self) -> bool:
        """Whether an adapter of a text encoder has a strength other than 0."""
        return any(
            slot.ref.part != UNET and slot.adapter.strength != 0 for slot in self._slots.values()
        )

    def set_strength(self, strength: float) -> None:
        """Set the multiplier of all adapters; at 0 they are not computed at all.

        Raises:
            ConfigError: the strength is not a finite number.
        """
        self.set_strengths(lambda _: strength)

    def set_strengths(self, strength_of: Callable[[LayerRef], float]) -> None:
        """Set the multiplier of each adapter by its layer.

        Raises:
            ConfigError: a strength is not a finite number.
        """
        strengths = {name: float(strength_of(slot.ref)) for name, slot in self._slots.items()}
        for strength in strengths.values():
            if not math.isfinite(strength):
                raise ConfigError(f"LoRA weight {strength} is not a finite number")
        for name, slot in self._slots.items():
            slot.adapter.strength = strengths[name]

    def detach(self) -> None:
        """Take the adapters out. A layer without adapters is the original module object again.

        LoRAs may be detached in any order, and twice.
        """
        for slot in self._slots.values():
            _take_out(slot)
        self._slots.clear()


def attach_lora(
    model: "Model", file: LoraFile, strength: float = 1.0, strict: bool = True
) -> AttachedLora:
    """Attach every layer of a LoRA file to a model's U-Net and text encoders.

    The factors have each layer's dtype and are frozen. Nothing is changed unless the file fits. The
    gate is open, whatever the file's metadata say; a caller that knows the prompts sets it.

    Args:
        model: the model.
        file: the file.
        strength: the multiplier of all adapters.
        strict: see `lorasmith.adapters.injection.compatibility.fit_to_model`.

    Raises:
        WeightsError: the file does not fit the model, or its metadata describe an impossible gate.
        ConfigError: the strength is not a finite number.
    """
    gate_metadata, fitted = read_gate(file), fit_to_model(model, file, strict)
    attached = inject_adapters(fitted.refs, fitted.adapters, gate_metadata)
    try:
        attached.set_strength(strength)
    except ConfigError:
        attached.detach()
        raise
    return attached


def inject_adapters(
    refs: LayerRefs, adapters: Mapping[str, Adapter], gate_metadata: GateMetadata | None = None
) -> AttachedLora:
    """Put the adapters of one LoRA on layers; both are looked up by kohya name.

    Each layer is replaced by a `LoraWrapper` around it. A layer that has adapters already gets one
    more, and their outputs add up. The adapters share one gate from now on.

    Args:
        refs: the layers.
        adapters: the adapters.
        gate_metadata: what activates the LoRA; None is a LoRA that is always active.
    """
    gate = Gate()
    for name, adapter in adapters.items():
        adapter.gate, adapter.reads_text = gate, _reads_text(refs[name])
    slots = {name: _put_in(refs[name], adapter) for name, adapter in adapters.items()}
    return AttachedLora(slots, gate, gate_metadata or GateMetadata())


def _reads_text(ref: LayerRef) -> bool:
    return ref.part == UNET and ref.path.endswith(_TEXT_READING_LAYERS)


def _put_in(ref: LayerRef, adapter: Adapter) -> _Slot:
    parent_path, _, child = ref.path.rpartition(".")
    parent = ref.network.get_submodule(parent_path)
    layer = parent.get_submodule(child)
    if not isinstance(layer, LoraWrapper):
        layer = LoraWrapper(layer)
        setattr(parent, child, layer)
    layer.adapters.append(adapter)
    return _Slot(parent, child, adapter, ref)


def _take_out(slot: _Slot) -> None:
    layer = slot.parent.get_submodule(slot.child)
    if not isinstance(layer, LoraWrapper):
        return
    layer.adapters = nn.ModuleList(
        adapter for adapter in layer.adapters if adapter is not slot.adapter
    )
    if not layer.adapters:
        setattr(slot.parent, slot.child, layer.base)
