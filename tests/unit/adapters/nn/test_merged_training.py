"""Small layers are trained with one weight for base and adapter: the same numbers, fewer calls."""

import pytest
import torch
from torch import nn

from helpers.lora_files import wrap_layer
from lorasmith.adapters.nn.lora import Factors, LoraLinear, make_adapter
from lorasmith.adapters.nn.wrapper import LoraWrapper


def wrapped_linear(
    width: int = 24, started: bool = False, dropout: float = 0.0
) -> tuple[LoraWrapper, LoraLinear]:
    torch.manual_seed(0)
    base = nn.Linear(width, 16).double().requires_grad_(False)

    def factors() -> Factors:
        return Factors(torch.randn(4, width).double(), torch.randn(16, 4).double())

    start = factors() if started else None
    adapter = make_adapter(base, factors(), 3.0, start, dropout)
    assert isinstance(adapter, LoraLinear)
    adapter.strength = 0.7
    return wrap_layer(base, adapter), adapter


def results(layer: LoraWrapper, adapter: LoraLinear, mode: bool) -> list[torch.Tensor]:
    adapter.train(mode)
    x = torch.linspace(-1, 1, 2 * 5 * layer.base.in_features).double()
    x = x.reshape(2, 5, -1).requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, adapter.down, adapter.up])]


@pytest.mark.parametrize("started", [False, True])
def test_outputs_and_gradients_are_those_of_the_two_products(started: bool) -> None:
    layer, adapter = wrapped_linear(started=started)
    for actual, expected in zip(
        results(layer, adapter, True), results(layer, adapter, False), strict=True
    ):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-10)


def test_only_training_of_small_layers_merges() -> None:
    layer, adapter = wrapped_linear()
    weight = layer.base.weight
    assert adapter.is_cheaper_merged(weight)
    assert not adapter.is_cheaper_merged(weight.bfloat16())  # the change would be rounded away
    assert not adapter.is_cheaper_merged(torch.zeros(512, 512).double())
    assert layer.sole_trainable_adapter() is adapter
    adapter.gate.set_rows([True, False], torch.device("cpu"))
    assert layer.sole_trainable_adapter() is None
    adapter.gate.open()
    with torch.no_grad():
        assert layer.sole_trainable_adapter() is None
    adapter.strength = 0.0
    assert layer.sole_trainable_adapter() is None
    adapter.strength = 1.0
    adapter.eval()
    assert layer.sole_trainable_adapter() is None
    assert wrapped_linear(dropout=0.1)[0].sole_trainable_adapter() is None


def test_layer_with_two_adapters_keeps_them_apart() -> None:
    layer, adapter = wrapped_linear()
    other = wrapped_linear()[1]
    layer.adapters.append(other)
    x = torch.randn(2, 5, 24).double()
    want = layer.base(x) + adapter(x) + other(x)
    torch.testing.assert_close(layer(x), want)


def test_untouched_start_is_the_base_bit_for_bit() -> None:
    layer, adapter = wrapped_linear(started=True)
    with torch.no_grad():
        adapter.down.copy_(adapter.down0)
        adapter.up.copy_(adapter.up0)
    x = torch.randn(2, 5, 24).double()
    assert torch.equal(layer(x), layer.base(x))
