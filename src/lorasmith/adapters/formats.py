"""LoRA files in sd-scripts ("kohya") naming: reading with every key accounted for, and writing.

A layer NAME is stored as ``NAME.lora_down.weight``, ``NAME.lora_up.weight`` and ``NAME.alpha``;
the scale is alpha / rank, and a missing alpha means alpha = rank.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save

from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.core.weights import Tensors, load_metadata, load_tensors, save_tensors

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"

_OTHER_KINDS = {
    ".lora_mid.": "LoCon with a middle factor",
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".dora_scale": "DoRA",
    ".lora_A.": "diffusers naming",
    ".lora.down.": "an early diffusers naming",
    ".diff": "full weight differences",
}
_LOSS_IN_HALF = 0.01
"""Largest relative rounding error of a tensor at which float16 is still good enough."""


class LoraLayer(NamedTuple):
    """The adapter of one layer as a file holds it."""

    down: torch.Tensor
    """``[r, in]`` or ``[r, in, k, k]``."""
    up: torch.Tensor
    """``[out, r]`` or ``[out, r, 1, 1]``."""
    alpha: float
    """The scale is alpha / r."""


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds."""

    path: Path
    """Where it was read."""
    layers: dict[str, LoraLayer]
    """Adapters by the names in the file, such as ``lora_unet_mid_block_..._to_q``."""
    metadata: dict[str, str]
    """The metadata block; empty when the file has none."""


def load_lora_file(path: Path) -> LoraFile:
    """Read a LoRA file.

    Raises:
        WeightsError: missing, damaged, not a LoRA, of an unsupported kind, with an unfinished
            pair of factors or with values that are not finite; keys and counts are named.
    """
    tensors = load_tensors(path)
    _refuse_strange_keys(path, tensors)
    names = dict.fromkeys(_split(key)[0] for key in tensors)
    if not names:
        raise WeightsError(f"{path}: holds no LoRA (it has no tensors)")
    layers = {name: _layer(path, name, tensors) for name in names}
    return LoraFile(path, layers, load_metadata(path))


def save_lora_file(
    path: Path,
    layers: Mapping[str, LoraLayer],
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a LoRA file atomically.

    The hash of its contents is added to the metadata. Where ``dtype`` cannot hold the values
    (overflow, or tiny ones rounded away) float32 is written instead, with a warning.

    Args:
        path: the file.
        layers: adapters by file name (`lorasmith.adapters.names.unet_name`).
        metadata: see `lorasmith.adapters.metadata`.
        dtype: of the factors on disk. Alphas are always float32.

    Raises:
        WeightsError: there are no layers, they are all zero, or a value is not finite.
        OutputError: the file cannot be written.
    """
    _refuse_useless(path, layers)
    if not all(_holds(dtype, factor) for layer in layers.values() for factor in layer[:2]):
        warnings.warn(
            f"{path.name}: some values do not fit {_plain(dtype)}; saved as float32",
            LorasmithWarning,
            stacklevel=2,
        )
        dtype = torch.float32
    tensors: Tensors = {}
    for name, layer in layers.items():
        tensors[name + DOWN] = _on_disk(layer.down, dtype)
        tensors[name + UP] = _on_disk(layer.up, dtype)
        tensors[name + ALPHA] = torch.tensor(layer.alpha, dtype=torch.float32)
    save_tensors(path, tensors, {**metadata, **hashes_of(tensors)})


def hashes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the metadata entries with the SHA-256 of a file's tensor data.

    User interfaces identify a LoRA by the hash of everything behind the safetensors header, so
    that editing its metadata does not change it.
    """
    blob = save(dict(tensors))
    start = 8 + int.from_bytes(blob[:8], "little")
    digest = hashlib.sha256(memoryview(blob)[start:]).hexdigest()
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


def _split(key: str) -> tuple[str, str]:
    """Return a key's layer name and suffix; the suffix is empty for a key that is not ours."""
    for suffix in (DOWN, UP, ALPHA):
        if key.endswith(suffix):
            return key.removesuffix(suffix), suffix
    return key, ""


def _refuse_strange_keys(path: Path, tensors: Tensors) -> None:
    strange = [key for key in tensors if not _split(key)[1]]
    if not strange:
        return
    kinds = [kind for part, kind in _OTHER_KINDS.items() if part in strange[0]]
    reason = f"it looks like {kinds[0]}, which is not supported" if kinds else "it is no LoRA file"
    raise WeightsError(
        f"{path}: {len(strange)} of {len(tensors)} keys are not LoRA keys in kohya naming, first "
        f"{strange[0]}; {reason}"
    )


def _layer(path: Path, name: str, tensors: Tensors) -> LoraLayer:
    missing = [suffix for suffix in (DOWN, UP) if name + suffix not in tensors]
    if missing:
        raise WeightsError(f"{path}: {name}{missing[0]} is missing; the file is incomplete")
    down, up = tensors[name + DOWN], tensors[name + UP]
    alpha = tensors.get(name + ALPHA, torch.tensor(float(down.shape[0] if down.ndim else 0)))
    shapes = f"down {list(down.shape)}, up {list(up.shape)}, alpha {list(alpha.shape)}"
    if down.ndim not in (2, 4) or up.ndim != down.ndim or alpha.numel() != 1:
        raise WeightsError(f"{path}: {name} has impossible shapes ({shapes})")
    if down.shape[0] != up.shape[1] or down.shape[0] == 0:
        raise WeightsError(f"{path}: {name} has factors of different rank ({shapes})")
    if not all(bool(torch.isfinite(part).all()) for part in (down, up, alpha)):
        raise WeightsError(f"{path}: {name} holds values that are not finite; the file is damaged")
    return LoraLayer(down, up, float(alpha))


def _refuse_useless(path: Path, layers: Mapping[str, LoraLayer]) -> None:
    for name, layer in layers.items():
        if not all(bool(torch.isfinite(factor).all()) for factor in layer[:2]):
            raise WeightsError(f"{path.name}: {name} holds values that are not finite; not saved")
    if not any(_does_something(layer) for layer in layers.values()):
        raise WeightsError(
            f"{path.name}: all {len(layers)} layers are zero, so the LoRA would do nothing; not "
            "saved: train longer or with a higher train.learning_rate"
        )


def _does_something(layer: LoraLayer) -> bool:
    """Tell whether some row of down and its column of up are both not zero."""
    rows, columns = layer.down.flatten(1).any(dim=1), layer.up.flatten(1).any(dim=0)
    return bool(layer.alpha) and bool((rows & columns).any())


def _holds(dtype: torch.dtype, factor: torch.Tensor) -> bool:
    """Tell whether a tensor survives rounding to a dtype."""
    exact = factor.detach().double()
    error = (exact.to(dtype).double() - exact).norm()
    return bool(error <= _LOSS_IN_HALF * exact.norm())


def _on_disk(factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return factor.detach().to("cpu", dtype).contiguous()


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
