"""A layer and its adapters as one operation: the same output and gradients as in separate ones."""

import pytest
import torch
from torch import nn

from lorasmith.adapters.gating.gate import Gate
from lorasmith.adapters.nn.lora import Factors, LoraLinear, make_adapter
from lorasmith.adapters.nn.wrapper import LoraWrapper, forward_shared_input
from lorasmith.adapters.targeting.qkv_groups import iter_qkv_groups
from lorasmith.ops.fused_lora import (
    FusedLinearArgs,
    StackedFactors,
    fused_lora_linear,
    op_arguments,
)
from lorasmith.training.acceleration.factor_cache import FactorCastCache, build_factor_cache

CPU = torch.device("cpu")
IN, OUT = 6, 4


def make(dtype: torch.dtype, ranks: tuple[int, ...] = (2,), alpha: float = 3.0) -> LoraWrapper:
    torch.manual_seed(3)
    layer = LoraWrapper(nn.Linear(IN, OUT).requires_grad_(False).to(dtype))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for rank in ranks:
        factors = Factors(torch.randn(rank, IN, dtype=wide), torch.randn(OUT, rank, dtype=wide))
        layer.adapters.append(LoraLinear(factors, alpha))
    return layer


def divide(layer: LoraWrapper, rows: int) -> None:
    """Give each adapter its equal part of the rows."""
    each = rows // len(layer.adapters)
    for number, one in enumerate(layer.adapters):
        one.gate = Gate()
        one.gate.set_rows([row // each == number for row in range(rows)], CPU)


def plain(x: torch.Tensor, layer: LoraWrapper) -> torch.Tensor:
    """Part by part, with dense weights."""
    weight, bias = layer.base.weight.to(x.dtype), layer.base.bias.to(x.dtype)
    parts = x.chunk(len(layer.adapters))
    return torch.cat(
        [
            part @ (weight + one.strength * one.scale * (one.up @ one.down)).to(x.dtype).T + bias
            for part, one in zip(parts, layer.adapters, strict=True)
        ]
    )


def factors(layer: LoraWrapper) -> list[nn.Parameter]:
    return [factor for one in layer.adapters for factor in (one.down, one.up)]


@pytest.mark.parametrize("shape", [(6, IN), (6, 3, IN)])
@pytest.mark.parametrize("ranks", [(2,), (2, 2), (1, 3, 2)])
@pytest.mark.parametrize("alpha", [2.0, 3.0])
def test_output_and_gradients_are_those_of_the_sums(
    shape: tuple[int, ...], ranks: tuple[int, ...], alpha: float
) -> None:
    layer = make(torch.float64, ranks, alpha)
    divide(layer, 6)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    casts = FactorCastCache([[(layer, tuple(layer.adapters))]])
    casts.refresh()
    assert layer.is_evenly_divided(x)
    found, wanted = layer(x), plain(x, layer)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    weight = torch.randn_like(found)
    of = [x, *factors(layer)]
    ours = torch.autograd.grad((found * weight).sum(), of)
    theirs = torch.autograd.grad((wanted * weight).sum(), of)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_an_input_without_gradients_gets_none() -> None:
    layer = make(torch.float64)
    x = torch.randn(3, IN, dtype=torch.float64)
    FactorCastCache([[(layer, tuple(layer.adapters))]]).refresh()
    layer(x).sum().backward()
    assert x.grad is None
    assert all(one.grad is not None and one.grad.norm() > 0 for one in factors(layer))


def test_gradients_of_factors_are_float32_over_a_bf16_layer() -> None:
    layer = make(torch.bfloat16)
    x = torch.randn(40, IN).bfloat16().requires_grad_()
    FactorCastCache([[(layer, tuple(layer.adapters))]]).refresh()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    for factor in factors(layer):
        assert factor.grad is not None
        assert factor.grad.dtype == torch.float32
        # Not rounded to bfloat16 on the way.
        assert not torch.equal(factor.grad, factor.grad.bfloat16().float())


def test_copies_are_those_of_the_moment_and_are_taken_back() -> None:
    layer = make(torch.bfloat16, alpha=2.0)
    (adapter,) = layer.adapters
    casts = FactorCastCache([[(layer, (adapter,))]])
    assert layer.fused_factors is None
    casts.refresh()
    assert layer.fused_factors is not None
    assert torch.equal(layer.fused_factors.down[0], adapter.down.bfloat16())
    with torch.no_grad():
        adapter.up.add_(1.0)
    adapter.strength = 0.5
    casts.refresh()
    assert torch.equal(layer.fused_factors.up[0], (0.5 * adapter.up).bfloat16())
    assert layer.fused_factors.scales == (0.5,)
    casts.clear()
    assert layer.fused_factors is None


def test_copies_are_used_in_training_and_for_whole_parts_only() -> None:
    layer = make(torch.bfloat16, (2, 2))
    divide(layer, 6)
    x = torch.randn(6, IN).bfloat16()
    casts = FactorCastCache([[(layer, tuple(layer.adapters))]])
    casts.refresh()
    torch.testing.assert_close(layer(x).float(), plain(x.float(), layer), atol=0.1, rtol=0.05)
    broken = layer.fused_factors
    assert broken is not None
    broken.down.fill_(float("nan"))
    assert layer(x).isnan().all()
    with torch.no_grad():
        assert not layer(x).isnan().any()
    layer.eval()
    assert not layer(x).isnan().any()
    layer.train()
    layer.adapters[0].gate.set_rows([True, True, False, False, False, False], CPU)
    assert not layer(x).isnan().any()
    divide(layer, 6)
    other = make(torch.bfloat16).adapters[0]
    layer.adapters.append(other)
    assert not layer(x).isnan().any()  # one more is at work
    other.gate.close()
    assert layer(x).isnan().all()
    layer.adapters[0].gate.set_rows([True] * 3 + [False] * 3, CPU, torch.ones(6, 1).bool())
    assert not layer(x).isnan().any()  # which chooses tokens


def test_nothing_is_fused_on_a_cpu() -> None:
    layer = make(torch.bfloat16)
    assert len(build_factor_cache(layer, list(layer.adapters))) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ranks", [(2,), (2, 3)])
def test_on_a_gpu_too(ranks: tuple[int, ...]) -> None:
    layer = make(torch.bfloat16, ranks).cuda()
    divide(layer, 40)
    x = torch.randn(40, IN, device="cuda").bfloat16().requires_grad_()
    casts = build_factor_cache(layer, list(layer.adapters))
    assert len(casts) == 1
    casts.refresh()
    assert layer.is_evenly_divided(x)
    weight = torch.randn(40, OUT, device="cuda")
    of = [x, *factors(layer)]
    ours = torch.autograd.grad((layer(x).float() * weight).sum(), of)
    theirs = torch.autograd.grad((plain(x.float(), layer) * weight).sum(), of)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=0.2, rtol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_adapters_that_do_more_are_not_fused() -> None:
    layer = make(torch.bfloat16).cuda()
    start = Factors(torch.randn(2, IN).cuda(), torch.randn(OUT, 2).cuda())
    for more in ({"start": start}, {"dropout": 0.1}):
        layer.adapters[0] = make_adapter(layer.base, start, 2.0, **more).cuda()
        assert len(build_factor_cache(layer, list(layer.adapters))) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_the_operation_is_well_formed(count: int) -> None:
    """As torch's own check of custom operations sees it, for compilers."""
    layers = [make(torch.float32, (2, 1)) for _ in range(count)]
    shared = torch.randn(2, 2 * count, IN)
    x = torch.randn(4, 3, IN, requires_grad=True)
    works = [
        FusedLinearArgs(
            layer.base,
            StackedFactors(down, torch.randn(2, OUT, 2), (1.0, 2.0), shared),
            [one.down for one in layer.adapters],
            [one.up for one in layer.adapters],
        )
        for layer, down in zip(layers, shared.chunk(count, 1), strict=True)
    ]
    given = op_arguments(x, works)
    torch.library.opcheck(torch.ops.lorasmith.adapted_linears.default, given)
    assert [one.shape for one in fused_lora_linear(x, works)] == [(4, 3, OUT)] * count


class Attention(nn.Module):
    """As diffusers' own has them."""

    def __init__(self, ranks: list[tuple[int, ...]], cross: bool = False) -> None:
        super().__init__()
        self.is_cross_attention = cross
        made = (make(torch.float64, one, 2.0 + len(one)) for one in ranks)
        self.to_q, self.to_k, self.to_v = made

    def learners(self) -> list[tuple[LoraWrapper, tuple[LoraLinear, ...]]]:
        return [(one, tuple(one.adapters)) for one in (self.to_q, self.to_k, self.to_v)]


@pytest.mark.parametrize("ranks", [[(2,), (2,), (2,)], [(1, 2), (3, 1), (2, 2)]])
@pytest.mark.parametrize("used", [(0, 1, 2), (1, 2), (2,)])
def test_layers_that_read_the_same_input(
    ranks: list[tuple[int, ...]], used: tuple[int, ...]
) -> None:
    attention = Attention(ranks)
    layers = [attention.to_q, attention.to_k, attention.to_v]
    for layer in layers:
        divide(layer, 4)
    FactorCastCache([attention.learners()]).refresh()
    x = torch.randn(4, 3, IN, dtype=torch.float64, requires_grad=True)
    found = forward_shared_input(x, [layers[one] for one in used])
    wanted = [plain(x, layers[one]) for one in used]
    weights = [torch.randn_like(one) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    of = [x, *(factor for one in used for factor in factors(layers[one]))]
    # The last output gets no gradient where there are several.
    each = list(zip(found, wanted, weights, strict=True))[: max(1, len(used) - 1)]
    ours = torch.autograd.grad(sum((a * w).sum() for a, _, w in each), of, allow_unused=True)
    theirs = torch.autograd.grad(sum((b * w).sum() for _, b, w in each), of, allow_unused=True)
    for factor, one, other in zip(of, ours, theirs, strict=True):
        nothing = torch.zeros_like(factor)
        torch.testing.assert_close(
            nothing if one is None else one,
            nothing if other is None else other,
            atol=1e-12,
            rtol=1e-12,
        )


def test_layers_with_other_adapters_do_not_share() -> None:
    attention = Attention([(2,), (2,), (2, 2)])
    FactorCastCache([attention.learners()]).refresh()
    assert all(
        one.fused_factors is not None and one.fused_factors.shared is None
        for one in attention.children()
    )


def test_layers_of_an_attention_are_found() -> None:
    own, cross = Attention([(2,)] * 3), Attention([(2,)] * 3, cross=True)
    assert list(iter_qkv_groups(nn.ModuleList([own, cross]))) == [
        [own.to_q, own.to_k, own.to_v],
        [cross.to_k, cross.to_v],
    ]
