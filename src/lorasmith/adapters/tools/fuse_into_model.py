"""Fusing LoRA files into a model's own weights, permanently."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.injection.compatibility import fit_to_model
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.tools.merge import MergeInput
from lorasmith.core.errors import WeightsError
from lorasmith.models.families.family import detect_family

if TYPE_CHECKING:
    from lorasmith.models.model import Model


@torch.no_grad()
def fuse_into_model(
    model: "Model",
    inputs: Sequence[MergeInput],
    dtype: torch.dtype = torch.float32,
    strict: bool = True,
) -> set[str]:
    """Add LoRA files to a float32 model's weights; return the parts that changed.

    All files are checked before the first weight is changed.

    Args:
        model: its weights are changed in place.
        inputs: the files, their weights and block weights.
        dtype: the dtype that the model will be saved in; it must be able to hold the sums.
        strict: see `lorasmith.adapters.injection.compatibility.fit_to_model`.

    Raises:
        WeightsError: a file does not fit the model (the message has counts), or a sum is not finite
            in the dtype that the model will be saved in.
        ConfigError: block weights are for another family.
    """
    family = detect_family(model).name
    changes = []
    for lora in inputs:
        fitted, weight_of = fit_to_model(model, lora.file, strict), lora.layer_weights(family)
        for name, adapter in fitted.adapters.items():
            changes.append((fitted.refs[name], weight_of(name), adapter))
    for ref, weight, adapter in changes:
        base = layer_weight(ref.layer)
        base += weight * adapter.delta_weight()
    for ref, _, _ in changes:
        _require_finite(f"{ref.part}.{ref.path}", layer_weight(ref.layer), dtype)
    return {ref.part for ref, _, _ in changes}


def _require_finite(name: str, weight: torch.Tensor, dtype: torch.dtype) -> None:
    if not bool(weight.to(dtype).isfinite().all()):
        raise WeightsError(
            f"{name}: the merged weight is not finite in {str(dtype).removeprefix('torch.')}; "
            "lower the LoRA's weight"
        )
