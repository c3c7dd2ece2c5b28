"""When a LoRA file is stored in float16, and when in float32."""

import warnings
from pathlib import Path

import pytest
import torch

from lorasmith.adapters.files.lora_file import load_lora_file, save_lora_file
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.kinds.dora import DoraLayer
from lorasmith.adapters.kinds.loha import LohaLayer
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.core.errors import LorasmithWarning

FIRST, SECOND = "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_conv_in"


def lora(size: float, seed: int = 0) -> LoraLayer:
    """A layer in float64 whose up matrix has elements of a given size."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    up = size * torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return LoraLayer(down, up, 4.0)


def stored_dtype(path: Path, layers: dict[str, AdapterLayer]) -> torch.dtype:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_lora_file(path, layers, {})
    dtypes = {t.dtype for la in load_lora_file(path).layers.values() for t in la.tensors().values()}
    (dtype,) = dtypes
    return dtype


@pytest.mark.parametrize("size", [1e-9, 1e-7])
def test_layer_that_underflows_does_not_count_beside_a_large_one(
    tmp_path: Path, size: float
) -> None:
    path = tmp_path / "some.safetensors"
    assert stored_dtype(path, {FIRST: lora(0.1), SECOND: lora(size, seed=1)}) == torch.float16


@pytest.mark.parametrize(
    "layers",
    [
        {FIRST: lora(1e-9), SECOND: lora(1e-9, seed=1)},
        {FIRST: lora(1e6), SECOND: lora(0.1, seed=1)},
        {FIRST: lora(1e-8), SECOND: lora(2e-8, seed=1)},
    ],
    ids=["underflow", "overflow", "few bits"],
)
def test_lora_that_float16_cannot_represent_is_stored_in_float32(
    tmp_path: Path, layers: dict[str, AdapterLayer]
) -> None:
    path = tmp_path / "some.safetensors"
    with pytest.warns(LorasmithWarning, match="do not fit float16; saved as float32"):
        save_lora_file(path, layers, {})
    for name, layer in load_lora_file(path).layers.items():
        assert all(tensor.dtype == torch.float32 for tensor in layer.tensors().values())
        torch.testing.assert_close(layer.delta(), layers[name].delta(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0])
def test_rounding_error_is_that_of_the_dense_change(size: float) -> None:
    layer = lora(size)
    ((error, norm),) = layer.rounding_errors(torch.float16)
    factors = (layer.down, layer.up)
    exact = layer.up @ layer.down
    down, up = (factor.half().double() for factor in factors)
    assert error == pytest.approx(float((up @ down - exact).square().sum()), rel=1e-9)
    assert norm == pytest.approx(float(exact.square().sum()), rel=1e-9)


def test_rounding_error_of_other_kinds_is_measured() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)}
    parts = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    ((error, norm),) = LohaLayer(parts, 2.0).rounding_errors(torch.float16)
    assert 0 < error < 1e-6 * norm
    lost = LohaLayer(parts | {"hada_w1_a": 1e-9 * parts["hada_w1_a"]}, 2.0)
    ((error, norm),) = lost.rounding_errors(torch.float16)
    assert error == pytest.approx(norm)


def test_magnitudes_of_dora_do_not_hide_a_lost_direction(tmp_path: Path) -> None:
    layer = DoraLayer(lora(1e-9), torch.ones(8), on_input=False)
    with pytest.warns(LorasmithWarning, match="saved as float32"):
        save_lora_file(tmp_path / "some.safetensors", {FIRST: layer}, {})
    retained = DoraLayer(lora(0.1), torch.ones(8), on_input=False)
    assert stored_dtype(tmp_path / "kept.safetensors", {FIRST: retained}) == torch.float16
