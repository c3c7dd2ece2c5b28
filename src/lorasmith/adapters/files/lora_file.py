"""LoRA files: reading every key format with every key accounted for, and writing kohya's.

A layer NAME is stored as ``NAME.lora_down.weight``, ``NAME.lora_up.weight`` and ``NAME.alpha``;
other kinds of adapters have other tensors. The scale is alpha / rank; a missing alpha is the rank.
"""

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save

from lorasmith.adapters.files.key_formats import ALPHA
from lorasmith.adapters.files.lora_parser import parse_layers
from lorasmith.adapters.files.unknown_keys import (
    count_unknown_keys,
    example_keys,
    explain_unknown_keys,
)
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.core.safetensors_io import SafetensorsFile, Tensors, save_tensors

_ROUNDING_TOLERANCE = 0.01
"""Largest rounding error of all layers together, relative to their norm, at which a file is stored
in float16."""


@dataclass(frozen=True)
class LoraFile:
    """The contents of a LoRA file."""

    path: Path
    """Where it was read."""
    layers: Mapping[str, AdapterLayer]
    """Adapters by kohya name (with underscores): ``lora_unet_mid_block_..._to_q``. SDXL layers have
    sgm's names or diffusers', as in the file."""
    metadata: dict[str, str]
    """The metadata block; empty if the file has none."""
    key_formats: tuple[str, ...] = ("kohya",)
    """The formats of its keys: ``kohya``, ``diffusers``, ``early diffusers``."""
    embeddings: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Textual inversion embeddings that are bundled with it, by key (``bundle_emb.NAME.clip_l``).
    They are kept in files that are made from it, and not used otherwise."""
    unknown_keys: tuple[str, ...] = ()
    """Keys of tensors that are not understood, and were not read."""


def load_lora_file(path: Path, ignore_unknown: bool = False) -> LoraFile:
    """Read a LoRA file in any key format, or several in one file.

    Args:
        path: the file.
        ignore_unknown: leave out tensors that are not understood, with a warning that has counts.

    Raises:
        WeightsError: the file is missing, damaged, no LoRA, of an unsupported kind, has unknown
            tensors, an incomplete pair of factors or values that are not finite. The message has
            keys and counts.
    """
    stored = SafetensorsFile(path)
    file = _understand(stored)
    if not file.unknown_keys:
        return file
    examples = example_keys(file.unknown_keys)
    if not ignore_unknown:
        raise WeightsError(
            f"{path}: {len(file.unknown_keys)} of {len(stored.header.tensors)} keys are no LoRA "
            f"keys{examples}; "
            f"{explain_unknown_keys(file.unknown_keys, has_lora_keys=True)}; --ignore-unknown "
            "(generate and fuse: --allow-mismatch) leaves them out"
        )
    counts = count_unknown_keys(file.unknown_keys)
    warnings.warn(
        f"{path}: left out {', '.join(f'{count} {kind}' for kind, count in counts.items())}"
        f"{examples}; its {len(file.layers)} layers are used, as you asked",
        LorasmithWarning,
        stacklevel=2,
    )
    return file


def read_lora_file(path: Path) -> LoraFile:
    """Read what is understood of a LoRA file; `LoraFile.unknown_keys` has the rest.

    Raises:
        WeightsError: as `load_lora_file`, but not for unknown tensors beside LoRA layers.
    """
    return _understand(SafetensorsFile(path))


def _understand(file: SafetensorsFile) -> LoraFile:
    parsed = parse_layers(file)
    return LoraFile(
        file.path,
        parsed.layers,
        file.header.metadata,
        parsed.key_formats,
        parsed.embeddings,
        parsed.unknown_keys,
    )


def save_lora_file(
    path: Path,
    layers: Mapping[str, AdapterLayer],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = torch.float16,
    embeddings: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a LoRA file in kohya's key format, atomically.

    The hash of its contents is added to the metadata. If ``dtype`` cannot represent the LoRA
    (overflow, or a rounding error above 1 % of the LoRA as a whole), float32 is written instead,
    with a warning.

    Args:
        path: the file.
        layers: adapters by kohya name (`lorasmith.adapters.naming.layer_names.kohya_unet_name`).
        metadata: see `lorasmith.adapters.files.metadata`.
        dtype: of the factors in the file; None keeps each tensor's own. Alphas are float32.
        embeddings: textual inversion embeddings by key, which are written as they are.

    Raises:
        WeightsError: there are no layers, all are zero, or a value is not finite.
        OutputError: the file cannot be written.
    """
    tensors: Tensors = {}
    for name, layer in layers.items():
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in layer.tensors().items()}
        if layer.rank:
            tensors[f"{name}.{ALPHA}"] = torch.tensor(layer.alpha, dtype=torch.float32)
    write_tensors(path, layers, tensors, metadata, dtype, embeddings)


def write_tensors(
    path: Path,
    layers: Mapping[str, AdapterLayer],
    tensors: Tensors,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
    embeddings: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the tensors that layers have in some key format; see `save_lora_file`."""
    _refuse_useless(path, layers)
    if dtype is not None and not _can_represent(dtype, layers.values()):
        warnings.warn(
            f"{path.name}: some values do not fit {_dtype_name(dtype)}; saved as float32",
            LorasmithWarning,
            stacklevel=3,
        )
        dtype = torch.float32
    stored = {
        key: tensor if key.endswith(ALPHA) else _to_storage(tensor, dtype)
        for key, tensor in tensors.items()
    }
    stored |= embeddings or {}
    save_tensors(path, stored, {**metadata, **compute_hashes(stored)})


def compute_hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the metadata entries with the SHA-256 of a file's tensor data.

    User interfaces identify a LoRA by the hash of everything after the safetensors header, so that
    editing the metadata does not change it.
    """
    blob = save(dict(tensors))
    start = 8 + int.from_bytes(blob[:8], "little")
    digest = hashlib.sha256(memoryview(blob)[start:]).hexdigest()
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


def _refuse_useless(path: Path, layers: Mapping[str, AdapterLayer]) -> None:
    for name, layer in layers.items():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in layer.tensors().values()):
            raise WeightsError(f"{path.name}: {name} holds values that are not finite; not saved")
    if all(layer.is_zero() for layer in layers.values()):
        raise WeightsError(
            f"{path.name}: all {len(layers)} layers are zero, so the LoRA would do nothing; not "
            "saved (after training: train longer or with a higher train.learning_rate)"
        )


def _can_represent(dtype: torch.dtype, layers: Iterable[AdapterLayer]) -> bool:
    """Return whether rounding to a dtype leaves the LoRA as a whole intact.

    Squared errors are summed over all layers: a layer whose values are lost counts only as much as
    it contributes to the LoRA.
    """
    totals: dict[int, tuple[float, float]] = {}
    for layer in layers:
        for index, (error, norm) in enumerate(layer.rounding_errors(dtype)):
            total_error, total_norm = totals.get(index, (0.0, 0.0))
            totals[index] = total_error + error, total_norm + norm
    return all(error <= _ROUNDING_TOLERANCE**2 * norm for error, norm in totals.values())


def _to_storage(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
