"""A gate lets some rows and tokens through and leaves the others exactly alone."""

import pytest
import torch
from torch import nn

from helpers.lora_files import wrap_layer
from lorasmith.adapters.gating.gate import Gate
from lorasmith.adapters.nn.lora import Factors, make_adapter
from lorasmith.adapters.nn.wrapper import LoraWrapper


def gated_layer(base: nn.Module, kernel: tuple[int, ...] = ()) -> tuple[LoraWrapper, Gate]:
    down = torch.randn(2, base.weight.shape[1], *kernel)
    up = torch.randn(base.weight.shape[0], 2, *[1] * len(kernel))
    adapter = make_adapter(base, Factors(down, up), alpha=2.0).to(base.weight.dtype)
    return wrap_layer(base, adapter), adapter.gate


CPU = torch.device("cpu")
CASES = [
    pytest.param(lambda: nn.Linear(6, 5), (), (4, 7, 6), id="linear"),
    pytest.param(lambda: nn.Conv2d(6, 5, 3, padding=1), (3, 3), (4, 6, 8, 8), id="convolution"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("make", "kernel", "shape"), CASES)
@torch.no_grad()
def test_rows_that_are_not_let_through_are_the_base_s(make, kernel, shape, dtype) -> None:
    layer, gate = gated_layer(make().to(dtype), kernel)
    x = torch.randn(shape, dtype=dtype)
    base, full = layer.base(x), layer(x)
    gate.set_rows([True, False, True, False], CPU)
    y = layer(x)
    assert torch.equal(y[1::2], base[1::2])
    torch.testing.assert_close(y[0::2], full[0::2])
    assert not torch.equal(y[0::2], base[0::2])
    gate.set_rows([False] * 4, CPU)
    assert gate.is_closed
    assert torch.equal(layer(x), base)
    gate.open()
    assert torch.equal(layer(x), full)


@torch.no_grad()
def test_excluded_row_keeps_the_base_output_beside_infinite_values() -> None:
    layer, gate = gated_layer(nn.Linear(6, 5))
    layer.adapters[0].up.fill_(float("inf"))
    x = torch.randn(2, 6)
    gate.set_rows([True, False], CPU)
    assert torch.equal(layer(x)[1], layer.base(x)[1])


@torch.no_grad()
def test_tokens_that_are_not_let_through_are_the_base_s() -> None:
    layer, gate = gated_layer(nn.Linear(6, 5))
    x = torch.randn(3, 4, 6)
    base, full = layer.base(x), layer(x)
    layer.adapters[0].reads_text = True
    tokens = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    gate.set_rows([True, True, False], CPU, tokens)
    y = layer(x)
    expected = tokens & torch.tensor([[True], [True], [False]])
    assert torch.equal(y[~expected], base[~expected])
    torch.testing.assert_close(y[expected], full[expected])


@torch.no_grad()
def test_token_gate_is_ignored_by_layers_that_read_no_text() -> None:
    layer, gate = gated_layer(nn.Linear(6, 5))
    x = torch.randn(2, 9, 6)  # more places than the text has tokens
    base, full = layer.base(x), layer(x)
    gate.set_rows([False, True], CPU, torch.zeros(2, 4, dtype=torch.bool))
    assert torch.equal(layer(x)[0], base[0])
    torch.testing.assert_close(layer(x)[1], full[1])


def test_gradients_come_from_the_rows_that_are_let_through() -> None:
    layer, gate = gated_layer(nn.Linear(6, 5).double())
    factors = list(layer.adapters[0].parameters())
    x = torch.randn(4, 6, dtype=torch.float64)
    gate.set_rows([False, True, True, False], CPU)
    actual = torch.autograd.grad(layer(x).square().sum(), factors)
    gate.open()
    expected = torch.autograd.grad(layer(x[1:3]).square().sum(), factors)
    for grad, expected_grad in zip(actual, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad)
