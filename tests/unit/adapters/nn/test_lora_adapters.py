"""One adapter on one layer: what it adds is the dense product's effect."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.lora_files import wrap_layer
from lorasmith.adapters.nn.init import init_adapter
from lorasmith.adapters.nn.lora import Factors, LoraAdapter, make_adapter
from lorasmith.core.errors import WeightsError

LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), (2, 3, 5)),
    "conv 1x1": (lambda: nn.Conv2d(5, 7, 1), (2, 5, 6, 4)),
    "conv 3x3": (lambda: nn.Conv2d(5, 7, 3, padding=1), (2, 5, 6, 4)),
    "conv 3x3 down": (lambda: nn.Conv2d(5, 7, 3, stride=2, padding=1, bias=False), (2, 5, 6, 4)),
    "conv dilated": (lambda: nn.Conv2d(5, 7, 3, dilation=2, padding="same"), (2, 5, 6, 4)),
}


def random_adapter(base: nn.Module, rank: int, alpha: float, seed: int = 0) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    weight = base.weight
    down = torch.randn(rank, *weight.shape[1:], generator=generator, dtype=weight.dtype)
    ones = [1] * (weight.ndim - 2)
    up = torch.randn(weight.shape[0], rank, *ones, generator=generator, dtype=weight.dtype)
    return make_adapter(base, Factors(down, up), alpha)


def with_dense_delta(base: nn.Module, delta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The base's output with its weight replaced by weight + delta."""
    return torch.func.functional_call(base, {"weight": base.weight + delta}, (x,))


@pytest.mark.parametrize("kind", LAYERS)
def test_delta_equals_the_dense_product_in_float64(kind: str) -> None:
    build, shape = LAYERS[kind]
    torch.manual_seed(0)
    base = build().double()
    x = torch.randn(shape, dtype=torch.float64)
    adapter = random_adapter(base, rank=3, alpha=1.5)
    adapter.strength = -0.7

    flat = adapter.up.reshape(7, 3) @ adapter.down.reshape(3, -1)
    dense = -0.7 * (1.5 / 3) * flat.reshape(base.weight.shape)

    torch.testing.assert_close(
        wrap_layer(base, adapter)(x), with_dense_delta(base, dense, x), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(adapter.delta_weight() * -0.7, dense)


@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    rank=st.integers(1, 12),
    alpha=st.floats(0.01, 64.0),
    weight=st.floats(-4.0, 4.0),
    kernel=st.sampled_from([0, 1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_delta_equals_the_dense_product_for_any_shape_and_rank(
    inputs: int, outputs: int, rank: int, alpha: float, weight: float, kernel: int
) -> None:
    torch.manual_seed(inputs * 100 + outputs)
    if kernel:
        base: nn.Module = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2).double()
        x = torch.randn(2, inputs, 4, 5, dtype=torch.float64)
    else:
        base = nn.Linear(inputs, outputs).double()
        x = torch.randn(4, inputs, dtype=torch.float64)
    adapter = random_adapter(base, rank, alpha)
    adapter.strength = weight

    expected = with_dense_delta(base, weight * adapter.delta_weight(), x)

    torch.testing.assert_close(wrap_layer(base, adapter)(x), expected, rtol=1e-9, atol=1e-9)
    assert adapter.delta_weight().shape == base.weight.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
def test_weight_zero_is_the_base_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    build, shape = LAYERS[kind]
    base = build().to(dtype)
    x = torch.randn(shape).to(dtype)
    host = wrap_layer(base, random_adapter(base, 4, 4.0))
    assert not torch.equal(host(x), base(x))

    host.adapters[0].strength = 0.0

    assert torch.equal(host(x), base(x))


def test_adapter_with_nan_is_not_computed_when_off() -> None:
    base = nn.Linear(3, 3)
    adapter = make_adapter(base, Factors(torch.full((2, 3), torch.nan), torch.zeros(3, 2)), 1.0)
    adapter.strength = 0.0
    x = torch.randn(4, 3)
    assert torch.equal(wrap_layer(base, adapter)(x), base(x))


def test_adapters_of_one_layer_add_up() -> None:
    base = nn.Linear(6, 4).double()
    first, second = random_adapter(base, 2, 3.0, seed=1), random_adapter(base, 5, 1.0, seed=2)
    first.strength, second.strength = 0.5, -2.0
    x = torch.randn(3, 6, dtype=torch.float64)

    delta = 0.5 * first.delta_weight() - 2.0 * second.delta_weight()

    torch.testing.assert_close(wrap_layer(base, first, second)(x), with_dense_delta(base, delta, x))


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
@pytest.mark.parametrize("kind", LAYERS)
def test_new_adapter_changes_nothing_and_is_float32(kind: str, init: str) -> None:
    build, shape = LAYERS[kind]
    base = build().bfloat16()
    x = torch.randn(shape).bfloat16()
    adapter = init_adapter(base, 4, 4.0, init, torch.Generator().manual_seed(0))

    assert torch.equal(wrap_layer(base, adapter)(x), base(x))
    assert adapter.down.dtype == adapter.up.dtype == torch.float32
    assert adapter.down.any()
    assert not adapter.up.any()


def test_inits_have_their_spread_and_follow_the_seed() -> None:
    base = nn.Linear(1000, 10)
    gaussian = init_adapter(
        base, 8, 8.0, "gaussian", torch.Generator().manual_seed(0)
    ).down.detach()
    kaiming = init_adapter(base, 8, 8.0, "kaiming", torch.Generator().manual_seed(0)).down.detach()
    repeated = init_adapter(
        base, 8, 8.0, "gaussian", torch.Generator().manual_seed(0)
    ).down.detach()

    assert float(gaussian.std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(kaiming.abs().max()) <= 1000**-0.5
    assert float(kaiming.std()) == pytest.approx((3000) ** -0.5, rel=0.05)
    assert torch.equal(gaussian, repeated)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_reach_float32_factors_over_a_half_base(dtype: torch.dtype) -> None:
    base = nn.Linear(6, 4).to(dtype).requires_grad_(False)
    adapter = init_adapter(base, 2, 2.0, "gaussian", torch.Generator().manual_seed(0))
    y = wrap_layer(base, adapter)(torch.randn(3, 6).to(dtype))
    y.float().square().mean().backward()

    assert y.dtype == dtype
    assert adapter.up.grad is not None
    assert adapter.up.grad.dtype == torch.float32
    assert adapter.up.grad.any()


def test_linear_and_1x1_factors_are_exchangeable() -> None:
    linear, conv = nn.Linear(5, 7), nn.Conv2d(5, 7, 1)
    flat = Factors(torch.randn(2, 5), torch.randn(7, 2))
    kernels = Factors(*(factor[..., None, None] for factor in flat))

    assert torch.equal(make_adapter(linear, kernels, 1.0).down, flat.down)
    assert torch.equal(make_adapter(conv, flat, 1.0).up, kernels.up)


@pytest.mark.parametrize(
    ("down", "up"),
    [((2, 6), (7, 2)), ((2, 5), (8, 2)), ((2, 5), (7, 3)), ((2, 5, 3, 3), (7, 2, 1, 1))],
)
def test_wrong_shapes_are_named(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match=r"do not fit a layer of shape \[7, 5\]"):
        make_adapter(nn.Linear(5, 7), Factors(torch.zeros(down), torch.zeros(up)), 1.0)


@pytest.mark.parametrize(
    "base",
    [
        nn.LayerNorm(4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_other_layers_are_refused(base: nn.Module) -> None:
    with pytest.raises(WeightsError, match="not supported"):
        make_adapter(base, Factors(torch.zeros(2, 4), torch.zeros(4, 2)), 1.0)
