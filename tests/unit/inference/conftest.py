"""Pipelines that the inference tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.doubles import RecordingPipeline
from lorasmith.core.safetensors_io import save_tensors
from lorasmith.inference.pipeline import Pipeline, load_pipeline
from lorasmith.models.load import load_model


@pytest.fixture(scope="session")
def pipe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    loras = tmp_path_factory.mktemp("loras")
    pipe = load_pipeline(tiny_model, device="cpu", lora_dir=loras)
    for seed, name in enumerate(("one", "two")):
        write_lora(pipe, loras / f"{name}.safetensors", seed)
    return pipe


@pytest.fixture(scope="session")
def open_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RecordingPipeline]:
    """Open a model's folder in a dtype, once for each; tests leave the pipeline as it was."""
    pipelines: dict[tuple[Path, torch.dtype], RecordingPipeline] = {}

    def open_once(folder: Path, dtype: torch.dtype = torch.float32) -> RecordingPipeline:
        if (folder, dtype) not in pipelines:
            model = load_model(folder).to(torch.device("cpu"), dtype)
            pipelines[folder, dtype] = RecordingPipeline(model, tmp_path_factory.mktemp("loras"))
        return pipelines[folder, dtype]

    return open_once


def write_lora(pipe: Pipeline, path: Path, seed: int) -> None:
    """A kohya file of rank 2 with large random factors on attention of the U-Net and the text."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in pipe.model.unet.named_modules():
        if name.endswith(("attn2.to_v", "attn1.to_q")):
            key = "lora_unet_" + name.replace(".", "_")
            tensors |= _factors(key, layer.in_features, layer.out_features, random)
    key = "lora_te_text_model_encoder_layers_0_self_attn_v_proj"
    tensors |= _factors(key, 16, 16, random)
    save_tensors(path, tensors, {"ss_base_model_version": "sd_v1"})


def _factors(
    key: str, inside: int, outside: int, random: torch.Generator
) -> dict[str, torch.Tensor]:
    return {
        f"{key}.lora_down.weight": torch.randn(2, inside, generator=random),
        f"{key}.lora_up.weight": torch.randn(outside, 2, generator=random),
        f"{key}.alpha": torch.tensor(2.0),
    }
