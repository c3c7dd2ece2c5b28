"""LoRA files as a training leaves them, without the training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorasmith.adapters.files.lora_file import save_lora_file
from lorasmith.adapters.files.metadata import LoraMetadata, build_metadata
from lorasmith.adapters.injection.trainable import export_layers, inject_trainable, summarize_parts
from lorasmith.adapters.nn.lora import LoraAdapter
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.adapters.targeting.targets import resolve_targets
from lorasmith.config.lora import LoraConfig
from lorasmith.config.optimization import TrainerConfig
from lorasmith.models.families.family import detect_family
from lorasmith.models.model import Model

RATES = TrainerConfig(learning_rate=1e-3, text_encoder_lr=1e-3)


def wrap_layer(base: nn.Module, *adapters: LoraAdapter) -> LoraWrapper:
    """Put adapters on a layer."""
    wrapper = LoraWrapper(base)
    wrapper.adapters.extend(adapters)
    return wrapper


def make_lora(
    model: Model, path: Path, changes: dict[str, Any], size: float, seed: int = 1, **fields: Any
) -> Path:
    """Write a LoRA whose factors moved as in training; the model is left as it was.

    ``fields`` are those of `LoraMetadata`: what the file says about itself.
    """
    lora = LoraConfig.model_validate({"rank": 4, "alpha": 2.0, **changes})
    trainable = inject_trainable(resolve_targets(model, lora, RATES), lora, seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in trainable.parameters():
            factor += size * torch.randn(factor.shape, generator=generator)
    predicts = model.scheduler_config.get("prediction_type", "epsilon")
    lora_metadata = LoraMetadata(
        "ink",
        "ink",
        detect_family(model).name,
        predicts,
        summarize_parts(trainable),
        64,
        {"ink": 1},
        "pictures",
    )
    metadata = build_metadata(replace(lora_metadata, **fields))
    save_lora_file(path, export_layers(trainable), metadata, torch.float32)
    trainable.detach()
    return path
