"""Merging LoRA files into a model's own weights, for good."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.injection.compatibility import fit_to_model
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.tools.merge import MergeInput
from lorasmith.core.errors import WeightsError
from lorasmith.models.family import detect_family

if TYPE_CHECKING:
    from lorasmith.models.load import Model


@torch.no_grad()
def fuse_into_model(
    model: "Model",
    terms: Sequence[MergeInput],
    dtype: torch.dtype = torch.float32,
    strict: bool = True,
) -> set[str]:
    """Add LoRA files to a float32 model's weights; return the parts that changed.

    All files are checked before the first weight is touched.

    Args:
        model: its weights are changed in place.
        terms: the files, their weights and weights by block.
        dtype: the number format that it will be saved in; it must be able to hold the sum.
        strict: see `lorasmith.adapters.injection.compatibility.fit`.

    Raises:
        WeightsError: a file does not fit the model (counts are named), or the sum is not finite or
            too large for the number format that it will be saved in.
        ConfigError: weights by block are for another family.
    """
    family = detect_family(model).name
    deltas = []
    for term in terms:
        found, weight_of = fit_to_model(model, term.file, strict), term.layer_weights(family)
        for name, adapter in found.adapters.items():
            deltas.append((found.refs[name], weight_of(name), adapter))
    changed = set()
    for place, weight, adapter in deltas:
        base = layer_weight(place.layer)
        base += weight * adapter.delta_weight()
        changed.add(place.part)
    for place, _, _ in deltas:
        _require_finite(place.part, place.path, layer_weight(place.layer), dtype)
    return changed


def _require_finite(part: str, path: str, weight: torch.Tensor, dtype: torch.dtype) -> None:
    if not bool(weight.to(dtype).isfinite().all()):
        raise WeightsError(
            f"{part}.{path}: the merged weight is not finite in "
            f"{str(dtype).removeprefix('torch.')}; lower the LoRA's weight"
        )
