"""The difference of two models as a LoRA."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.layer_names import (
    TEXT_ENCODERS,
    UNET,
    find_adaptable_layers,
    find_layer_refs,
)
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.tools.lora_arithmetic import (
    RankLimit,
    RetainedEnergy,
    Spectrum,
    spectrum_of_matrix,
    truncate_rank,
    unify_alpha,
)
from lorasmith.adapters.tools.rounding import common_format, is_only_rounding
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
    only_rounding: int = 0
    """Number of layers that are left out, because they differ by rounding between number formats
    only."""


@torch.no_grad()
def extract_difference(tuned: "Model", base: "Model", limit: RankLimit) -> ExtractedLora:
    """Return the difference of two models as a LoRA.

    Layers that differ by rounding between number formats only are left out.

    Raises:
        WeightsError: the models have different layers, or none of them differ by more than
            rounding.
    """
    base_refs, tuned_refs = find_layer_refs(base), find_layer_refs(tuned)
    if detect_family(tuned) != detect_family(base) or base_refs.keys() != tuned_refs.keys():
        raise WeightsError(
            f"{tuned.path} and {base.path} are not of one kind, so there is no difference of "
            "weights; name the model that was tuned and the one it was tuned from"
        )
    rounding = _Rounding(tuned, base)
    spectra: dict[str, Spectrum] = {}
    compared, only_rounding = set(), 0
    for name, ref in base_refs.items():
        # User interfaces cannot read a LoRA on the projection after SDXL's second text encoder.
        if ref.path == "text_projection":
            continue
        compared.add(f"{ref.part}.{ref.path}.weight")
        base_weight, weight = layer_weight(ref.layer), layer_weight(tuned_refs[name].layer)
        if base_weight.shape != weight.shape:
            raise WeightsError(
                f"{tuned.path}: {ref.part}.{ref.path} has shape {list(weight.shape)}, and in "
                f"{base.path} {list(base_weight.shape)}; they are not of one kind"
            )
        if torch.equal(weight, base_weight):
            continue
        if rounding.explains(ref.part, weight, base_weight):
            only_rounding += 1
        else:
            spectra[name] = spectrum_of_matrix(weight.double() - base_weight.double())
    if not spectra:
        raise _no_difference_error(tuned, base, only_rounding, rounding)
    layers, energy = truncate_rank(spectra, limit)
    others = _other_differences(tuned, base, compared, rounding)
    return ExtractedLora(unify_alpha(layers), energy, others, only_rounding)


def _no_difference_error(
    tuned: "Model", base: "Model", only_rounding: int, rounding: "_Rounding"
) -> WeightsError:
    if only_rounding:
        return WeightsError(
            f"{tuned.path}: its {only_rounding} layers that differ from {base.path} do so by "
            f"rounding between number formats only ({rounding}); nothing to extract"
        )
    return WeightsError(f"{tuned.path}: no layer differs from {base.path}; nothing to extract")


class _Rounding:
    """Recognizes differences of two models that come from saving them in two number formats."""

    def __init__(self, tuned: "Model", base: "Model") -> None:
        self._formats = {
            part: (common_format(_weights(tuned, part)), common_format(_weights(base, part)))
            for part in (UNET, *TEXT_ENCODERS)
            if getattr(tuned, part) is not None and getattr(base, part) is not None
        }

    def __str__(self) -> str:
        names = {
            f"{str(tuned).removeprefix('torch.')} and {str(base).removeprefix('torch.')}": None
            for tuned, base in self._formats.values()
        }
        return ", ".join(names)

    def explains(self, part: str, weight: torch.Tensor, base_weight: torch.Tensor) -> bool:
        """Return whether two float32 weights of a part differ by rounding only."""
        return is_only_rounding(weight, base_weight, *self._formats[part])


def _weights(model: "Model", part: str) -> list[torch.Tensor]:
    return [layer_weight(layer) for layer in find_adaptable_layers(getattr(model, part)).values()]


def _other_differences(
    tuned: "Model", base: "Model", compared: set[str], rounding: _Rounding
) -> tuple[str, ...]:
    """Return the names of tensors that differ and were not compared as layers."""
    different = []
    for part in (UNET, *TEXT_ENCODERS):
        base_network, network = getattr(base, part), getattr(tuned, part)
        if base_network is None or network is None:
            continue
        before = base_network.state_dict()
        for key, tensor in network.state_dict().items():
            is_same = key in before and (
                torch.equal(tensor, before[key])
                or (
                    tensor.is_floating_point()
                    and tensor.shape == before[key].shape
                    and rounding.explains(part, tensor, before[key])
                )
            )
            if f"{part}.{key}" not in compared and not is_same:
                different.append(f"{part}.{key}")
    return tuple(different)
