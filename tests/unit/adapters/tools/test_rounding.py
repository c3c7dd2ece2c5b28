"""Rounding between number formats, told apart from training."""

from pathlib import Path

import pytest
import torch

from lorasmith.adapters.tools.extract import extract_difference
from lorasmith.adapters.tools.rounding import FORMATS, common_format, is_only_rounding
from lorasmith.core.errors import WeightsError
from lorasmith.models.load import load_model
from lorasmith.models.model import Model

FINE = (torch.float32, torch.float16, torch.bfloat16)


def weights(seed: int = 0) -> torch.Tensor:
    """Return float32 weights of all sizes, down to what is subnormal in float16, and zeros."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.empty(64, 64).uniform_(-8, 2, generator=generator)
    values = torch.randn(64, 64, generator=generator) * sizes
    values[0, :4] = 0.0
    return values


def saved(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.to(dtype).float()


@pytest.mark.parametrize("dtype", FORMATS)
def test_format_is_known_by_the_values(dtype: torch.dtype) -> None:
    others = [torch.zeros(4, 4), saved(weights(1), dtype), saved(weights(2), dtype)]
    assert common_format(others) == dtype
    assert common_format([*others, *(weights(seed) for seed in range(3))]) == torch.float32
    assert common_format([]) == torch.float32


PAIRS = [(coarse, fine) for coarse in FORMATS for fine in FINE if coarse != fine]


@pytest.mark.parametrize(("coarse", "fine"), PAIRS)
def test_same_weights_in_two_formats_differ_by_rounding(
    coarse: torch.dtype, fine: torch.dtype
) -> None:
    values = weights().clamp(-400, 400)  # what all formats can hold
    first, second = saved(values, coarse), saved(values, fine)
    assert is_only_rounding(first, second, coarse, fine)
    assert is_only_rounding(second, first, fine, coarse)
    assert is_only_rounding(saved(second, coarse), second, coarse, fine), "rounded twice"


@pytest.mark.parametrize("dtype", FORMATS)
def test_single_weight_beyond_rounding_is_a_difference(dtype: torch.dtype) -> None:
    values = weights().clamp(-400, 400)
    tuned = saved(values, dtype)
    step = torch.finfo(dtype).eps
    tuned[5, 5] = saved(torch.tensor(1.0 + 2 * step), dtype)
    values[5, 5] = 1.0
    assert not is_only_rounding(tuned, values, dtype, torch.float32)


def test_weights_in_one_format_differ_by_training() -> None:
    first = saved(weights(), torch.bfloat16)
    second = saved(first * (1 + 2.0**-7), torch.bfloat16)
    assert not is_only_rounding(first, second, torch.bfloat16, torch.bfloat16)
    assert is_only_rounding(first, first, torch.bfloat16, torch.bfloat16)


def test_round_numbers_tell_no_format() -> None:
    """Norms start at 1, which all formats have."""
    ones = torch.ones(8)
    tuned = torch.full((8,), 1.05)
    assert not is_only_rounding(tuned, ones, torch.float32, torch.float32)
    assert not is_only_rounding(saved(tuned, torch.float16), ones, torch.float16, torch.float32)


def round_model(model: Model, dtype: torch.dtype) -> None:
    with torch.no_grad():
        for network in (model.unet, model.text_encoder):
            for parameter in network.parameters():
                parameter.copy_(saved(parameter, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_model_in_another_format_is_not_extracted(
    model: Model, tiny_model: Path, dtype: torch.dtype
) -> None:
    round_model(model, dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(WeightsError, match=rf"by rounding .* only \({name} and float32\)"):
        extract_difference(model, load_model(tiny_model), ("rank", 2))


def test_trained_layers_of_a_rounded_model_are_extracted(model: Model, tiny_model: Path) -> None:
    layer = model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    with torch.no_grad():
        layer.weight += 0.1
    round_model(model, torch.bfloat16)
    extracted = extract_difference(model, load_model(tiny_model), ("rank", 2))
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    assert list(extracted.layers) == [name]
    assert extracted.only_rounding > 100
    assert extracted.not_extracted == ()
