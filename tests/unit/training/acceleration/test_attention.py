"""The patched attention gives what diffusers' own processor gives."""

import pytest
import torch
from torch import nn

from lorasmith.adapters.nn.lora import Factors, LoraLinear
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.training.acceleration.attention import attention_patch
from lorasmith.training.acceleration.factor_cache import FactorCastCache
from lorasmith.training.acceleration.module_patch import patched


def make_attention(
    cross_dim: int | None = None, with_adapters: bool = True, **options: object
) -> nn.Module:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    attention = Attention(16, cross_dim, heads=2, dim_head=8, **options)
    attention.double().requires_grad_(False)
    if with_adapters:
        for name in ("to_q", "to_k", "to_v"):
            layer = LoraWrapper(getattr(attention, name))
            inputs = layer.base.in_features
            factors = torch.randn(3, inputs).double(), torch.randn(16, 3).double()
            layer.adapters.append(LoraLinear(Factors(*factors), 3.0))
            setattr(attention, name, layer)
    return attention


def make_cache(attention: nn.Module, cross_dim: int | None) -> FactorCastCache:
    wrappers = [attention.to_q, attention.to_k, attention.to_v]
    layers = [(layer, tuple(layer.adapters)) for layer in wrappers]
    return FactorCastCache([layers] if cross_dim is None else [layers[:1], layers[1:]])


@pytest.mark.parametrize("cross_dim", [None, 12])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_output_and_gradients_are_those_of_diffusers(cross_dim: int | None, factor: float) -> None:
    attention = make_attention(cross_dim, rescale_output_factor=factor)
    original = type(attention)
    x = torch.randn(2, 5, 16, dtype=torch.double, requires_grad=True)
    text = None if cross_dim is None else torch.randn(2, 7, cross_dim).double().requires_grad_()
    inputs = [parameter for parameter in attention.parameters() if parameter.requires_grad]
    inputs += [x] if text is None else [x, text]
    expected = attention(x, text)
    expected_grads = torch.autograd.grad(expected.square().sum(), inputs)
    cache = make_cache(attention, cross_dim)
    with patched(attention, [attention_patch()]):
        assert type(attention) is not original
        cache.refresh()
        actual = attention(x, text)
        grads = torch.autograd.grad(actual.square().sum(), inputs)
        cache.clear()
    assert type(attention) is original
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-10, rtol=1e-10)


def test_masks_are_applied() -> None:
    attention = make_attention(with_adapters=False)
    x = torch.randn(2, 5, 16, dtype=torch.double)
    mask = torch.zeros(2, 1, 5, dtype=torch.double)
    mask[:, :, 3:] = -1e4
    expected = attention(x, attention_mask=mask)
    with patched(attention, [attention_patch()]):
        torch.testing.assert_close(attention(x, attention_mask=mask), expected)
        assert not torch.allclose(attention(x), expected)


@pytest.mark.parametrize(
    "options", [{"residual_connection": True}, {"qk_norm": "layer_norm"}, {"norm_num_groups": 4}]
)
def test_attention_with_norms_or_residual_is_not_patched(options: dict[str, object]) -> None:
    attention = make_attention(with_adapters=False, **options)
    original = type(attention)
    with patched(attention, [attention_patch()]):
        assert type(attention) is original


def test_attention_with_another_processor_is_not_patched() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    attention = make_attention(with_adapters=False)
    attention.set_processor(AttnProcessor())
    original = type(attention)
    with patched(attention, [attention_patch()]):
        assert type(attention) is original
