"""Inits with an initial product, dropout and export, compared with the dense weight."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.lora_files import wrap_layer
from lorasmith.adapters.injection.trainable import balance_factors, export_layer
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.nn.init import init_adapter, randomized_svd
from lorasmith.adapters.nn.lora import Factors, LoraAdapter, make_adapter

LAYERS = {
    "linear": (lambda: nn.Linear(10, 14), (2, 3, 10)),
    "conv 1x1": (lambda: nn.Conv2d(10, 14, 1), (2, 10, 6, 4)),
    "conv 3x3": (lambda: nn.Conv2d(10, 14, 3, padding=1), (2, 10, 6, 4)),
    "conv 3x3 down": (lambda: nn.Conv2d(10, 14, 3, stride=2, padding=1), (2, 10, 6, 4)),
}
SUBTRACTED = ["compensated", "pissa"]
INITS = ["gaussian", "kaiming", *SUBTRACTED]


def new(
    base: nn.Module, init: str, rank: int = 4, alpha: float = 3.0, **more: float
) -> LoraAdapter:
    return init_adapter(base, rank, alpha, init, torch.Generator().manual_seed(0), **more)


def moved(adapter: LoraAdapter, size: float = 0.05, seed: int = 1) -> LoraAdapter:
    """Change both factors, as some training steps do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in (adapter.down, adapter.up):
            factor += size * torch.randn(factor.shape, generator=generator)
    return adapter


def output_with(base: nn.Module, delta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(base, {"weight": base.weight + delta}, (x,))


def product(factors: Factors | LoraLayer) -> torch.Tensor:
    return factors[1].flatten(1) @ factors[0].flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", LAYERS)
def test_initial_output_equals_the_base_and_leaves_its_weight(
    kind: str, init: str, dtype: torch.dtype
) -> None:
    build, shape = LAYERS[kind]
    base = build().to(dtype)
    before = base.weight.detach().clone()
    x = torch.randn(shape).to(dtype)
    adapter = new(base, init)

    assert torch.equal(wrap_layer(base, adapter)(x), base(x))
    assert torch.equal(base.weight, before)
    assert not adapter.delta_weight().any()
    assert {p.dtype for p in adapter.state_dict().values()} == {torch.float32}

    host = wrap_layer(base, moved(adapter))
    assert not torch.equal(host(x), base(x))
    adapter.strength = 0.0
    assert torch.equal(host(x), base(x))


@pytest.mark.parametrize("init", SUBTRACTED)
@pytest.mark.parametrize("kind", LAYERS)
def test_output_is_that_of_the_formula(kind: str, init: str) -> None:
    """W x + s (B A - B0 A0) x, in float64 against the dense weight."""
    build, shape = LAYERS[kind]
    base = build()
    adapter = new(base, init)
    start = product((adapter.down.detach().double(), adapter.up.detach().double()))
    moved(adapter).double()
    base = base.double()
    adapter.strength = -0.6
    delta = (3.0 / 4) * (product((adapter.down, adapter.up)) - start).reshape(base.weight.shape)

    x = torch.randn(shape, dtype=torch.float64)
    expected = output_with(base, -0.6 * delta, x)

    torch.testing.assert_close(adapter.delta_weight(), delta)
    torch.testing.assert_close(wrap_layer(base, adapter)(x), expected, rtol=1e-10, atol=1e-10)


@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    rank=st.integers(1, 12),
    alpha=st.floats(0.1, 64.0),
    kernel=st.sampled_from([0, 1, 3]),
    init=st.sampled_from(INITS),
    seed=st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_export_is_an_ordinary_lora_for_the_unmodified_base(
    inputs: int, outputs: int, rank: int, alpha: float, kernel: int, init: str, seed: int
) -> None:
    torch.manual_seed(seed)
    if kernel:
        base: nn.Module = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        x = torch.randn(2, inputs, 4, 5, dtype=torch.float64)
    else:
        base, x = nn.Linear(inputs, outputs), torch.randn(4, inputs, dtype=torch.float64)
    adapter = moved(new(base, init, rank, alpha), seed=seed).double()
    base = base.double()

    layer = export_layer(adapter)
    plain = make_adapter(base, Factors(layer.down, layer.up), layer.alpha)

    assert len(layer.down) == (2 * rank if init in SUBTRACTED else rank)
    torch.testing.assert_close(plain.delta_weight(), adapter.delta_weight(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        wrap_layer(base, plain)(x), wrap_layer(base, adapter)(x), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("init", SUBTRACTED)
@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_little_is_lost_in_half_precision(init: str, size: float) -> None:
    """The difference of two float16 products would be nothing but rounding here."""
    torch.manual_seed(0)
    adapter = moved(new(nn.Linear(256, 192), init, rank=16), size)
    layer = export_layer(adapter)
    expected = adapter.delta_weight()
    half = Factors(layer.down.half().float(), layer.up.half().float())
    result = layer.alpha / len(layer.down) * product(half)
    assert (result - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("init", SUBTRACTED)
def test_bf16_layer_computes_small_changes(init: str) -> None:
    torch.manual_seed(0)
    base = nn.Linear(256, 192, bias=False)
    adapter = moved(new(base, init, rank=16), 1e-3)
    x = torch.randn(64, 256)
    with torch.no_grad():
        exact = adapter(x)
        rough = adapter(x.bfloat16()).float()
    assert (rough - exact).norm() < 2e-2 * exact.norm()


def test_step_moves_both_factors_and_keeps_the_initial_product() -> None:
    base = nn.Linear(10, 14).requires_grad_(False)
    adapter = new(base, "compensated")
    before = copy.deepcopy(adapter.state_dict())
    wrap_layer(base, adapter)(torch.randn(8, 10)).square().mean().backward()
    assert [name for name, _ in adapter.named_parameters()] == ["down", "up"]
    torch.optim.SGD(adapter.parameters(), 0.1).step()
    changed = {k for k, v in adapter.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"down", "up"}


def test_gradients_are_those_of_the_formula() -> None:
    """Written as B (A - A0) + (B - B0) A0 the derivatives by A and B stay the product's."""
    torch.manual_seed(0)
    base = nn.Linear(10, 14).requires_grad_(False)
    adapter = moved(new(base, "pissa"), 0.3)
    x, weight = torch.randn(8, 10), torch.randn(8, 14)
    (adapter(x) * weight).sum().backward()
    down, up = adapter.down.detach().requires_grad_(), adapter.up.detach().requires_grad_()
    (adapter.scale * (x @ down.T @ up.T) * weight).sum().backward()
    torch.testing.assert_close(adapter.down.grad, down.grad)
    torch.testing.assert_close(adapter.up.grad, up.grad)


@pytest.mark.parametrize("shape", [(14, 10), (10, 14), (6, 5, 3, 3), (3, 4, 1, 1)])
@pytest.mark.parametrize("rank", [1, 3, 20])
def test_pissa_starts_from_the_best_approximation(shape: tuple[int, ...], rank: int) -> None:
    torch.manual_seed(0)
    base = nn.Conv2d(shape[1], shape[0], shape[2]) if len(shape) > 2 else nn.Linear(*shape[::-1])
    nn.init.normal_(base.weight)
    adapter = new(base, "pissa", rank, alpha=2.0)
    matrix = base.weight.detach().flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    torch.testing.assert_close(adapter.scale * product((adapter.down, adapter.up)), best)


def test_strongest_directions_of_a_large_layer_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(320, 640, generator=generator) / (1 + torch.arange(640))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    result = randomized_svd(matrix, 8, generator)
    torch.testing.assert_close(result[1], s[:8], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        (result[0] * result[1]) @ result[2], (u[:, :8] * s[:8]) @ v[:8], rtol=1e-3, atol=1e-3
    )


def test_compensated_factors_have_about_unit_length() -> None:
    adapter = new(nn.Linear(1000, 500), "compensated", rank=8)
    rows, columns = adapter.down.norm(dim=1), adapter.up.norm(dim=0)
    torch.testing.assert_close(rows, torch.ones(8), rtol=0.1, atol=0.0)
    torch.testing.assert_close(columns, torch.ones(8), rtol=0.15, atol=0.0)


def test_balancing_keeps_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 5, generator=generator), torch.randn(7, 3, generator=generator)
    down[0] *= 1e-5
    up[:, 1] = 0.0
    even = balance_factors(Factors(down, up))
    torch.testing.assert_close(product(even), up @ down)
    for row in (0, 2):
        torch.testing.assert_close(even.down[row].norm(), even.up[:, row].norm())
    assert torch.equal(even.down[1], down[1])


# --- dropout --------------------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_is_on_only_while_training(kind: str, init: str) -> None:
    build, shape = LAYERS[kind]
    base = build()
    adapter = moved(new(base, init, dropout=0.5))
    x = torch.randn(shape)
    host = wrap_layer(base, adapter)
    torch.manual_seed(0)
    first, second = host(x), host(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(host(x), first)

    host.eval()
    torch.testing.assert_close(host(x), output_with(base, adapter.delta_weight(), x))
    assert torch.equal(host(x), host(x))


def test_dropout_keeps_the_mean() -> None:
    base = nn.Linear(10, 14, bias=False)
    adapter = moved(new(base, "compensated", dropout=0.25), 0.5)
    x = torch.randn(1, 10)
    torch.manual_seed(0)
    with torch.no_grad():
        mean = adapter(x.expand(40_000, 10)).mean(dim=0)
        adapter.eval()
        torch.testing.assert_close(mean, adapter(x)[0], rtol=0.05, atol=0.05)


def test_no_dropout_draws_nothing() -> None:
    adapter = moved(new(nn.Linear(10, 14), "gaussian"))
    state = torch.get_rng_state()
    adapter(torch.randn(2, 10, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
