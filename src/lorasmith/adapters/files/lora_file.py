"""LoRA files: reading every spelling with every key accounted for, and writing kohya's.

A layer NAME is written as ``NAME.lora_down.weight``, ``NAME.lora_up.weight`` and ``NAME.alpha``;
other kinds have other tensors. The scale is alpha / rank, and a missing alpha means alpha = rank.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from lorasmith.adapters.files.key_formats import ALPHA
from lorasmith.adapters.files.layer_kinds import DoraLayer, Layer, LoraLayer, OtherLayer
from lorasmith.adapters.files.lora_parser import parse_layers
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.core.safetensors_io import Tensors, load_metadata, load_tensors, save_tensors

__all__ = ["Layer", "LoraFile", "LoraLayer", "compute_hashes", "load_lora_file", "save_lora_file"]

_LOSS_IN_HALF = 0.01
"""Largest relative rounding error of a tensor at which float16 is still good enough."""


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds."""

    path: Path
    """Where it was read."""
    layers: Mapping[str, Layer]
    """Adapters by their names in kohya's underscores: ``lora_unet_mid_block_..._to_q``. Those of
    SDXL are sgm's names or diffusers', as in the file."""
    metadata: dict[str, str]
    """The metadata block; empty when the file has none."""
    key_formats: tuple[str, ...] = ("kohya",)
    """How its keys are spelled: ``kohya``, ``diffusers``, ``early diffusers``."""


def load_lora_file(path: Path) -> LoraFile:
    """Read a LoRA file. Every spelling is read, also several in one file.

    Raises:
        WeightsError: missing, damaged, not a LoRA, of an unsupported kind, with an unfinished
            pair of factors or with values that are not finite; keys and counts are named.
    """
    tensors, metadata = load_tensors(path), load_metadata(path)
    layers, spellings = parse_layers(path, tensors, metadata)
    return LoraFile(path, layers, metadata, spellings)


def save_lora_file(
    path: Path,
    layers: Mapping[str, Layer],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = torch.float16,
) -> None:
    """Write a LoRA file in kohya's spelling, atomically.

    The hash of its contents is added to the metadata. Where ``dtype`` cannot hold the values
    (overflow, or tiny ones rounded away) float32 is written instead, with a warning.

    Args:
        path: the file.
        layers: adapters by file name (`lorasmith.adapters.naming.layer_names.unet_name`).
        metadata: see `lorasmith.adapters.files.metadata`.
        dtype: of the factors on disk; None leaves each as it is. Alphas are always float32.

    Raises:
        WeightsError: there are no layers, they are all zero, or a value is not finite.
        OutputError: the file cannot be written.
    """
    tensors: Tensors = {}
    for name, layer in layers.items():
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in layer.tensors().items()}
        if layer.rank:
            tensors[f"{name}.{ALPHA}"] = torch.tensor(layer.alpha, dtype=torch.float32)
    write_tensors(path, layers, tensors, metadata, dtype)


def write_tensors(
    path: Path,
    layers: Mapping[str, Layer],
    tensors: Tensors,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
) -> None:
    """Write the tensors that some layers have in some spelling; see `save_lora_file`."""
    _refuse_useless(path, layers)
    numbers = {key: one for key, one in tensors.items() if not key.endswith(ALPHA)}
    if dtype is not None and not all(_holds(dtype, tensor) for tensor in numbers.values()):
        warnings.warn(
            f"{path.name}: some values do not fit {_plain(dtype)}; saved as float32",
            LorasmithWarning,
            stacklevel=3,
        )
        dtype = torch.float32
    stored = tensors | {key: _on_disk(tensor, dtype) for key, tensor in numbers.items()}
    save_tensors(path, stored, {**metadata, **compute_hashes(stored)})


def compute_hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the metadata entries with the SHA-256 of a file's tensor data.

    User interfaces identify a LoRA by the hash of everything behind the safetensors header, so
    that editing its metadata does not change it.
    """
    blob = save(dict(tensors))
    start = 8 + int.from_bytes(blob[:8], "little")
    digest = hashlib.sha256(memoryview(blob)[start:]).hexdigest()
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


def _refuse_useless(path: Path, layers: Mapping[str, Layer]) -> None:
    for name, layer in layers.items():
        if not all(bool(torch.isfinite(one).all()) for one in layer.tensors().values()):
            raise WeightsError(f"{path.name}: {name} holds values that are not finite; not saved")
    if not any(_does_something(layer) for layer in layers.values()):
        raise WeightsError(
            f"{path.name}: all {len(layers)} layers are zero, so the LoRA would do nothing; not "
            "saved (of a training: train longer or with a higher train.learning_rate)"
        )


def _does_something(layer: Layer) -> bool:
    """Tell whether a layer changes its weight; DoRA's lengths may, whatever the factors are."""
    if isinstance(layer, DoraLayer):
        return True
    if isinstance(layer, OtherLayer):
        return bool(layer.dense().any())
    rows, columns = layer.down.flatten(1).any(dim=1), layer.up.flatten(1).any(dim=0)
    return bool(layer.alpha) and bool((rows & columns).any())


def _holds(dtype: torch.dtype, factor: torch.Tensor) -> bool:
    """Tell whether a tensor survives rounding to a dtype."""
    exact = factor.detach().double()
    error = (exact.to(dtype).double() - exact).norm()
    return bool(error <= _LOSS_IN_HALF * exact.norm())


def _on_disk(factor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return factor.detach().to("cpu", dtype or factor.dtype).contiguous()


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
