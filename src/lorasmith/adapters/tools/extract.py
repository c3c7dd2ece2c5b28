"""The difference of two models as a LoRA."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.layer_names import TEXT_ENCODERS, UNET, find_layer_refs
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.tools.lora_arithmetic import (
    RankLimit,
    RetainedEnergy,
    Spectrum,
    spectrum_of_matrix,
    truncate_rank,
    unify_alpha,
)
from lorasmith.core.errors import WeightsError
from lorasmith.models.families.family import detect_family

if TYPE_CHECKING:
    from lorasmith.models.model import Model


@dataclass(frozen=True)
class ExtractedLora:
    """The difference of a tuned model and its base."""

    layers: dict[str, LoraLayer]
    """The LoRA, by kohya name."""
    energy: RetainedEnergy
    """The energy of the differences, and how much of it is in the LoRA."""
    not_extracted: tuple[str, ...]
    """Tensors that differ too but cannot be in a LoRA: biases, norms, embeddings, SDXL's
    ``text_projection``."""


@torch.no_grad()
def extract_difference(tuned: "Model", base: "Model", limit: RankLimit) -> ExtractedLora:
    """Return the difference of two models as a LoRA.

    Raises:
        WeightsError: the models have different layers, or none of them differ.
    """
    base_refs, tuned_refs = find_layer_refs(base), find_layer_refs(tuned)
    if detect_family(tuned) != detect_family(base) or base_refs.keys() != tuned_refs.keys():
        raise WeightsError(
            f"{tuned.path} and {base.path} are not of one kind, so there is no difference of "
            "weights; name the model that was tuned and the one it was tuned from"
        )
    spectra: dict[str, Spectrum] = {}
    compared = set()
    for name, ref in base_refs.items():
        base_weight, weight = layer_weight(ref.layer), layer_weight(tuned_refs[name].layer)
        if base_weight.shape != weight.shape:
            raise WeightsError(
                f"{tuned.path}: {ref.part}.{ref.path} has shape {list(weight.shape)}, and in "
                f"{base.path} {list(base_weight.shape)}; they are not of one kind"
            )
        # User interfaces cannot read a LoRA on the projection after SDXL's second text encoder.
        if ref.path == "text_projection":
            continue
        compared.add(f"{ref.part}.{ref.path}.weight")
        delta = weight.double() - base_weight.double()
        if delta.any():
            spectra[name] = spectrum_of_matrix(delta)
    if not spectra:
        raise WeightsError(f"{tuned.path}: no layer differs from {base.path}; nothing to extract")
    layers, energy = truncate_rank(spectra, limit)
    return ExtractedLora(unify_alpha(layers), energy, _other_differences(tuned, base, compared))


def _other_differences(tuned: "Model", base: "Model", compared: set[str]) -> tuple[str, ...]:
    """Return the names of tensors that differ and were not compared as layers."""
    different = []
    for part in (UNET, *TEXT_ENCODERS):
        base_network, network = getattr(base, part), getattr(tuned, part)
        if base_network is None or network is None:
            continue
        before = base_network.state_dict()
        for key, tensor in network.state_dict().items():
            is_same = key in before and torch.equal(tensor, before[key])
            if f"{part}.{key}" not in compared and not is_same:
                different.append(f"{part}.{key}")
    return tuple(different)
