"""What a LoRA file holds, in brief: family, ranks, alphas and norms by block."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorasmith.adapters.files.layer_kinds import DoraLayer, Layer, LoraLayer
from lorasmith.adapters.files.lora_family import detect_lora_family
from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.naming.unet_blocks import block_sort_key

_DIFFUSERS = re.compile(r"lora_unet_(?P<side>down|up)_blocks_(?P<level>\d+)_")
_SGM = re.compile(r"lora_unet_(?P<side>input|output)_blocks_(?P<number>\d+)_")


@dataclass(frozen=True)
class BlockInfo:
    """The adapters of one block."""

    block: str
    """``down.1``, ``mid``, ``up.0``; IN04 and OUT05 in SDXL; or a text encoder."""
    layers: int
    """How many there are."""
    ranks: tuple[int, ...]
    """Their ranks, each once, rising."""
    alphas: tuple[float, ...]
    """Their alphas, likewise."""
    parameters: int
    """Numbers in their factors."""
    norm: float
    """Frobenius norm of what all of them add to the weights."""
    largest_norm: float
    """The largest norm of a single one."""


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA file in brief."""

    family: str | None
    """The family of models that it is for, where that can be told."""
    family_source: str
    """What tells the family: ``metadata``, ``names``, ``shapes``, or nothing."""
    blocks: tuple[BlockInfo, ...]
    """Its blocks, in the order of the data."""
    total: BlockInfo
    """All of them together."""
    dtypes: tuple[str, ...]
    """Number formats of the factors."""
    kinds: tuple[str, ...]
    """What its layers are: LoRA, DoRA, LoHa, LoKr, ...; the commonest first."""
    key_formats: tuple[str, ...]
    """How its keys are spelled."""


def summarize_lora(file: LoraFile) -> LoraInfo:
    """Return what a LoRA file holds."""
    groups: dict[str, list[Layer]] = {}
    for name, layer in file.layers.items():
        groups.setdefault(block_name(name), []).append(layer)
    family, known_by = detect_lora_family(file)
    blocks = [_facts(block, groups[block]) for block in sorted(groups, key=block_sort_key)]
    layers = list(file.layers.values())
    dtypes = {
        str(one.dtype).removeprefix("torch.") for la in layers for one in la.tensors().values()
    }
    kinds = tuple(kind for kind, _ in Counter(layer.kind for layer in layers).most_common())
    total = _facts("all", layers)
    return LoraInfo(
        family, known_by, tuple(blocks), total, tuple(sorted(dtypes)), kinds, file.key_formats
    )


def block_name(name: str) -> str:
    """Return the block of a layer by its name in files."""
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
        return f"{'IN' if match['side'] == 'input' else 'OUT'}{int(match['number']):02d}"
    return "other"


def delta_norm(layer: Layer) -> float:
    """Return the Frobenius norm of what a layer adds; of DoRA, of what changes the direction.

    That of (alpha / rank) B A is found without making the product.
    """
    if isinstance(layer, DoraLayer):
        return delta_norm(layer.inner)
    if not isinstance(layer, LoraLayer):
        return float(layer.dense().double().norm())
    down, up = layer.down.flatten(1).double(), layer.up.flatten(1).double()
    square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)
    return abs(layer.alpha) / len(down) * float(square.sqrt())


def _facts(block: str, layers: Sequence[Layer]) -> BlockInfo:
    norms = torch.tensor([delta_norm(layer) for layer in layers], dtype=torch.float64)
    return BlockInfo(
        block,
        len(layers),
        tuple(sorted({layer.rank for layer in layers})),
        tuple(sorted({layer.alpha for layer in layers})),
        sum(tensor.numel() for layer in layers for tensor in layer.tensors().values()),
        float(norms.norm()),
        float(norms.max()),
    )
