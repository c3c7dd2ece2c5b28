"""A fresh tiny model, and LoRA files for it."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.layer_names import find_layer_refs
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.models.model import Model

MakeLora = Callable[..., LoraFile]


@pytest.fixture
def make_lora(model: Model) -> MakeLora:
    """Build a LoRA with random factors for layers of the model, by a part of their names."""

    def make(parts: Iterable[str] = ("_to_",), rank: int = 3, seed: int = 0) -> LoraFile:
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for name, ref in find_layer_refs(model).items():
            if any(part in name for part in parts):
                shape = layer_weight(ref.layer).shape
                down = torch.randn(rank, *shape[1:], generator=generator) * 0.2
                up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) * 0.2
                layers[name] = LoraLayer(down, up, 2.0)
        return LoraFile(Path("some.safetensors"), layers, {})

    return make
