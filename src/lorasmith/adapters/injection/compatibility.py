"""Whether a LoRA file fits a model: its layers exist there, have the right shape, and are made for
this kind of base model.
"""

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorasmith.adapters.files.lora_family import detect_lora_family, detect_prediction_type
from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.files.unknown_keys import example_keys, is_for_later_family, list_examples
from lorasmith.adapters.naming.layer_names import (
    LayerRef,
    LayerRefs,
    find_layer_refs,
    find_name_aliases,
)
from lorasmith.adapters.naming.parse_layer_name import LayerPath, parse_layer_name
from lorasmith.adapters.nn.lora import Adapter
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.models.families.family import Networks, detect_family, get_family

if TYPE_CHECKING:
    from lorasmith.models.model import Model


@dataclass(frozen=True)
class FittedLora:
    """The layers of a file that a model has."""

    refs: LayerRefs
    """The model's layers by their names in the file."""
    adapters: dict[str, Adapter]
    """The adapters by the same names, in the dtype and on the device of their layers, frozen."""


def fit_to_model(model: "Model", file: LoraFile, strict: bool = True) -> FittedLora:
    """Return a file's layers as adapters for a model, which is not changed.

    Args:
        model: the model. The change that DoRA makes is computed from its weights.
        file: the file.
        strict: refuse a file that does not fit completely. Otherwise return what fits and warn
            about the rest, with counts and examples.

    Raises:
        WeightsError: no layer fits; or, if strict, not every layer fits (the message has both
            numbers), the file is for another family or prediction type, or is bundled with
            embeddings; or two layers have the same place.
    """
    if file.embeddings:
        _report(
            f"{file.path}: it is bundled with {len(file.embeddings)} textual inversion embeddings"
            f"{example_keys(list(file.embeddings))}, which lorasmith cannot use; "
            "--allow-mismatch (ablate: --ignore-unknown) uses the LoRA without them",
            strict,
        )
    refs = match_layers(model, file, strict)
    adapters: dict[str, Adapter] = {}
    misfits: list[str] = []
    for name, ref in refs.items():
        try:
            adapters[name] = file.layers[name].make_module(ref.layer).requires_grad_(False)
        except (WeightsError, ValueError) as error:
            misfits.append(f"{name}: {error}")
    if misfits:
        _report(
            f"{file.path}: {len(misfits)} of its {len(file.layers)} layers have other shapes in "
            f"this model, first {misfits[0]}; {_explain_mismatch(model, file)}",
            strict=strict or not adapters,
        )
    _check_base_model(model, file, strict)
    return FittedLora({name: refs[name] for name in adapters}, adapters)


def match_layers(model: Networks, file: LoraFile, strict: bool = True) -> LayerRefs:
    """Return the model's layers by the names of the file's layers.

    Raises:
        WeightsError: the model has none of the file's layers or, if strict, not all (the message
            has both numbers); or two of them are the same layer.
    """
    known, aliases = find_layer_refs(model), find_name_aliases(model)
    by_path: dict[LayerPath | None, LayerRef] = {
        LayerPath(ref.part, ref.path.removeprefix("text_model.")): ref for ref in known.values()
    }
    candidates = {
        name: known.get(aliases.get(name, name)) or by_path.get(parse_layer_name(name))
        for name in file.layers
    }
    refs = {name: ref for name, ref in candidates.items() if ref is not None}
    missing = [name for name in file.layers if name not in refs]
    if missing:
        _report(
            f"{file.path}: {len(refs)} of its {len(file.layers)} layers exist in this model, "
            f"first missing ones {list_examples(missing)}; "
            f"{_explain_mismatch(model, file)}",
            strict=strict or not refs,
        )
    counts = Counter(ref.name for ref in refs.values())
    duplicates = [name for name, count in counts.items() if count > 1]
    if duplicates:
        raise WeightsError(
            f"{file.path}: {len(duplicates)} layers are in it under two names, first "
            f"{duplicates[0]}; it is no valid LoRA file"
        )
    return refs


def _explain_mismatch(model: Networks, file: LoraFile) -> str:
    """Return which models a file that does not fit may be for."""
    model_family, (family, source) = detect_family(model), detect_lora_family(file)
    if any(is_for_later_family(name) for name in file.layers):
        return (
            "by its names it is for a later family (Flux, SD 3), which lorasmith does not support"
        )
    if family is not None and family != model_family.name:
        title = get_family(family).title
        return f"by its {source} it was made for {title}: open it with an {title} model"
    base = file.metadata.get("ss_base_model_version", "")
    if base and base not in model_family.kohya_versions:
        return f"it was made for a model of family {base}: open it with one"
    return "it was made for another model: open it with that"


def _check_base_model(model: "Model", file: LoraFile, strict: bool) -> None:
    """Refuse a file whose layers all exist, but whose metadata name another kind of model.

    Self-attention has the same shapes in SD 1.x and 2.x, and the prediction type changes no shape:
    such files would silently give wrong images.
    """
    model_family, (family, source) = detect_family(model), detect_lora_family(file)
    predicts = model.scheduler_config.get("prediction_type", "epsilon")
    expects = detect_prediction_type(file) or predicts
    if source == "metadata" and family is not None and family != model_family.name:
        made_for, found = get_family(family).title, f"is {model_family.title}"
    elif expects != predicts:
        made_for, found = f"models that predict {expects}", f"predicts {predicts}"
    else:
        return
    _report(
        f"{file.path}: its {len(file.layers)} layers exist in this model, but by its metadata it "
        f"was made for {made_for}, and this model {found}; open it with the right kind",
        strict,
    )


def _report(problem: str, strict: bool) -> None:
    if strict:
        raise WeightsError(problem)
    warnings.warn(f"{problem}; used all the same, as you asked", LorasmithWarning, stacklevel=4)
