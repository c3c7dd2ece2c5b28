"""Writing LoRA files in diffusers' key format: ``PATH.lora_A.weight``, ``PATH.lora_B.weight``.

Alphas are not among the tensors but in the metadata, from which diffusers rebuilds its adapters.
Programs that do not read the metadata use alpha = rank; for them the scale can be folded into the
factors.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from lorasmith.adapters.files.lora_file import write_tensors
from lorasmith.adapters.files.peft_config import METADATA_KEY, build_peft_metadata
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.kinds.lora import LoraLayer, as_peft
from lorasmith.adapters.naming.parse_layer_name import LayerPath, parse_layer_name
from lorasmith.core.errors import WeightsError


def save_diffusers_file(
    path: Path,
    layers: Mapping[str, AdapterLayer],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    fold_alpha: bool = False,
    embeddings: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a LoRA file in diffusers' key format, atomically.

    Args:
        path: the file.
        layers: adapters by kohya name.
        metadata: see `lorasmith.adapters.files.metadata`; diffusers' own entry is added.
        dtype: of the factors in the file; None keeps each tensor's own.
        fold_alpha: multiply the factors by alpha / rank, so that alpha is the rank everywhere.
        embeddings: textual inversion embeddings by key, which are written as they are.

    Raises:
        WeightsError: layers are of kinds that PEFT does not have, or have names that no Stable
            Diffusion has; the message has counts. Or see `save_lora_file`.
        OutputError: the file cannot be written.
    """
    paths = _layer_paths(path, layers)
    entries = {paths[name]: entry for name, entry in _peft_layers(path, layers).items()}
    if fold_alpha:
        entries = {key: (_fold_alpha(lora), lengths) for key, (lora, lengths) in entries.items()}
    tensors: dict[str, torch.Tensor] = {}
    for layer_path, (lora, magnitude) in entries.items():
        tensors[f"{layer_path.diffusers_name}.lora_A.weight"] = lora.down
        tensors[f"{layer_path.diffusers_name}.lora_B.weight"] = lora.up
        if magnitude is not None:
            tensors[f"{layer_path.diffusers_name}.lora_magnitude_vector.weight"] = magnitude
    metadata = {**metadata, METADATA_KEY: build_peft_metadata(entries)}
    write_tensors(path, layers, tensors, metadata, dtype, embeddings)


def _layer_paths(path: Path, layers: Mapping[str, AdapterLayer]) -> dict[str, LayerPath]:
    paths = {name: parse_layer_name(name) for name in layers}
    unknown = [name for name, layer_path in paths.items() if layer_path is None]
    if unknown:
        raise WeightsError(
            f"{path.name}: {len(unknown)} of {len(layers)} layers have names that no Stable "
            f"Diffusion has, first {unknown[0]}; not saved"
        )
    return {name: layer_path for name, layer_path in paths.items() if layer_path}


def _peft_layers(
    path: Path, layers: Mapping[str, AdapterLayer]
) -> dict[str, tuple[LoraLayer, torch.Tensor | None]]:
    """Return each layer's factors, and DoRA's magnitude or None."""
    entries = {name: as_peft(layer) for name, layer in layers.items()}
    unsupported = Counter(layers[name].kind for name, entry in entries.items() if entry is None)
    if unsupported:
        kinds = ", ".join(f"{count} {kind}" for kind, count in unsupported.items())
        raise WeightsError(
            f"{path.name}: diffusers' key format has no keys for {kinds} of {len(layers)} layers; "
            "make them LoRA first with `lorasmith lora resize FILE --rank N`, DoRA with --base "
            "MODEL"
        )
    return {name: entry for name, entry in entries.items() if entry}


def _fold_alpha(lora: LoraLayer) -> LoraLayer:
    up = (lora.up.double() * lora.scale).to(lora.up.dtype)
    return LoraLayer(lora.down, up, float(lora.rank))
