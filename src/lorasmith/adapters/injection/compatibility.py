"""Whether a LoRA file fits a model: layers that have a place, of the right shape, for this base."""

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorasmith.adapters.files.key_formats import is_for_later_family
from lorasmith.adapters.files.layer_kinds import Layer, LoraLayer, dense_delta
from lorasmith.adapters.files.lora_family import detect_lora_family, detect_prediction_type
from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.naming.layer_names import (
    LayerRef,
    LayerRefs,
    find_layer_refs,
    find_name_aliases,
)
from lorasmith.adapters.nn.lora import Adapter, Factors, layer_weight, make_adapter
from lorasmith.adapters.nn.weight_delta import make_delta_adapter
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.models.family import Networks, detect_family
from lorasmith.registries import MODEL_FAMILIES

if TYPE_CHECKING:
    from lorasmith.models.load import Model

_EXAMPLES = 3


@dataclass(frozen=True)
class FittedLora:
    """The layers of a file that a model has."""

    refs: LayerRefs
    """Where they are, by their names in the file."""
    adapters: dict[str, Adapter]
    """Their adapters, likewise; in the dtype and on the device of their layers, not trainable."""


def fit_to_model(model: "Model", file: LoraFile, strict: bool = True) -> FittedLora:
    """Return a file's layers as adapters for a model; the model is not changed.

    Args:
        model: the model. What DoRA adds is worked out from its weights.
        file: the file.
        strict: refuse a file that does not fit as a whole. If not, what fits is returned and the
            rest is warned about, with counts and examples.

    Raises:
        WeightsError: none of its layers fit, or, if strict, not all of them, with both numbers, or
            the file says that it was made for another family or another kind of prediction; two
            layers have the same place.
    """
    places = match_layers(model, file, strict)
    adapters: dict[str, Adapter] = {}
    misfits: list[str] = []
    for name, place in places.items():
        try:
            adapters[name] = _fitted(place, file.layers[name])
        except (WeightsError, ValueError) as error:
            misfits.append(f"{name}: {error}")
    if misfits:
        _complain(
            f"{file.path}: {len(misfits)} of its {len(file.layers)} layers have other shapes in "
            f"this model, first {misfits[0]}; {_cause(model, file)}",
            strict=strict or not adapters,
        )
    _compare_bases(model, file, strict)
    return FittedLora({name: places[name] for name in adapters}, adapters)


def match_layers(model: Networks, file: LoraFile, strict: bool = True) -> LayerRefs:
    """Return where the layers of a file belong, by their names in the file.

    Raises:
        WeightsError: none of them have a place, or, if strict, not all, with both numbers; or two
            have the same place.
    """
    places, other = find_layer_refs(model), find_name_aliases(model)
    known = {name: places.get(other.get(name, name)) for name in file.layers}
    found = {name: place for name, place in known.items() if place is not None}
    strange = [name for name in file.layers if name not in found]
    if strange:
        _complain(
            f"{file.path}: {len(found)} of its {len(file.layers)} layers exist in this model, "
            f"first without a place {', '.join(strange[:_EXAMPLES])}; {_cause(model, file)}",
            strict=strict or not found,
        )
    twice = [name for name, count in Counter(p.name for p in found.values()).items() if count > 1]
    if twice:
        raise WeightsError(
            f"{file.path}: {len(twice)} layers are in it under two names, first {twice[0]}; "
            "it is no valid LoRA file"
        )
    return found


def _fitted(place: LayerRef, layer: Layer) -> Adapter:
    weight = layer_weight(place.layer)
    if not isinstance(layer, LoraLayer):
        delta = dense_delta(layer, weight).to(weight.dtype)
        return make_delta_adapter(place.layer, delta).requires_grad_(False)
    down, up = (factor.to(weight.device, weight.dtype) for factor in (layer.down, layer.up))
    return make_adapter(place.layer, Factors(down, up), layer.alpha).requires_grad_(False)


def _cause(model: Networks, file: LoraFile) -> str:
    """Say which models a file that does not fit may be for."""
    own, (family, known_by) = detect_family(model), detect_lora_family(file)
    if any(is_for_later_family(name) for name in file.layers):
        return "by its names it is for a later family (Flux, SD 3), which lorasmith does not draw"
    if family is not None and family != own.name:
        title = MODEL_FAMILIES.get(family).title
        return f"by its {known_by} it was made for {title}: open it with an {title} model"
    base = file.metadata.get("ss_base_model_version", "")
    if base and base not in own.kohya_versions:
        return f"it was made for a model of family {base}: open it with one"
    return "it was made for another model: open it with that"


def _compare_bases(model: "Model", file: LoraFile, strict: bool) -> None:
    """Refuse a file whose layers all have a place, but which says that they belong elsewhere.

    Self-attention is alike in SD 1.x and 2.x, and what a model predicts changes no shape at all:
    such files would be drawn with in silence, and wrongly.
    """
    own, (family, known_by) = detect_family(model), detect_lora_family(file)
    predicted = model.scheduler_config.get("prediction_type", "epsilon")
    meant = detect_prediction_type(file) or predicted
    if known_by == "metadata" and family is not None and family != own.name:
        bases = MODEL_FAMILIES.get(family).title, f"is {own.title}"
    elif meant != predicted:
        bases = f"models that predict {meant}", f"predicts {predicted}"
    else:
        return
    _complain(
        f"{file.path}: its {len(file.layers)} layers exist in this model, but by its metadata it "
        f"was made for {bases[0]}, and this model {bases[1]}; open it with the right kind",
        strict,
    )


def _complain(what: str, strict: bool) -> None:
    if strict:
        raise WeightsError(what)
    warnings.warn(f"{what}; used all the same, as you asked", LorasmithWarning, stacklevel=4)
