"""Whole LoRA files added, cut to lower ranks, and taken out of tuned models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.files.layer_kinds import DoraLayer, Layer, LoraLayer, dense_delta
from lorasmith.adapters.files.lora_family import detect_lora_family
from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.naming.block_weights import BlockWeights
from lorasmith.adapters.naming.layer_names import UNET, find_layer_refs
from lorasmith.adapters.naming.module_names import LayerPath, parse_kohya_name
from lorasmith.adapters.naming.unet_blocks import BlockMap
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.tools.algebra import (
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
from lorasmith.models.family import DEFAULT_FAMILY, detect_family
from lorasmith.registries import MODEL_FAMILIES

if TYPE_CHECKING:
    from lorasmith.models.load import Model

WeightLookup = Callable[[LayerPath], torch.Tensor | None]
"""Returns the weight of a layer of the base model; None where it has no such layer."""

_KERNEL_3X3 = ("conv", "conv1", "conv2", "conv_in", "conv_out")
"""The last names of the layers that are 3x3 convolutions in every published U-Net."""


_ROUNDING = 1e-6
"""What is left of a sum whose terms cancel, as a share of them, is rounding below this."""


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
        """Return the multiplier of each of its layers by the layer's name.

        Raises:
            ConfigError: the block weights are for another family.
        """
        if self.blocks is None:
            return lambda name: self.weight
        facts = MODEL_FAMILIES.get(family or DEFAULT_FAMILY)
        chosen = self.blocks.for_family(facts.uses_sgm_names)
        return lambda name: self.weight * chosen.weight_of(lbw_block(name, family))


def lbw_block(name: str, family: str | None) -> str:
    """Return a layer's block in block vectors by its name in files; empty outside of all."""
    module = parse_kohya_name(name)
    if module is None:
        return ""
    if module.part != UNET:
        return "BASE"
    return BlockMap.from_depths(
        MODEL_FAMILIES.get(family or DEFAULT_FAMILY).unet.transformer_layers
    ).lbw_name(module.path)


def weight_lookup(model: "Model") -> WeightLookup:
    """Return a model's weights by layer."""
    found = {
        LayerPath(place.part, place.path.removeprefix("text_model.")): place.layer
        for place in find_layer_refs(model).values()
    }

    def weight(module: LayerPath) -> torch.Tensor | None:
        layer = found.get(module)
        return None if layer is None else layer_weight(layer)

    return weight


def add_loras(
    terms: Sequence[MergeInput], family: str | None, base: WeightLookup | None = None
) -> dict[str, LoraLayer]:
    """Return the weighted sum of LoRA files, exactly, with kohya's names for a family.

    Layers of other kinds than LoRA come from the decomposition of their dense sum, at full rank.

    Args:
        terms: the files.
        family: names the layers; None keeps SD's names.
        base: the base model's weights, which DoRA needs.

    Raises:
        WeightsError: a layer has another shape in another file, DoRA comes without a base, or the
            base lacks a layer.
        ConfigError: block weights are for another family.
    """
    found: dict[str, list[tuple[LoraFile, str, Layer, float]]] = {}
    for term in terms:
        weight_of = term.layer_weights(family)
        for name, layer in term.file.layers.items():
            if weight := weight_of(name):
                entry = (term.file, name, layer, weight)
                found.setdefault(rename_layer(name, family), []).append(entry)
    layers = {}
    for name, entries in found.items():
        try:
            layers[name] = _sum(entries, base)
        except ValueError as error:
            raise WeightsError(f"{entries[-1][0].path}: {entries[-1][1]}: {error}") from error
    return layers


def is_cancelled(layer: LoraLayer) -> bool:
    """Tell whether the terms of a sum take each other away, up to rounding.

    By ||B A|| <= 1e-6 ||B|| ||A||: the factors of a sum stand one behind the other, so the right
    side does not shrink where terms do cancel.
    """
    down, up = layer.down.flatten(1).double(), layer.up.flatten(1).double()
    return bool((up @ down).norm() <= _ROUNDING * up.norm() * down.norm())


def rename_layer(name: str, family: str | None) -> str:
    """Return a layer's name in kohya's files for a family; unknown names stay as they are.

    Raises:
        WeightsError: the family has no such layer.
    """
    module = parse_kohya_name(name)
    if module is None or family is None:
        return name
    try:
        return module.kohya_name(family)
    except (IndexError, KeyError) as error:
        title = MODEL_FAMILIES.get(family).title
        raise WeightsError(f"{name} has no place in {title}; it is for another family") from error


def common_family(files: Sequence[LoraFile]) -> str | None:
    """Return the family that files are for; None where none of them tells.

    Raises:
        WeightsError: they are for different ones; both files are named.
    """
    told = [(file, family) for file in files if (family := detect_lora_family(file)[0])]
    for file, family in told[1:]:
        if family != told[0][1]:
            raise WeightsError(
                f"{file.path} is for {MODEL_FAMILIES.get(family).title} and {told[0][0].path} for "
                f"{MODEL_FAMILIES.get(told[0][1]).title}; LoRAs of different families cannot be "
                "combined or compared"
            )
    return told[0][1] if told else None


def resize_layers(
    file: LoraFile, limit: RankLimit, base: WeightLookup | None = None
) -> tuple[dict[str, LoraLayer], RetainedEnergy]:
    """Return a file's layers at lower ranks, and the energy that they keep.

    A layer whose rank is already low enough stays as it is, up to rounding.

    Raises:
        WeightsError: DoRA comes without a base, or the base lacks a layer.
    """
    spectra = {name: _spectrum(file, name, layer, base) for name, layer in file.layers.items()}
    layers, kept = truncate_rank(spectra, limit)
    return unify_alpha(layers), kept


def truncate_layers(
    layers: Mapping[str, LoraLayer], limit: RankLimit
) -> tuple[dict[str, LoraLayer], RetainedEnergy]:
    """Return layers at lower ranks, and the energy that they keep."""
    smaller, kept = truncate_rank(
        {name: spectrum_of_layer(one) for name, one in layers.items()}, limit
    )
    return unify_alpha(smaller), kept


@dataclass(frozen=True)
class ExtractedLora:
    """What a tuned model has that its base has not."""

    layers: dict[str, LoraLayer]
    """As a LoRA, by the names in files."""
    energy: RetainedEnergy
    """The energy of the differences, and what of it is in the LoRA."""
    not_extracted: tuple[str, ...]
    """Tensors that differ too and cannot be in a LoRA: biases, norms, embeddings, SDXL's
    ``text_projection``."""


@torch.no_grad()
def extract_difference(tuned: "Model", base: "Model", limit: RankLimit) -> ExtractedLora:
    """Return the difference of two models as a LoRA.

    Raises:
        WeightsError: the models have different layers, or none of them differ.
    """
    places, others = find_layer_refs(base), find_layer_refs(tuned)
    if detect_family(tuned) != detect_family(base) or places.keys() != others.keys():
        raise WeightsError(
            f"{tuned.folder} and {base.folder} are not of one kind, so there is no difference of "
            "weights; name the model that was tuned and the one it was tuned from"
        )
    spectra: dict[str, Spectrum] = {}
    held = set()
    for name, place in places.items():
        own, other = layer_weight(place.layer), layer_weight(others[name].layer)
        if own.shape != other.shape:
            raise WeightsError(
                f"{tuned.folder}: {place.part}.{place.path} has shape {list(other.shape)}, and in "
                f"{base.folder} {list(own.shape)}; they are not of one kind"
            )
        # User interfaces cannot read a LoRA on the projection behind SDXL's second encoder.
        if place.path == "text_projection":
            continue
        held.add(f"{place.part}.{place.path}.weight")
        delta = other.double() - own.double()
        if delta.any():
            spectra[name] = spectrum_of_matrix(delta)
    if not spectra:
        raise WeightsError(
            f"{tuned.folder}: no layer differs from {base.folder}; nothing to extract"
        )
    layers, kept = truncate_rank(spectra, limit)
    return ExtractedLora(unify_alpha(layers), kept, _left(tuned, base, held))


def _left(tuned: "Model", base: "Model", held: set[str]) -> tuple[str, ...]:
    left = []
    for part in (UNET, "text_encoder", "text_encoder_2"):
        own, other = getattr(base, part), getattr(tuned, part)
        if own is None or other is None:
            continue
        before = own.state_dict()
        for key, tensor in other.state_dict().items():
            same = key in before and torch.equal(tensor, before[key])
            if f"{part}.{key}" not in held and not same:
                left.append(f"{part}.{key}")
    return tuple(left)


def _sum(
    entries: Sequence[tuple[LoraFile, str, Layer, float]], base: WeightLookup | None
) -> LoraLayer:
    plain = [(layer, weight) for _, _, layer, weight in entries if isinstance(layer, LoraLayer)]
    if len(plain) == len(entries):
        return weighted_sum(plain)
    deltas = [
        weight * compute_delta(file, name, layer, base).double()
        for file, name, layer, weight in entries
    ]
    if len({delta.shape[:2] for delta in deltas}) > 1:
        raise ValueError("its shape differs from that in another file; they are for other models")
    whole = sum(delta.reshape(deltas[0].shape) for delta in deltas[1:]) + deltas[0]
    spectrum = spectrum_of_matrix(whole)
    return spectrum.truncate(spectrum.rank)


def _spectrum(file: LoraFile, name: str, layer: Layer, base: WeightLookup | None) -> Spectrum:
    if isinstance(layer, LoraLayer):
        return spectrum_of_layer(layer)
    return spectrum_of_matrix(compute_delta(file, name, layer, base))


def compute_delta(
    file: LoraFile, name: str, layer: Layer, base: WeightLookup | None
) -> torch.Tensor:
    """Return what a layer adds, float32 ``[out, in]`` or ``[out, in, k, k]``.

    Raises:
        WeightsError: it is DoRA and there is no base, or the base lacks the layer.
        ValueError: it does not fit the base's layer.
    """
    module = parse_kohya_name(name)
    weight = base(module) if base and module else None
    if weight is not None:
        return dense_delta(layer, weight)
    if isinstance(layer, DoraLayer):
        lacking = "the base model has no such layer" if base else "name its base model with --base"
        raise WeightsError(
            f"{file.path}: {name} is {layer.kind}, whose effect depends on the base; {lacking}"
        )
    delta = layer.dense()
    # LoHa and LoKr of convolutions may have flat factors, which do not tell the kernel's shape.
    is_kernel = module is not None and module.path.rpartition(".")[2] in _KERNEL_3X3
    return delta.reshape(len(delta), -1, 3, 3) if is_kernel and delta.ndim == 2 else delta
