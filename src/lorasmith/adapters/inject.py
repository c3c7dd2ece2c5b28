"""Putting adapters into a network and taking them out again, which restores it exactly."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lorasmith.adapters.formats import LoraFile, LoraLayer
from lorasmith.adapters.layers import Adapted, LowRank, layer_weight, make_adapter
from lorasmith.adapters.names import Places, places_of
from lorasmith.core.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from lorasmith.models.load import Model


@dataclass(frozen=True)
class _Slot:
    """An adapter and the child of a parent module that it belongs to."""

    parent: nn.Module
    child: str
    adapter: LowRank


class Attached:
    """Adapters that sit in a network, until ``detach`` is called."""

    def __init__(self, slots: Mapping[str, _Slot]) -> None:
        self._slots = dict(slots)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def adapters(self) -> dict[str, LowRank]:
        """The adapters by module path."""
        return {path: slot.adapter for path, slot in self._slots.items()}

    def set_weight(self, weight: float) -> None:
        """Set the multiplier of all adapters; at 0 they are not computed at all.

        Raises:
            ConfigError: the weight is not a finite number.
        """
        if not math.isfinite(weight):
            raise ConfigError(f"LoRA weight {weight} is not a finite number")
        for slot in self._slots.values():
            slot.adapter.weight = float(weight)

    def detach(self) -> None:
        """Take the adapters out. A layer without any left is the original module again.

        Adapters may be detached in any order, and twice.
        """
        for slot in self._slots.values():
            _take_out(slot)
        self._slots.clear()


def inject(root: nn.Module, adapters: Mapping[str, LowRank]) -> Attached:
    """Put adapters into a network: the layer at each path is replaced by an ``Adapted`` around it.

    A layer that has adapters already gets one more; their contributions add up.

    Args:
        root: the network.
        adapters: module paths below it (``down_blocks.0...attn1.to_q``) and their adapters.
    """
    return Attached({path: _put_in(root, path, adapter) for path, adapter in adapters.items()})


def attach(model: "Model", file: LoraFile, weight: float = 1.0) -> Attached:
    """Attach every layer of a LoRA file to a model's U-Net and text encoder.

    The factors are held in each layer's dtype and are not trainable. Nothing is changed unless
    all of the file fits.

    Raises:
        WeightsError: none or not all of the file's layers belong to the model, with both numbers,
            or a layer has another shape.
        ConfigError: the weight is not a finite number.
    """
    places = places_of(model)
    _check_names(file, places)
    adapters = {name: _fitted(file, name, places) for name in file.layers}
    slots = {name: _put_in(*places[name].location, adapters[name]) for name in file.layers}
    attached = Attached(slots)
    try:
        attached.set_weight(weight)
    except ConfigError:
        attached.detach()
        raise
    return attached


def _put_in(root: nn.Module, path: str, adapter: LowRank) -> _Slot:
    above, _, child = path.rpartition(".")
    parent = root.get_submodule(above)
    layer = parent.get_submodule(child)
    if not isinstance(layer, Adapted):
        layer = Adapted(layer)
        setattr(parent, child, layer)
    layer.adapters.append(adapter)
    return _Slot(parent, child, adapter)


def _take_out(slot: _Slot) -> None:
    layer = slot.parent.get_submodule(slot.child)
    if not isinstance(layer, Adapted):
        return
    layer.adapters = nn.ModuleList(_others(layer, slot.adapter))
    if not layer.adapters:
        setattr(slot.parent, slot.child, layer.base)


def _others(layer: Adapted, adapter: LowRank) -> Iterator[nn.Module]:
    return (one for one in layer.adapters if one is not adapter)


def _check_names(file: LoraFile, places: Places) -> None:
    """Refuse a file of which not everything has a place in the model."""
    strange = [name for name in file.layers if name not in places]
    if not strange:
        return
    total = len(file.layers)
    raise WeightsError(
        f"{file.path}: {total - len(strange)} of its {total} layers exist in this model, first "
        f"without a place {strange[0]}; {_likely_cause(file, strange)}"
    )


def _likely_cause(file: LoraFile, strange: list[str]) -> str:
    base = file.metadata.get("ss_base_model_version", "")
    xl = ("lora_te1_", "lora_te2_", "lora_unet_input_blocks", "lora_unet_output_blocks")
    if base.startswith("sdxl") or any(name.startswith(xl) for name in strange):
        return "it was made for SDXL: open it with an SDXL model"
    if base:
        return f"it was made for a model of family {base}: open it with one"
    return "it was made for another model: open it with that"


def _fitted(file: LoraFile, name: str, places: Places) -> LowRank:
    """Return the adapter of one layer of a file, in the dtype and on the device of its layer."""
    layer: LoraLayer = file.layers[name]
    base = places[name].layer
    weight = layer_weight(base)
    down, up = (factor.to(weight.device, weight.dtype) for factor in (layer.down, layer.up))
    try:
        adapter = make_adapter(base, down, up, layer.alpha)
    except WeightsError as error:
        raise WeightsError(
            f"{file.path}: {name}: {error}; it was made for another model"
        ) from error
    return adapter.requires_grad_(False)
