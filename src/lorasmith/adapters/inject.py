"""Putting adapters into a network and taking them out again, which restores it exactly."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lorasmith.adapters.describe import family_of_file, prediction_of_file
from lorasmith.adapters.formats import LoraFile
from lorasmith.adapters.gate import Gate
from lorasmith.adapters.gate_facts import GateFacts, gate_of_file
from lorasmith.adapters.layers import Adapted, Adapter, Factors, layer_weight, make_adapter
from lorasmith.adapters.names import UNET, Place, Places, other_names, places_of
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.models.family import FAMILIES, Networks, family_of

if TYPE_CHECKING:
    from lorasmith.models.load import Model


@dataclass(frozen=True)
class _Slot:
    """An adapter and the child of a parent module that it belongs to."""

    parent: nn.Module
    child: str
    adapter: Adapter


class Attached:
    """Adapters that sit in a network, until ``detach`` is called."""

    def __init__(
        self, slots: Mapping[str, _Slot], gate: Gate, facts: GateFacts, in_text: bool
    ) -> None:
        self._slots = dict(slots)
        self.gate = gate
        """The one gate of all of them; open until it is told otherwise."""
        self.facts = facts
        """What is to open it; nobody obeys that here."""
        self.in_text = in_text
        """Whether any of them is in a text encoder."""

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters by the names of their layers in files."""
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


def attach(model: "Model", file: LoraFile, weight: float = 1.0) -> Attached:
    """Attach every layer of a LoRA file to a model's U-Net and text encoders.

    The factors are held in each layer's dtype and are not trainable. Nothing is changed unless
    all of the file fits. Whatever the file says about its gate, it is open; whoever knows the
    prompts sets ``gate``.

    Raises:
        WeightsError: none or not all of the file's layers belong to the model, with both numbers,
            a layer has another shape, or the file says that it was made for another kind of model,
            or something impossible about its gate.
        ConfigError: the weight is not a finite number.
    """
    facts, places = gate_of_file(file), places_in(model, file)
    adapters = {name: fitted(file, name, places) for name in file.layers}
    attached = put_in(places, adapters, facts)
    try:
        attached.set_weight(weight)
    except ConfigError:
        attached.detach()
        raise
    return attached


def places_in(model: "Model", file: LoraFile) -> Places:
    """Return where each layer of a LoRA file belongs in a model, by its name in the file.

    Raises:
        WeightsError: none or not all of them have a place, with both numbers, two have the same, or
            the file says that it was made for another family or another kind of prediction.
    """
    places, other = places_of(model), other_names(model)
    known = {name: places.get(other.get(name, name)) for name in file.layers}
    found = {name: place for name, place in known.items() if place is not None}
    strange = [name for name in file.layers if name not in found]
    if strange:
        total = len(file.layers)
        raise WeightsError(
            f"{file.path}: {len(found)} of its {total} layers exist in this model, first without a "
            f"place {strange[0]}; {_likely_cause(model, file, strange)}"
        )
    twice = [name for name, count in Counter(p.name for p in found.values()).items() if count > 1]
    if twice:
        raise WeightsError(
            f"{file.path}: {len(twice)} layers are in it under two names, first {twice[0]}; "
            "it is no valid LoRA file"
        )
    _refuse_other_base(model, file)
    return found


def put_in(
    places: Places, adapters: Mapping[str, Adapter], facts: GateFacts | None = None
) -> Attached:
    """Put adapters into their places; both go by the names in files.

    The layer at each place is replaced by an ``Adapted`` around it. One that has adapters already
    gets one more; their contributions add up. From now on the adapters share one gate.

    Args:
        places: where they go.
        adapters: the adapters of one LoRA.
        facts: what is to open its gate; None is one that is always open.
    """
    gate = Gate()
    for name, one in adapters.items():
        one.gate, one.reads_text = gate, _reads_text(places[name])
    slots = {name: _put_in(*places[name].location, one) for name, one in adapters.items()}
    in_text = any(places[name].part != UNET for name in adapters)
    return Attached(slots, gate, facts or GateFacts(), in_text)


def _reads_text(place: Place) -> bool:
    """Tell whether a layer's input is the text, token by token."""
    return place.part == UNET and place.path.endswith((".attn2.to_k", ".attn2.to_v"))


def _put_in(root: nn.Module, path: str, adapter: Adapter) -> _Slot:
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


def _others(layer: Adapted, adapter: Adapter) -> Iterator[nn.Module]:
    return (one for one in layer.adapters if one is not adapter)


def _likely_cause(model: Networks, file: LoraFile, strange: list[str]) -> str:
    base = file.metadata.get("ss_base_model_version", "")
    own = FAMILIES[family_of(model)]
    xl = ("lora_te1_", "lora_te2_", "lora_unet_input_blocks", "lora_unet_output_blocks")
    if not own.sgm_names and (base.startswith("sdxl") or any(n.startswith(xl) for n in strange)):
        return "it was made for SDXL: open it with an SDXL model"
    if base and base not in own.versions:
        return f"it was made for a model of family {base}: open it with one"
    return "it was made for another model: open it with that"


def _refuse_other_base(model: "Model", file: LoraFile) -> None:
    """Refuse a file whose layers all have a place, but which says that they belong elsewhere.

    Self-attention is alike in SD 1.x and 2.x, and what a model predicts changes no shape at all:
    such files would be drawn with in silence, and wrongly.
    """
    own, (family, known_by) = family_of(model), family_of_file(file)
    predicted = model.scheduler_config.get("prediction_type", "epsilon")
    meant = prediction_of_file(file) or predicted
    if known_by == "metadata" and family is not None and family != own:
        bases = FAMILIES[family].title, f"is {FAMILIES[own].title}"
    elif meant != predicted:
        bases = f"models that predict {meant}", f"predicts {predicted}"
    else:
        return
    raise WeightsError(
        f"{file.path}: its {len(file.layers)} layers exist in this model, but by its metadata it "
        f"was made for {bases[0]}, and this model {bases[1]}; open it with the right kind"
    )


def fitted(file: LoraFile, name: str, places: Places) -> Adapter:
    """Return the adapter of one layer of a file, in the dtype and on the device of its layer."""
    layer = file.layers[name]
    base = places[name].layer
    weight = layer_weight(base)
    down, up = (factor.to(weight.device, weight.dtype) for factor in (layer.down, layer.up))
    try:
        adapter = make_adapter(base, Factors(down, up), layer.alpha)
    except WeightsError as error:
        raise WeightsError(
            f"{file.path}: {name}: {error}; it was made for another model"
        ) from error
    return adapter.requires_grad_(False)
