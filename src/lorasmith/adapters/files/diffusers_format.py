"""Writing LoRA files in diffusers' naming: ``PATH.lora_A.weight`` and ``PATH.lora_B.weight``.

There are no alphas among the tensors: they stand in the metadata, from which diffusers rebuilds
its adapters. Programs that do not read it take each alpha for the rank; for them the scale can be
multiplied into the factors.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from lorasmith.adapters.files.layer_kinds import DoraLayer, Layer, LoraLayer
from lorasmith.adapters.files.lora_file import write_tensors
from lorasmith.adapters.files.peft_config import METADATA_KEY, build_peft_metadata
from lorasmith.adapters.naming.module_names import LayerPath, parse_kohya_name
from lorasmith.core.errors import WeightsError

FILE_NAME = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a folder."""


def save_diffusers_file(
    path: Path,
    layers: Mapping[str, Layer],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    fold_alpha: bool = False,
) -> None:
    """Write a LoRA file in diffusers' naming, atomically.

    Args:
        path: the file.
        layers: adapters by kohya's names.
        metadata: see `lorasmith.adapters.files.metadata`; diffusers' own entry is added.
        dtype: of the factors on disk; None leaves each as it is.
        fold_alpha: multiply alpha / rank into the factors, so that alpha is the rank everywhere.

    Raises:
        WeightsError: layers are of a kind that this naming has no keys for, or have names that no
            Stable Diffusion has; counts are named. Or see `save_lora_file`.
        OutputError: the file cannot be written.
    """
    modules = {module: _factors(layer) for module, layer in _modules(path, layers).items()}
    if fold_alpha:
        modules = {module: (_folded(one), lengths) for module, (one, lengths) in modules.items()}
    tensors: dict[str, torch.Tensor] = {}
    for module, (layer, lengths) in modules.items():
        tensors[f"{module.diffusers_name}.lora_A.weight"] = layer.down
        tensors[f"{module.diffusers_name}.lora_B.weight"] = layer.up
        if lengths is not None:
            tensors[f"{module.diffusers_name}.lora_magnitude_vector.weight"] = lengths
    told = {**metadata, METADATA_KEY: build_peft_metadata(modules)}
    write_tensors(path, layers, tensors, told, dtype)


def _modules(path: Path, layers: Mapping[str, Layer]) -> dict[LayerPath, Layer]:
    unknown = [name for name in layers if parse_kohya_name(name) is None]
    if unknown:
        raise WeightsError(
            f"{path.name}: {len(unknown)} of {len(layers)} layers have names that no Stable "
            f"Diffusion has, first {unknown[0]}; not saved"
        )
    other = [layer.kind for layer in layers.values() if not _is_writable(layer)]
    if other:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(other).items())
        raise WeightsError(
            f"{path.name}: diffusers' naming has no keys for {kinds} of {len(layers)} layers; make "
            "them LoRA first with `lorasmith lora resize FILE --rank N`, DoRA with --base MODEL"
        )
    return {module: layer for name, layer in layers.items() if (module := parse_kohya_name(name))}


def _is_writable(layer: Layer) -> bool:
    """Tell a kind that PEFT has: LoRA, and DoRA of it with lengths along the output."""
    if isinstance(layer, DoraLayer):
        return isinstance(layer.inner, LoraLayer) and not layer.on_input
    return isinstance(layer, LoraLayer)


def _factors(layer: Layer) -> tuple[LoraLayer, torch.Tensor | None]:
    """Return a writable layer's factors, and DoRA's lengths as PEFT shapes them.

    They are ``[out]``, of convolutions ``[1, out, 1, 1]``.
    """
    if isinstance(layer, LoraLayer):
        return layer, None
    if not isinstance(layer, DoraLayer) or not isinstance(layer.inner, LoraLayer):
        raise WeightsError(f"{layer.kind} has no two factors")
    extra = layer.inner.down.ndim - 2
    lengths = layer.magnitude.reshape(1, -1, *[1] * extra) if extra else layer.magnitude
    return layer.inner, lengths


def _folded(layer: LoraLayer) -> LoraLayer:
    up = (layer.up.double() * (layer.alpha / layer.rank)).to(layer.up.dtype)
    return LoraLayer(layer.down, up, float(layer.rank))
