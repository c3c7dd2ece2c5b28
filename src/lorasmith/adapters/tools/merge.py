"""Sums of LoRA files, and files at lower ranks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from lorasmith.adapters.files.lora_family import detect_lora_family
from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.kinds.lora import LoraLayer, as_lora
from lorasmith.adapters.naming.block_weights import BlockWeights
from lorasmith.adapters.naming.layer_names import UNET, find_layer_refs
from lorasmith.adapters.naming.parse_layer_name import LayerPath, parse_layer_name
from lorasmith.adapters.naming.unet_blocks import BlockMap
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.tools.canonical_layers import canonical_layers
from lorasmith.adapters.tools.lora_arithmetic import (
    RankLimit,
    RetainedEnergy,
    Spectrum,
    spectrum_of_layer,
    spectrum_of_matrix,
    truncate_rank,
    unify_alpha,
    weighted_sum,
)
from lorasmith.core.errors import WeightsError
from lorasmith.models.families.family import DEFAULT_FAMILY, get_family

if TYPE_CHECKING:
    from lorasmith.models.model import Model

WeightLookup = Callable[[LayerPath], torch.Tensor | None]
"""Returns the weight of a layer of the base model; None if the model has no such layer."""

_KERNEL_3X3 = ("conv", "conv1", "conv2", "conv_in", "conv_out")
"""The last names of the layers that are 3x3 convolutions in every published U-Net."""

_CANCELLATION_TOLERANCE = 1e-6
"""What remains of a sum that cancels is rounding error below this share of its terms."""


@dataclass(frozen=True)
class MergeInput:
    """A LoRA file in a sum."""

    file: LoraFile
    """The file."""
    weight: float = 1.0
    """Its multiplier."""
    blocks: BlockWeights | None = None
    """Further multipliers by block."""

    def layer_weights(self, family: str | None) -> Callable[[str], float]:
        """Return a function from a layer's kohya name to its multiplier.

        Raises:
            ConfigError: the block weights are for another family.
        """
        if self.blocks is None:
            return lambda name: self.weight
        facts = get_family(family or DEFAULT_FAMILY)
        block_weights = self.blocks.for_family(facts.uses_sgm_names)
        return lambda name: self.weight * block_weights.weight_of(lbw_block(name, family))


class _SumTerm(NamedTuple):
    """One layer of a file in a sum."""

    file: LoraFile
    name: str
    layer: AdapterLayer
    weight: float


def lbw_block(name: str, family: str | None) -> str:
    """Return a layer's block in block weights by its kohya name; empty outside of all blocks."""
    layer_path = parse_layer_name(name)
    if layer_path is None:
        return ""
    if layer_path.part != UNET:
        return "BASE"
    facts = get_family(family or DEFAULT_FAMILY)
    return BlockMap.from_depths(facts.unet.transformer_layers).lbw_name(layer_path.path)


def weight_lookup(model: "Model") -> WeightLookup:
    """Return a function that looks up weights of a model."""
    layers = {
        LayerPath(ref.part, ref.path.removeprefix("text_model.")): ref.layer
        for ref in find_layer_refs(model).values()
    }

    def look_up(layer_path: LayerPath) -> torch.Tensor | None:
        layer = layers.get(layer_path)
        return None if layer is None else layer_weight(layer)

    return look_up


def add_loras(
    inputs: Sequence[MergeInput],
    family: str | None,
    base: WeightLookup | None = None,
    ignore_unknown: bool = False,
) -> dict[str, LoraLayer]:
    """Return the weighted sum of LoRA files, exactly, by the kohya names of a family.

    If a layer is not LoRA in all files, the sum of the dense changes is decomposed at full rank.

    Args:
        inputs: the files.
        family: decides the layers' names; None keeps SD's names.
        base: weights of the base model, which DoRA needs.
        ignore_unknown: leave out layers that are no layers of Stable Diffusion, with a warning.

    Raises:
        WeightsError: a layer has another shape in another file, or an unknown name; DoRA comes
            without a base, or the base lacks a layer.
        ConfigError: block weights are for another family.
    """
    terms: dict[str, list[_SumTerm]] = {}
    for lora in inputs:
        weight_of = lora.layer_weights(family)
        for name, layer in canonical_layers(lora.file, family, ignore_unknown).items():
            if weight := weight_of(name):
                terms.setdefault(name, []).append(_SumTerm(lora.file, name, layer, weight))
    layers = {}
    for name, layer_terms in terms.items():
        try:
            layers[name] = _sum_terms(layer_terms, base)
        except ValueError as error:
            last = layer_terms[-1]
            raise WeightsError(f"{last.file.path}: {last.name}: {error}") from error
    return layers


def is_cancelled(layer: LoraLayer) -> bool:
    """Return whether the terms of a sum cancel each other, up to rounding.

    The test is |B A| <= 1e-6 |B| |A|. A sum concatenates the factors of its terms, so |B| |A| does
    not shrink when they cancel.
    """
    norms = float(layer.down.double().norm() * layer.up.double().norm())
    remainder = math.sqrt(spectrum_of_layer(layer).energy)
    return remainder <= _CANCELLATION_TOLERANCE * abs(layer.scale) * norms


def common_family(files: Sequence[LoraFile]) -> str | None:
    """Return the family that files are for; None if no file shows it.

    Raises:
        WeightsError: they are for different ones; the message names two files.
    """
    known = [(file, family) for file in files if (family := detect_lora_family(file)[0])]
    for file, family in known[1:]:
        if family != known[0][1]:
            raise WeightsError(
                f"{file.path} is for {get_family(family).title} and {known[0][0].path} for "
                f"{get_family(known[0][1]).title}; LoRAs of different families cannot be "
                "combined or compared"
            )
    return known[0][1] if known else None


def resize_layers(
    file: LoraFile,
    layers: Mapping[str, AdapterLayer],
    limit: RankLimit,
    base: WeightLookup | None = None,
) -> tuple[dict[str, LoraLayer], RetainedEnergy]:
    """Return layers of a file at lower ranks, and the energy that they retain.

    A layer whose rank is already low enough stays the same, up to rounding.

    Raises:
        WeightsError: DoRA comes without a base, or the base lacks a layer.
    """
    spectra = {}
    for name, layer in layers.items():
        lora = as_lora(layer)
        if lora is None:
            spectra[name] = spectrum_of_matrix(compute_delta(file, name, layer, base))
        else:
            spectra[name] = spectrum_of_layer(lora)
    return _truncate(spectra, limit)


def truncate_layers(
    layers: Mapping[str, LoraLayer], limit: RankLimit
) -> tuple[dict[str, LoraLayer], RetainedEnergy]:
    """Return layers at lower ranks, and the energy that they retain."""
    return _truncate({name: spectrum_of_layer(layer) for name, layer in layers.items()}, limit)


def _truncate(
    spectra: Mapping[str, Spectrum], limit: RankLimit
) -> tuple[dict[str, LoraLayer], RetainedEnergy]:
    layers, energy = truncate_rank(spectra, limit)
    return unify_alpha(layers), energy


def _sum_terms(terms: Sequence[_SumTerm], base: WeightLookup | None) -> LoraLayer:
    loras = [(lora, term.weight) for term in terms if (lora := as_lora(term.layer)) is not None]
    if len(loras) == len(terms):
        return weighted_sum(loras)
    deltas = [
        term.weight * compute_delta(term.file, term.name, term.layer, base).double()
        for term in terms
    ]
    if len({delta.shape[:2] for delta in deltas}) > 1:
        raise ValueError("its shape differs from that in another file; they are for other models")
    total = sum(delta.reshape(deltas[0].shape) for delta in deltas[1:]) + deltas[0]
    spectrum = spectrum_of_matrix(total)
    return spectrum.truncate(spectrum.rank)


def compute_delta(
    file: LoraFile, name: str, layer: AdapterLayer, base: WeightLookup | None
) -> torch.Tensor:
    """Return the change that a layer makes, float32 ``[out, in]`` or ``[out, in, k, k]``.

    Raises:
        WeightsError: the change depends on the base (DoRA) and there is none, or the base lacks the
            layer.
        ValueError: it does not fit the base's layer.
    """
    layer_path = parse_layer_name(name)
    weight = base(layer_path) if base and layer_path else None
    if weight is not None:
        return layer.delta_for(weight)
    if layer.needs_base_weight:
        problem = "the base model has no such layer" if base else "name its base model with --base"
        raise WeightsError(
            f"{file.path}: {name} is {layer.kind}, whose effect depends on the base; {problem}"
        )
    delta = layer.delta()
    # LoHa and LoKr of convolutions may have flat factors, which do not show the kernel's shape.
    is_kernel = layer_path is not None and layer_path.path.rpartition(".")[2] in _KERNEL_3X3
    return delta.reshape(len(delta), -1, 3, 3) if is_kernel and delta.ndim == 2 else delta
