"""Products in 8 bits: exact where values allow, near otherwise, used where they are worth it."""

import pytest
import torch
from torch import nn

from lorasmith.adapters.nn.lora import Factors, LoraLinear
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops import fp8
from lorasmith.ops.fp8 import Fp8Linear, Fp8Patcher, quantize_rows_reference, quantize_weight
from lorasmith.training.acceleration.factor_cache import FactorCastCache

GPU = pytest.mark.skipif(
    not fp8.is_available(torch.device("cuda")) if torch.cuda.is_available() else True,
    reason="needs a CUDA device that multiplies in 8 bits",
)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(fp8, "MIN_TOKENS", 0)


def back(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return rows.double() * scales.double()[:, None]


def test_rows_are_scaled_each_by_itself() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 1e3, 1e6, 0.0])[:, None]
    rows, scales = quantize_rows_reference(x)
    assert rows.dtype == torch.float8_e4m3fn
    assert rows[:4].float().abs().amax(1).tolist() == [448.0] * 4
    # e4m3 keeps three bits after the first: half of the last is a sixteenth of the value.
    normal = x.abs() > 2**-6 * scales[:, None]
    error = (back(rows, scales) - x).abs()
    assert (error[normal] <= x.abs()[normal] / 16 * 1.0001).all()
    assert torch.equal(back(rows, scales)[4], torch.zeros(64, dtype=torch.double))


def test_small_integers_come_through_exactly(always: None) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 16, dtype=torch.bfloat16).requires_grad_(False)
    with torch.no_grad():
        # With 7 the largest of each row and column, scales are 1 / 64.
        layer.weight.copy_(torch.randint(-7, 8, (16, 32)))
        layer.weight[:, 0], layer.weight[0] = 7, 7
        layer.bias.copy_(torch.randint(-3, 4, (16,)))
    x = torch.randint(-7, 8, (10, 32)).bfloat16()
    x[:, 0] = 7
    x.requires_grad_()
    grad = torch.randint(-7, 8, (10, 16)).bfloat16()
    grad[:, 0] = 7
    wanted = nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float())
    exchanged = Fp8Patcher(layer)
    assert len(exchanged) == 1
    exchanged.apply_patch()
    assert type(layer) is Fp8Linear
    found = layer(x)
    found.backward(grad)
    assert torch.equal(found, wanted.bfloat16())
    assert torch.equal(x.grad, (grad.float() @ layer.weight.float()).bfloat16())
    exchanged.revert_patch()
    assert type(layer) is nn.Linear
    assert not hasattr(layer, "fp8_weight")


def test_adapters_are_not_rounded(always: None) -> None:
    """The base's product is near, what the adapter adds is what it was."""
    torch.manual_seed(0)
    layer = LoraWrapper(nn.Linear(48, 32, dtype=torch.bfloat16).requires_grad_(False))
    factors = Factors(torch.randn(4, 48), torch.zeros(32, 4))
    layer.adapters.append(LoraLinear(factors, 4.0))
    (adapter,) = layer.adapters
    casts, exchanged = FactorCastCache([[(layer, (adapter,))]]), Fp8Patcher(layer)
    x = torch.randn(64, 48).bfloat16().requires_grad_()
    weight = torch.randn(64, 32).bfloat16()

    def run() -> tuple[torch.Tensor, ...]:
        casts.refresh()
        y = layer(x)
        casts.clear()
        return (y, *torch.autograd.grad((y * weight).sum(), [x, adapter.down, adapter.up]))

    exact = run()
    exchanged.apply_patch()
    assert isinstance(layer.base, Fp8Linear)
    base = run()
    with torch.no_grad():
        adapter.up.copy_(torch.randn(32, 4))
    added = run()
    exchanged.revert_patch()
    y, x_grad = (near(one, other) for one, other in zip(base[:2], exact[:2], strict=True))
    assert 0.005 < y < 0.05
    assert 0.005 < x_grad < 0.05
    torch.testing.assert_close(base[3], exact[3])  # of B, which sees x and the output's gradient
    thin = (x.float() @ adapter.down.bfloat16().float().T) @ adapter.up.bfloat16().float().T
    assert near(added[0].float() - base[0].float(), thin) < 0.02


def near(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach().float() - wanted.float()).norm() / wanted.float().norm())


def test_small_products_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(1024, 4096).requires_grad_(False))
    exchanged = Fp8Patcher(network)
    assert len(exchanged) == 1
    x = torch.randn(8, 1024)
    before = network[1](x)
    exchanged.apply_patch()
    assert type(network[0]) is nn.Linear
    assert torch.equal(network[1](x), before)  # too few rows
    exchanged.revert_patch()


def test_what_reads_few_rows_or_does_not_divide_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Attention(nn.Module):
        def __init__(self, cross: bool) -> None:
            super().__init__()
            self.is_cross_attention = cross
            self.to_q, self.to_k, self.to_v = (nn.Linear(16, 16) for _ in range(3))

    monkeypatch.setattr(fp8, "MIN_WEIGHTS", 500)
    network = nn.ModuleDict(
        {
            "own": Attention(False),
            "of_text": Attention(True),
            "time_embedding": nn.Linear(64, 64),
            "odd": nn.Linear(64, 72),
            "wide": nn.Linear(64, 64),
        }
    ).requires_grad_(False)
    exchanged = Fp8Patcher(network)
    exchanged.apply_patch()
    found = {name for name, one in network.named_modules() if isinstance(one, Fp8Linear)}
    exchanged.revert_patch()
    assert found == {"own.to_q", "own.to_k", "own.to_v", "wide"}


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("shape", [(5, 640), (4099, 1280), (70, 10240), (9, 100)])
def test_the_kernel_does_what_the_reference_does(shape: tuple[int, int]) -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(shape, generator=draws, device="cuda").bfloat16()
    x[1] = 0
    rows, scales = fp8.quantize_rows(x)
    wanted, wanted_scales = quantize_rows_reference(x)
    torch.testing.assert_close(scales, wanted_scales, rtol=1e-6, atol=0)
    different = (rows.float() != wanted.float()).float().mean()
    assert different < 1e-4  # values on the edge between two
    assert near(back(rows, scales), x) < 0.04


@pytest.mark.gpu
@GPU
def test_products_on_a_gpu() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2560, 1280, device="cuda").bfloat16()
    x, bias = torch.randn(4096, 1280, device="cuda").bfloat16(), torch.randn(2560, device="cuda")
    grad = torch.randn(4096, 2560, device="cuda").bfloat16()
    eight = [*quantize_weight(weight)]
    (y,) = fp8.linear_products(x, [weight], [bias.bfloat16()], eight)
    exact = x.float() @ weight.float().T + bias
    assert 0.01 < near(y, exact) < 0.05
    back = fp8.input_gradient([grad], [weight], eight)
    assert 0.01 < near(back, grad.float() @ weight.float()) < 0.05
