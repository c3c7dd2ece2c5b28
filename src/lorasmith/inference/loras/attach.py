"""Putting a LoRA that somebody asks for into the model, at the strength asked for in each place."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.naming.block_weights import parse_block_weights
from lorasmith.adapters.naming.layer_names import UNET, LayerRef
from lorasmith.adapters.nn.inject import AttachedLora, attach_lora
from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompts.lora_syntax import LoraRequest
from lorasmith.models.family import detect_family

if TYPE_CHECKING:
    from lorasmith.models.load import Model


def attach_requested_lora(
    model: "Model", path: Path, mention: LoraRequest, strict: bool = True
) -> AttachedLora:
    """Put a file's layers into a model, each with the weight that a mention gives to its place.

    Raises:
        WeightsError: see `attach_lora`.
        ConfigError: its block weights are for another family.
    """
    weight_at = _weight_at(model, mention)
    attached = attach_lora(model, load_lora_file(path), strict=strict)
    attached.set_strengths(weight_at)
    return attached


def _weight_at(model: "Model", mention: LoraRequest) -> Callable[[LayerRef], float]:
    blocks = None
    if mention.lbw:
        is_sdxl = detect_family(model) in ("sdxl", "sdxl-refiner")
        try:
            blocks = parse_block_weights(mention.lbw).for_family(is_sdxl)
        except ConfigError as error:
            raise ConfigError(f"LoRA {mention.name}: {error}") from error

    def weight_at(place: LayerRef) -> float:
        strength = mention.effective_unet_weight if place.part == UNET else mention.weight
        return strength if blocks is None else strength * blocks.weight_of(place.block)

    return weight_at
