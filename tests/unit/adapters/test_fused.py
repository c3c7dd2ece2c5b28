"""A layer and its adapter as one operation: the same output and gradients as in separate ones."""

import pytest
import torch
from torch import nn

from lorasmith.adapters.casts import Casts, casts_for
from lorasmith.adapters.fused import Cast, fused
from lorasmith.adapters.layers import Adapted, Factors, LoraLinear

SHAPES = [(5, 6), (2, 3, 6)]


def make(dtype: torch.dtype, alpha: float = 3.0) -> tuple[nn.Linear, LoraLinear]:
    draws = torch.Generator().manual_seed(3)
    layer = nn.Linear(6, 4).requires_grad_(False).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    factors = [torch.randn(shape, generator=draws, dtype=wide) for shape in ((2, 6), (4, 2))]
    return layer, LoraLinear(Factors(*factors), alpha)


def plain(x: torch.Tensor, layer: nn.Linear, adapter: LoraLinear) -> torch.Tensor:
    change = adapter.weight * adapter.scale * (adapter.up @ adapter.down)
    return x @ (layer.weight + change).T + layer.bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [2.0, 3.0])
def test_output_and_gradients_are_those_of_the_sum(shape: tuple[int, ...], alpha: float) -> None:
    layer, adapter = make(torch.float64, alpha)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    cast = Cast(adapter.down.detach().clone(), adapter.up.detach().clone())
    found = fused(x, layer, adapter, cast)
    wanted = plain(x, layer, adapter)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    weight = torch.randn_like(found)
    of = (x, adapter.down, adapter.up)
    ours = torch.autograd.grad((found * weight).sum(), of)
    theirs = torch.autograd.grad((wanted * weight).sum(), of)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_an_input_without_gradients_gets_none() -> None:
    layer, adapter = make(torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64)
    cast = Cast(adapter.down.detach(), adapter.up.detach())
    fused(x, layer, adapter, cast).sum().backward()
    assert x.grad is None
    assert adapter.down.grad is not None
    assert adapter.down.grad.norm() > 0


def test_gradients_of_factors_are_float32_over_a_bf16_layer() -> None:
    layer, adapter = make(torch.bfloat16)
    x = torch.randn(40, 6).bfloat16().requires_grad_()
    cast = Cast(adapter.down.detach().bfloat16(), adapter.up.detach().bfloat16())
    y = fused(x, layer, adapter, cast)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    for factor in (adapter.down, adapter.up):
        assert factor.grad is not None
        assert factor.grad.dtype == torch.float32
        # Not rounded to bfloat16 on the way.
        assert not torch.equal(factor.grad, factor.grad.bfloat16().float())


def test_copies_are_those_of_the_moment_and_are_taken_back() -> None:
    layer, adapter = make(torch.bfloat16)
    casts = Casts([(adapter, layer)])
    assert adapter.cast is None
    casts.renew()
    assert adapter.cast is not None
    assert torch.equal(adapter.cast.down, adapter.down.bfloat16())
    with torch.no_grad():
        adapter.up.add_(1.0)
    casts.renew()
    assert torch.equal(adapter.cast.up, adapter.up.bfloat16())
    casts.drop()
    assert adapter.cast is None


def test_an_adapted_layer_uses_its_copies_in_training_only() -> None:
    layer, adapter = make(torch.bfloat16)
    whole = Adapted(layer)
    whole.adapters.append(adapter)
    x = torch.randn(7, 6).bfloat16()
    casts = Casts([(adapter, layer)])
    casts.renew()
    copies = adapter.cast
    assert copies is not None
    torch.testing.assert_close(whole(x), plain_bf16(x, layer, adapter), atol=0.1, rtol=0.05)
    copies.down.fill_(float("nan"))
    assert whole(x).isnan().all()
    with torch.no_grad():
        assert not whole(x).isnan().any()
    whole.eval()
    assert not whole(x).isnan().any()
    whole.train()
    adapter.gate.let_through([True] * 3 + [False] * 4, torch.device("cpu"))
    assert not whole(x).isnan().any()


def plain_bf16(x: torch.Tensor, layer: nn.Linear, adapter: LoraLinear) -> torch.Tensor:
    wide = nn.Linear(6, 4)
    wide.load_state_dict({k: v.float() for k, v in layer.state_dict().items()})
    return plain(x.float(), wide, adapter).bfloat16()


def test_nothing_is_fused_on_a_cpu_or_where_it_would_not_be_the_same() -> None:
    layer, adapter = make(torch.bfloat16)
    assert casts_for([(adapter, layer)]) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_too() -> None:
    layer, adapter = make(torch.bfloat16)
    layer, adapter = layer.cuda(), adapter.cuda()
    casts = casts_for([(adapter, layer)])
    assert casts is not None
    casts.renew()
    assert adapter.cast is not None
    x = torch.randn(40, 6, device="cuda").bfloat16().requires_grad_()
    weight = torch.randn(40, 4, device="cuda")
    of = (x, adapter.down, adapter.up)
    ours = torch.autograd.grad((fused(x, layer, adapter, adapter.cast).float() * weight).sum(), of)
    change = adapter.scale * (adapter.up @ adapter.down)
    whole = x.float() @ (layer.weight.float() + change).T + layer.bias.float()
    theirs = torch.autograd.grad((whole * weight).sum(), of)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=0.2, rtol=0.05)
