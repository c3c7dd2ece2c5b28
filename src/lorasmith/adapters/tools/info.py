"""A summary of a LoRA file: family, ranks, alphas and norms by block."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorasmith.adapters.files.lora_family import detect_lora_family
from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.files.unknown_keys import count_unknown_keys
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.naming.parse_layer_name import parse_layer_name
from lorasmith.adapters.naming.unet_blocks import block_sort_key

_DIFFUSERS = re.compile(r"lora_unet_(?P<side>down|up)_blocks_(?P<level>\d+)_")
_SGM = re.compile(r"lora_unet_(?P<side>input|output)_blocks_(?P<index>\d+)_")


@dataclass(frozen=True)
class BlockInfo:
    """The adapters of one block."""

    block: str
    """``down.1``, ``mid``, ``up.0``; IN04 and OUT05 in SDXL; or a text encoder."""
    layers: int
    """Number of adapters."""
    ranks: tuple[int, ...]
    """The ranks that occur, rising."""
    alphas: tuple[float, ...]
    """The alphas that occur, rising."""
    parameters: int
    """Number of elements in all tensors."""
    norm: float
    """Frobenius norm of the change of all weights together."""
    largest_norm: float
    """The largest norm of one layer."""


@dataclass(frozen=True)
class LoraInfo:
    """A summary of a LoRA file."""

    family: str | None
    """The family of models that it is for, if it can be found out."""
    family_source: str
    """What shows the family: ``metadata``, ``names``, ``shapes``, or nothing."""
    blocks: tuple[BlockInfo, ...]
    """Its blocks, from the input to the output."""
    total: BlockInfo
    """All blocks together."""
    dtypes: tuple[str, ...]
    """The dtypes of its tensors."""
    kinds: tuple[str, ...]
    """The kinds of its layers (LoRA, DoRA, LoHa, LoKr, ...), the most frequent first."""
    key_formats: tuple[str, ...]
    """The formats of its keys."""
    embeddings: int
    """Number of bundled textual inversion embeddings."""
    unknown_tensors: dict[str, int]
    """Numbers of tensors that are not understood, by what they are: biases, norms, ..."""
    unknown_layers: tuple[str, ...]
    """Names of layers that no Stable Diffusion model has."""


def summarize_lora(file: LoraFile) -> LoraInfo:
    """Return a summary of a LoRA file."""
    groups: dict[str, list[AdapterLayer]] = {}
    for name, layer in file.layers.items():
        groups.setdefault(block_name(name), []).append(layer)
    family, family_source = detect_lora_family(file)
    layers = list(file.layers.values())
    dtypes = {
        str(tensor.dtype).removeprefix("torch.")
        for layer in layers
        for tensor in layer.tensors().values()
    }
    kinds = Counter(layer.kind for layer in layers).most_common()
    return LoraInfo(
        family,
        family_source,
        tuple(_block_info(block, groups[block]) for block in sorted(groups, key=block_sort_key)),
        _block_info("all", layers),
        tuple(sorted(dtypes)),
        tuple(kind for kind, _ in kinds),
        file.key_formats,
        len(file.embeddings),
        count_unknown_keys(file.unknown_keys),
        tuple(name for name in file.layers if parse_layer_name(name) is None),
    )


def block_name(name: str) -> str:
    """Return the block of a layer by its kohya name."""
    for prefix, part in (
        ("lora_te1_", "text_encoder"),
        ("lora_te2_", "text_encoder_2"),
        ("lora_te_", "text_encoder"),
    ):
        if name.startswith(prefix):
            return part
    if name.startswith(("lora_unet_mid_block_", "lora_unet_middle_block_")):
        return "mid"
    if match := _DIFFUSERS.match(name):
        return f"{match['side']}.{match['level']}"
    if match := _SGM.match(name):
        return f"{'IN' if match['side'] == 'input' else 'OUT'}{int(match['index']):02d}"
    return "other"


def _block_info(block: str, layers: Sequence[AdapterLayer]) -> BlockInfo:
    norms = torch.tensor([layer.delta_norm() for layer in layers], dtype=torch.float64)
    return BlockInfo(
        block,
        len(layers),
        tuple(sorted({layer.rank for layer in layers})),
        tuple(sorted({layer.alpha for layer in layers})),
        sum(tensor.numel() for layer in layers for tensor in layer.tensors().values()),
        float(norms.norm()),
        float(norms.max()),
    )
