"""FP8 layers: exact where values allow it, close otherwise, and used only where they pay off."""

import pytest
import torch
from torch import nn

from lorasmith.adapters.nn.lora import Factors, LoraLinear
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops import fp8
from lorasmith.training.acceleration.factor_cache import FactorCastCache
from lorasmith.training.acceleration.fp8_linear import Fp8Linear, fp8_patch
from lorasmith.training.acceleration.module_patch import patched


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use FP8 for layers and inputs of any size."""
    monkeypatch.setattr(fp8, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(fp8, "MIN_TOKENS", 0)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    error = (actual.detach().float() - expected.float()).norm()
    return float(error / expected.detach().float().norm())


@pytest.mark.usefixtures("any_size")
def test_products_of_small_integers_are_exact() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 16, dtype=torch.bfloat16).requires_grad_(False)
    with torch.no_grad():
        # With 7 the largest value of each row and column, scales are 1 / 64.
        layer.weight.copy_(torch.randint(-7, 8, (16, 32)))
        layer.weight[:, 0], layer.weight[0] = 7, 7
        layer.bias.copy_(torch.randint(-3, 4, (16,)))
    x = torch.randint(-7, 8, (10, 32)).bfloat16()
    x[:, 0] = 7
    x.requires_grad_()
    grad = torch.randint(-7, 8, (10, 16)).bfloat16()
    grad[:, 0] = 7
    expected = nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float())
    with patched(layer, [fp8_patch(layer)]):
        assert type(layer) is Fp8Linear
        y = layer(x)
        y.backward(grad)
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(x.grad, (grad.float() @ layer.weight.float()).bfloat16())
    assert type(layer) is nn.Linear
    assert not hasattr(layer, "fp8_weight")


@pytest.mark.usefixtures("any_size")
def test_adapters_are_not_quantized() -> None:
    """The base's product is close, and what the adapter adds is the same."""
    torch.manual_seed(0)
    layer = LoraWrapper(nn.Linear(48, 32, dtype=torch.bfloat16).requires_grad_(False))
    factors = Factors(torch.randn(4, 48), torch.zeros(32, 4))
    layer.adapters.append(LoraLinear(factors, 4.0))
    (adapter,) = layer.adapters
    cache, patch = FactorCastCache([[(layer, (adapter,))]]), fp8_patch(layer)
    x = torch.randn(64, 48).bfloat16().requires_grad_()
    weight = torch.randn(64, 32).bfloat16()

    def run() -> tuple[torch.Tensor, ...]:
        cache.refresh()
        y = layer(x)
        cache.clear()
        return (y, *torch.autograd.grad((y * weight).sum(), [x, adapter.down, adapter.up]))

    exact = run()
    with patched(layer, [patch]):
        assert isinstance(layer.base, Fp8Linear)
        without_adapter = run()
        with torch.no_grad():
            adapter.up.copy_(torch.randn(32, 4))
        with_adapter = run()
    for actual, expected in zip(without_adapter[:2], exact[:2], strict=True):
        assert 0.005 < relative_error(actual, expected) < 0.05
    # The gradient of B depends on x and the output's gradient only.
    torch.testing.assert_close(without_adapter[3], exact[3])
    product = (x.float() @ adapter.down.bfloat16().float().T) @ adapter.up.bfloat16().float().T
    assert relative_error(with_adapter[0].float() - without_adapter[0].float(), product) < 0.02


def test_small_layers_and_few_tokens_stay_exact() -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(1024, 4096).requires_grad_(False))
    x = torch.randn(8, 1024)
    before = network[1](x)
    with patched(network, [fp8_patch(network)]):
        assert type(network[0]) is nn.Linear
        assert type(network[1]) is Fp8Linear
        assert torch.equal(network[1](x), before)


class Attention(nn.Module):
    def __init__(self, is_cross_attention: bool) -> None:
        super().__init__()
        self.is_cross_attention = is_cross_attention
        self.to_q, self.to_k, self.to_v = (nn.Linear(16, 16) for _ in range(3))


def test_layers_of_texts_embeddings_and_odd_sizes_stay_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fp8, "MIN_WEIGHTS", 500)
    network = nn.ModuleDict(
        {
            "self_attention": Attention(False),
            "cross_attention": Attention(True),
            "time_embedding": nn.Linear(64, 64),
            "odd": nn.Linear(64, 72),
            "wide": nn.Linear(64, 64),
        }
    ).requires_grad_(False)
    with patched(network, [fp8_patch(network)]):
        names = {name for name, layer in network.named_modules() if isinstance(layer, Fp8Linear)}
    qkv = {f"self_attention.{name}" for name in ("to_q", "to_k", "to_v")}
    assert names == {*qkv, "wide"}
