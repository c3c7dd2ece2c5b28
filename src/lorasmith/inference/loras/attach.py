"""Attaching a requested LoRA to the model with the weight of each layer."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.injection.inject import AttachedLora, attach_lora
from lorasmith.adapters.naming.block_weights import parse_block_weights
from lorasmith.adapters.naming.layer_names import UNET, LayerRef
from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompts.lora_request import LoraRequest
from lorasmith.models.families.family import detect_family

if TYPE_CHECKING:
    from lorasmith.models.model import Model


def attach_requested_lora(
    model: "Model", path: Path, request: LoraRequest, strict: bool = True
) -> AttachedLora:
    """Attach a file's layers to a model, each with the weight that a request gives it.

    Raises:
        WeightsError: see `attach_lora`.
        ConfigError: the block weights are for another family.
    """
    layer_weight = _make_layer_weight(model, request)
    file = load_lora_file(path, ignore_unknown=not strict)
    attached = attach_lora(model, file, strict=strict)
    attached.set_strengths(layer_weight)
    return attached


def _make_layer_weight(model: "Model", request: LoraRequest) -> Callable[[LayerRef], float]:
    block_weights = None
    if request.lbw:
        uses_sgm_names = detect_family(model).uses_sgm_names
        try:
            block_weights = parse_block_weights(request.lbw).for_family(uses_sgm_names)
        except ConfigError as error:
            raise ConfigError(f"LoRA {request.name}: {error}") from error

    def layer_weight(layer: LayerRef) -> float:
        weight = request.effective_unet_weight if layer.part == UNET else request.weight
        return weight if block_weights is None else weight * block_weights.weight_of(layer.block)

    return layer_weight
