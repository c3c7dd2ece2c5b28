"""A tiny model and two LoRAs for it, with tags, gates and layers in several blocks."""

from pathlib import Path

import pytest
import torch

from helpers.lora_files import make_lora
from lorasmith.adapters.files.lora_file import load_lora_file, save_lora_file
from lorasmith.models.model import Model


def tagged_lora(
    model: Model, path: Path, tag: str, gate: str, seed: int, size: float = 0.3
) -> Path:
    """Write a LoRA of a tag whose effect is large."""
    make_lora(model, path, {"targets": "attention"}, size, seed)
    file = load_lora_file(path)
    metadata = {**file.metadata, "lorasmith.gate": gate, "lorasmith.tag": tag,
                "lorasmith.class": "person", "lorasmith.step": "7"}  # fmt: skip
    save_lora_file(path, file.layers, metadata, torch.float32)
    return path


@pytest.fixture(scope="session")
def loras(shared_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of the tags ``qqa`` (prompt gate) and ``qqb`` (no gate)."""
    folder = tmp_path_factory.mktemp("tagged")
    return (
        tagged_lora(shared_model, folder / "qqa.safetensors", "qqa", "prompt", 1),
        tagged_lora(shared_model, folder / "qqb.safetensors", "qqb", "none", 2),
    )
