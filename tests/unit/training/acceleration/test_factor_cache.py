"""A layer and its adapters as one operation: the same output and gradients as separate ones."""

import pytest
import torch
from torch import nn

from lorasmith.adapters.gating.gate import Gate
from lorasmith.adapters.nn.lora import Factors, LoraLinear, make_adapter
from lorasmith.adapters.nn.wrapper import LoraWrapper, forward_shared_input
from lorasmith.ops.fused_lora import (
    FusedLinearArgs,
    StackedFactors,
    fused_lora_linear,
    op_arguments,
)
from lorasmith.training.acceleration.factor_cache import FactorCastCache, build_factor_cache
from lorasmith.training.acceleration.qkv_groups import iter_qkv_groups

CPU = torch.device("cpu")
IN, OUT = 6, 4


def make_layer(
    dtype: torch.dtype, ranks: tuple[int, ...] = (2,), alpha: float = 3.0
) -> LoraWrapper:
    torch.manual_seed(3)
    layer = LoraWrapper(nn.Linear(IN, OUT).requires_grad_(False).to(dtype))
    factor_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    for rank in ranks:
        down = torch.randn(rank, IN, dtype=factor_dtype)
        up = torch.randn(OUT, rank, dtype=factor_dtype)
        layer.adapters.append(LoraLinear(Factors(down, up), alpha))
    return layer


def divide_rows(layer: LoraWrapper, rows: int) -> None:
    """Give each adapter an equal share of the rows."""
    share = rows // len(layer.adapters)
    for index, adapter in enumerate(layer.adapters):
        adapter.gate = Gate()
        adapter.gate.set_rows([row // share == index for row in range(rows)], CPU)


def reference(x: torch.Tensor, layer: LoraWrapper) -> torch.Tensor:
    """Compute each share of the rows with its own dense weight."""
    weight, bias = layer.base.weight.to(x.dtype), layer.base.bias.to(x.dtype)
    outputs = []
    for rows, adapter in zip(x.chunk(len(layer.adapters)), layer.adapters, strict=True):
        product = adapter.strength * adapter.scale * (adapter.up @ adapter.down)
        outputs.append(rows @ (weight + product).to(x.dtype).T + bias)
    return torch.cat(outputs)


def factors_of(layer: LoraWrapper) -> list[nn.Parameter]:
    return [factor for adapter in layer.adapters for factor in (adapter.down, adapter.up)]


def cache_of(layer: LoraWrapper) -> FactorCastCache:
    return FactorCastCache([[(layer, tuple(layer.adapters))]])


@pytest.mark.parametrize("shape", [(6, IN), (6, 3, IN)])
@pytest.mark.parametrize("ranks", [(2,), (2, 2), (1, 3, 2)])
@pytest.mark.parametrize("alpha", [2.0, 3.0])
def test_output_and_gradients_are_those_of_separate_operations(
    shape: tuple[int, ...], ranks: tuple[int, ...], alpha: float
) -> None:
    layer = make_layer(torch.float64, ranks, alpha)
    divide_rows(layer, 6)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    cache = cache_of(layer)
    cache.refresh()
    assert layer.is_evenly_divided(x)
    actual, expected = layer(x), reference(x, layer)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    weight = torch.randn_like(actual)
    inputs = [x, *factors_of(layer)]
    grads = torch.autograd.grad((actual * weight).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-12, rtol=1e-12)


def test_input_without_gradients_gets_none() -> None:
    layer = make_layer(torch.float64)
    x = torch.randn(3, IN, dtype=torch.float64)
    cache_of(layer).refresh()
    layer(x).sum().backward()
    assert x.grad is None
    assert all(factor.grad is not None and factor.grad.norm() > 0 for factor in factors_of(layer))


def test_gradients_of_factors_are_float32_over_a_bf16_layer() -> None:
    layer = make_layer(torch.bfloat16)
    x = torch.randn(40, IN).bfloat16().requires_grad_()
    cache_of(layer).refresh()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    for factor in factors_of(layer):
        assert factor.grad is not None
        assert factor.grad.dtype == torch.float32
        # It was never rounded to bfloat16.
        assert not torch.equal(factor.grad, factor.grad.bfloat16().float())


def test_refresh_copies_the_current_factors_and_clear_removes_the_copies() -> None:
    layer = make_layer(torch.bfloat16, alpha=2.0)
    (adapter,) = layer.adapters
    cache = cache_of(layer)
    assert layer.fused_factors is None
    cache.refresh()
    assert layer.fused_factors is not None
    assert torch.equal(layer.fused_factors.down[0], adapter.down.bfloat16())
    with torch.no_grad():
        adapter.up.add_(1.0)
    adapter.strength = 0.5
    cache.refresh()
    assert torch.equal(layer.fused_factors.up[0], (0.5 * adapter.up).bfloat16())
    assert layer.fused_factors.scales == (0.5,)
    cache.clear()
    assert layer.fused_factors is None


def test_copies_are_used_only_in_training_and_for_equal_shares_of_the_rows() -> None:
    layer = make_layer(torch.bfloat16, (2, 2))
    divide_rows(layer, 6)
    x = torch.randn(6, IN).bfloat16()
    cache = cache_of(layer)
    cache.refresh()
    torch.testing.assert_close(layer(x).float(), reference(x.float(), layer), atol=0.1, rtol=0.05)
    copies = layer.fused_factors
    assert copies is not None
    copies.down.fill_(float("nan"))
    assert layer(x).isnan().all()
    with torch.no_grad():
        assert not layer(x).isnan().any()
    layer.eval()
    assert not layer(x).isnan().any()
    layer.train()
    layer.adapters[0].gate.set_rows([True, True, False, False, False, False], CPU)
    assert not layer(x).isnan().any()
    divide_rows(layer, 6)
    extra = make_layer(torch.bfloat16).adapters[0]
    layer.adapters.append(extra)
    assert not layer(x).isnan().any()  # another adapter is active
    extra.gate.close()
    assert layer(x).isnan().all()
    layer.adapters[0].gate.set_rows([True] * 3 + [False] * 3, CPU, torch.ones(6, 1).bool())
    assert not layer(x).isnan().any()  # a gate that selects tokens


def test_nothing_is_fused_on_a_cpu() -> None:
    layer = make_layer(torch.bfloat16)
    assert len(build_factor_cache(layer, list(layer.adapters))) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [(2,), (2, 3)])
def test_fused_layers_on_a_gpu_equal_separate_layers(ranks: tuple[int, ...]) -> None:
    layer = make_layer(torch.bfloat16, ranks).cuda()
    divide_rows(layer, 40)
    x = torch.randn(40, IN, device="cuda").bfloat16().requires_grad_()
    cache = build_factor_cache(layer, list(layer.adapters))
    assert len(cache) == 1
    cache.refresh()
    assert layer.is_evenly_divided(x)
    weight = torch.randn(40, OUT, device="cuda")
    inputs = [x, *factors_of(layer)]
    grads = torch.autograd.grad((layer(x).float() * weight).sum(), inputs)
    expected = torch.autograd.grad((reference(x.float(), layer) * weight).sum(), inputs)
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad.float(), expected_grad.float(), atol=0.2, rtol=0.05)


@pytest.mark.gpu
def test_adapters_with_dropout_or_an_initial_product_are_not_fused() -> None:
    layer = make_layer(torch.bfloat16).cuda()
    start = Factors(torch.randn(2, IN).cuda(), torch.randn(OUT, 2).cuda())
    for options in ({"start": start}, {"dropout": 0.1}):
        layer.adapters[0] = make_adapter(layer.base, start, 2.0, **options).cuda()
        assert len(build_factor_cache(layer, list(layer.adapters))) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_fused_linears_are_a_well_formed_operation(count: int) -> None:
    """torch's own check of custom operations, for compilers."""
    layers = [make_layer(torch.float32, (2, 1)) for _ in range(count)]
    shared = torch.randn(2, 2 * count, IN)
    x = torch.randn(4, 3, IN, requires_grad=True)
    arguments = [
        FusedLinearArgs(
            layer.base.weight,
            layer.base.bias,
            StackedFactors(down, torch.randn(2, OUT, 2), (1.0, 2.0), shared),
            [adapter.down for adapter in layer.adapters],
            [adapter.up for adapter in layer.adapters],
        )
        for layer, down in zip(layers, shared.chunk(count, 1), strict=True)
    ]
    operation = torch.ops.lorasmith.lora_linears.default
    torch.library.opcheck(operation, op_arguments(x, arguments))
    assert [y.shape for y in fused_lora_linear(x, arguments)] == [(4, 3, OUT)] * count


class Attention(nn.Module):
    """The layers of an attention as diffusers names them."""

    def __init__(self, ranks: list[tuple[int, ...]], cross: bool = False) -> None:
        super().__init__()
        self.is_cross_attention = cross
        layers = (make_layer(torch.float64, rank, 2.0 + len(rank)) for rank in ranks)
        self.to_q, self.to_k, self.to_v = layers

    def trained_layers(self) -> list[tuple[LoraWrapper, tuple[LoraLinear, ...]]]:
        layers = (self.to_q, self.to_k, self.to_v)
        return [(layer, tuple(layer.adapters)) for layer in layers]


@pytest.mark.parametrize("ranks", [[(2,), (2,), (2,)], [(1, 2), (3, 1), (2, 2)]])
@pytest.mark.parametrize("used", [(0, 1, 2), (1, 2), (2,)])
def test_layers_that_read_the_same_input_are_fused(
    ranks: list[tuple[int, ...]], used: tuple[int, ...]
) -> None:
    attention = Attention(ranks)
    layers = [attention.to_q, attention.to_k, attention.to_v]
    for layer in layers:
        divide_rows(layer, 4)
    FactorCastCache([attention.trained_layers()]).refresh()
    x = torch.randn(4, 3, IN, dtype=torch.float64, requires_grad=True)
    selected = [layers[index] for index in used]
    actual = forward_shared_input(x, selected)
    expected = [reference(x, layer) for layer in selected]
    for y, expected_y in zip(actual, expected, strict=True):
        torch.testing.assert_close(y, expected_y, atol=1e-12, rtol=1e-12)
    inputs = [x, *(factor for layer in selected for factor in factors_of(layer))]
    # The last of several outputs gets no gradient.
    count = max(1, len(used) - 1)
    weights = [torch.randn_like(y) for y in expected[:count]]

    def grads_of(outputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        loss = sum((y * weight).sum() for y, weight in zip(outputs, weights, strict=True))
        return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

    grads, expected_grads = grads_of(actual[:count]), grads_of(expected[:count])
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-12, rtol=1e-12)


def test_layers_with_different_numbers_of_adapters_do_not_share_factors() -> None:
    attention = Attention([(2,), (2,), (2, 2)])
    FactorCastCache([attention.trained_layers()]).refresh()
    for layer in attention.children():
        assert layer.fused_factors is not None
        assert layer.fused_factors.shared_down is None


def test_qkv_groups_of_self_and_cross_attention() -> None:
    self_attention, cross = Attention([(2,)] * 3), Attention([(2,)] * 3, cross=True)
    assert list(iter_qkv_groups(nn.ModuleList([self_attention, cross]))) == [
        [self_attention.to_q, self_attention.to_k, self_attention.to_v],
        [cross.to_k, cross.to_v],
    ]
