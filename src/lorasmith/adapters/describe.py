"""What a LoRA file holds, in brief: family, ranks, alphas and norms by block."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorasmith.adapters.formats import LoraFile, LoraLayer
from lorasmith.models.family import FAMILIES, Family

_DIFFUSERS = re.compile(r"lora_unet_(?P<side>down|up)_blocks_(?P<level>\d+)_")
_SGM = re.compile(r"lora_unet_(?P<side>input|output)_blocks_(?P<number>\d+)_")
_XL = ("lora_te1_", "lora_te2_", "lora_unet_input_blocks_", "lora_unet_output_blocks_",
       "lora_unet_middle_block_")  # fmt: skip
_TEXT_WIDTHS: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the text that cross-attention of published models reads."""


@dataclass(frozen=True)
class BlockFacts:
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
    largest: float
    """The largest norm of a single one."""


@dataclass(frozen=True)
class LoraFacts:
    """A LoRA file in brief."""

    family: Family | None
    """The family of models that it is for, where that can be told."""
    known_by: str
    """What tells the family: ``metadata``, ``names``, ``shapes``, or nothing."""
    blocks: tuple[BlockFacts, ...]
    """Its blocks, in the order of the data."""
    total: BlockFacts
    """All of them together."""
    dtypes: tuple[str, ...]
    """Number formats of the factors."""


def describe(file: LoraFile) -> LoraFacts:
    """Return what a LoRA file holds."""
    groups: dict[str, list[LoraLayer]] = {}
    for name, layer in file.layers.items():
        groups.setdefault(block_name(name), []).append(layer)
    family, known_by = family_of_file(file)
    blocks = [_facts(block, groups[block]) for block in sorted(groups, key=_order)]
    dtypes = {str(f.dtype).removeprefix("torch.") for la in file.layers.values() for f in la[:2]}
    total = _facts("all", list(file.layers.values()))
    return LoraFacts(family, known_by, tuple(blocks), total, tuple(sorted(dtypes)))


def family_of_file(file: LoraFile) -> tuple[Family | None, str]:
    """Return the family of models that a file is for, and what tells it."""
    version = file.metadata.get("ss_base_model_version", "")
    for family, facts in FAMILIES.items():
        if version in facts.versions or (family == "sdxl" and version.startswith("sdxl_")):
            return family, "metadata"
    if any(name.startswith(_XL) for name in file.layers):
        return "sdxl", "names"
    widths = {
        layer.down.shape[1] for name, layer in file.layers.items() if name.endswith("attn2_to_k")
    }
    known = {_TEXT_WIDTHS[width] for width in widths if width in _TEXT_WIDTHS}
    return (known.pop(), "shapes") if len(known) == 1 else (None, "")


def prediction_of_file(file: LoraFile) -> str | None:
    """Return what a file's base predicts, ``epsilon`` or ``v_prediction``, if the file says so.

    ``ss_base_model_version`` tells it of SD 2.x only; others' are alike for both.
    """
    told = file.metadata.get("modelspec.prediction_type")
    if told in ("epsilon", "v"):
        return "v_prediction" if told == "v" else "epsilon"
    version = file.metadata.get("ss_base_model_version")
    kinds = dict(zip(FAMILIES["sd2"].versions, ("epsilon", "v_prediction"), strict=True))
    return kinds.get(version) if version else None


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


def norm_of(layer: LoraLayer) -> float:
    """Return the Frobenius norm of (alpha / rank) B A, without making the product."""
    down, up = layer.down.flatten(1).double(), layer.up.flatten(1).double()
    square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)
    return abs(layer.alpha) / len(down) * float(square.sqrt())


def _facts(block: str, layers: Sequence[LoraLayer]) -> BlockFacts:
    norms = torch.tensor([norm_of(layer) for layer in layers], dtype=torch.float64)
    return BlockFacts(
        block,
        len(layers),
        tuple(sorted({len(layer.down) for layer in layers})),
        tuple(sorted({layer.alpha for layer in layers})),
        sum(factor.numel() for layer in layers for factor in layer[:2]),
        float(norms.norm()),
        float(norms.max()),
    )


def _order(block: str) -> tuple[Any, ...]:
    starts = ("text_encoder", "down", "IN", "mid", "up", "OUT", "other")
    return next(n for n, start in enumerate(starts) if block.startswith(start)), block
