"""The gated activation's kernels give what diffusers' own code gives."""

import pytest
import torch

from lorasmith.adapters.gating.gate import Gate
from lorasmith.adapters.nn.lora import Factors, LoraLinear
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops import geglu
from lorasmith.ops.fused_lora import op_arguments
from lorasmith.training.acceleration import feed_forward
from lorasmith.training.acceleration.factor_cache import FactorCastCache
from lorasmith.training.acceleration.patcher import UNetPatcher

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Network(torch.nn.Module):
    def __init__(self) -> None:
        from diffusers.models.activations import GEGLU

        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(GEGLU(12, 20), torch.nn.Linear(20, 12), GEGLU(12, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_a_network_without_a_gpu_stays_as_it_is() -> None:
    network = Network()
    x = torch.randn(3, 5, 12)
    before = network(x)
    with UNetPatcher(network)():
        assert torch.equal(network(x), before)


def test_layers_are_exchanged_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    assert [geglu.is_gated(one) for one in network.layers] == [True, False, True]
    x = torch.randn(3, 5, 12)
    before = network(x)
    monkeypatch.setattr(geglu, "geglu", lambda both: geglu.geglu_reference(both) * 2.0)
    geglu.use_kernels(network)
    assert not torch.allclose(network(x), before)
    geglu.use_own(network)
    assert torch.equal(network(x), before)


def test_the_reference_is_diffusers_own() -> None:
    network = Network()
    x = torch.randn(3, 5, 12)
    first = network.layers[0]
    torch.testing.assert_close(geglu.geglu_reference(first.proj(x)), first(x), atol=0, rtol=0)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("shape", [(3, 10), (2, 7, 2560), (1, 4096, 5120)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_agree_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    both = torch.randn(shape, generator=draws, device="cuda").to(dtype).requires_grad_()
    weight = torch.randn((*shape[:-1], shape[-1] // 2), generator=draws, device="cuda").to(dtype)
    ours = geglu.geglu(both)
    (slope,) = torch.autograd.grad((ours * weight).sum(), both)
    exact = both.detach().double().requires_grad_()
    wanted = geglu.geglu_reference(exact)
    (wanted_slope,) = torch.autograd.grad((wanted * weight.double()).sum(), exact)
    bound = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(ours.double(), wanted, atol=bound, rtol=bound)
    torch.testing.assert_close(slope.double(), wanted_slope, atol=bound, rtol=bound)


class Gated(torch.nn.Module):
    """A gated layer with adapters."""

    def __init__(self, ranks: tuple[int, ...], size: int, dtype: torch.dtype, device: str) -> None:
        from diffusers.models.activations import GEGLU

        super().__init__()
        torch.manual_seed(0)
        self.layer = GEGLU(12, size).to(dtype).requires_grad_(False)
        self.layer.proj = LoraWrapper(self.layer.proj)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for rank in ranks:
            factors = torch.randn(rank, 12, dtype=wide), torch.randn(2 * size, rank, dtype=wide)
            self.layer.proj.adapters.append(LoraLinear(Factors(*factors), 2.0 * rank))
        self.to(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def divide(layer: LoraWrapper, rows: int) -> None:
    """Give each adapter its equal part of the rows."""
    for number, one in enumerate(layer.adapters):
        one.gate = Gate()
        own = [row * len(layer.adapters) // rows == number for row in range(rows)]
        one.gate.set_rows(own, layer.weight.device)


def compare(network: Gated, x: torch.Tensor, atol: float, rtol: float) -> None:
    """The operation beside the layers as they are written, for x of as many rows."""
    divide(network.layer.proj, len(x))
    adapters = tuple(network.layer.proj.adapters)
    of = [x, *(factor for one in adapters for factor in (one.down, one.up))]
    wanted = network(x)
    weight = torch.randn_like(wanted)
    theirs = torch.autograd.grad((wanted * weight).sum(), of)
    casts = FactorCastCache([[(network.layer.proj, adapters)]])
    geglu.use_kernels(network)
    casts.refresh()
    found = network(x)
    ours = torch.autograd.grad((found * weight).sum(), of)
    casts.clear()
    geglu.use_own(network)
    for one, other in zip([found, *ours], [wanted, *theirs], strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one.double(), other.double(), atol=atol * scale, rtol=rtol)


class Whole(torch.nn.Module):
    """A feed-forward layer with adapters on both of its layers."""

    def __init__(self, ranks: tuple[int, ...], size: int, dtype: torch.dtype, device: str) -> None:
        from diffusers.models.attention import FeedForward

        super().__init__()
        torch.manual_seed(0)
        self.layer = FeedForward(12, inner_dim=size, activation_fn="geglu")
        self.layer.to(dtype).requires_grad_(False)
        self.layer.net[0].proj = LoraWrapper(self.layer.net[0].proj)
        self.layer.net[2] = LoraWrapper(self.layer.net[2])
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for more, one in enumerate(self.adapted()):
            for rank in ranks:
                rank += more
                outputs, inputs = one.weight.shape
                factors = (
                    torch.randn(rank, inputs, dtype=wide),
                    torch.randn(outputs, rank, dtype=wide),
                )
                one.adapters.append(LoraLinear(Factors(*factors), 2.0 * rank))
        self.to(device)

    def adapted(self) -> list[LoraWrapper]:
        return [self.layer.net[0].proj, self.layer.net[2]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def compare_whole(network: Whole, x: torch.Tensor, atol: float, rtol: float) -> None:
    """The operation beside the layers as they are written, for x of as many rows."""
    for layer in network.adapted():
        divide(layer, len(x))
    adapters = [one for layer in network.adapted() for one in layer.adapters]
    of = [x, *(factor for one in adapters for factor in (one.down, one.up))]
    wanted = network(x)
    weight = torch.randn_like(wanted)
    theirs = torch.autograd.grad((wanted * weight).sum(), of)
    casts = FactorCastCache([[(layer, tuple(layer.adapters))] for layer in network.adapted()])
    own = type(network.layer)
    feed_forward.use_kernels(network)
    assert type(network.layer) is not own
    casts.refresh()
    found = network(x)
    assert type(found.grad_fn).__name__ == "_FeedForwardBackward"
    ours = torch.autograd.grad((found * weight).sum(), of)
    casts.clear()
    torch.testing.assert_close(network(x), wanted)
    feed_forward.use_own(network)
    assert type(network.layer) is own
    for one, other in zip([found, *ours], [wanted, *theirs], strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one.double(), other.double(), atol=atol * scale, rtol=rtol)


@pytest.mark.parametrize("ranks", [(3,), (1, 4)])
def test_both_layers_at_once(ranks: tuple[int, ...]) -> None:
    network = Whole(ranks, 20, torch.float64, "cpu")
    compare_whole(network, torch.randn(4, 3, 12).double().requires_grad_(), 1e-12, 1e-10)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("size", [20, 640])
@pytest.mark.parametrize("ranks", [(3,), (16,), (2, 40), (200,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_layers_by_kernels(size: int, ranks: tuple[int, ...], dtype: torch.dtype) -> None:
    network = Whole(ranks, size, dtype, "cuda")
    x = torch.randn(4, 37, 12, device="cuda").to(dtype).requires_grad_()
    compare_whole(network, x, *((1e-5, 1e-4) if dtype == torch.float32 else (2e-2, 2e-2)))


@pytest.mark.parametrize("ranks", [(3,), (1, 4)])
def test_with_adapters_in_the_same_pass(ranks: tuple[int, ...]) -> None:
    network = Gated(ranks, 20, torch.float64, "cpu")
    x = torch.randn(4, 3, 12, dtype=torch.float64, requires_grad=True)
    compare(network, x, 1e-12, 1e-10)


def test_the_operation_is_well_formed() -> None:
    network = Gated((2,), 8, torch.float32, "cpu")
    proj = network.layer.proj
    casts = FactorCastCache([[(proj, tuple(proj.adapters))]])
    casts.refresh()
    x = torch.randn(4, 3, 12, requires_grad=True)
    given = op_arguments(x, [proj.fused_args(x)])
    torch.library.opcheck(torch.ops.lorasmith.adapted_gated.default, given)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("size", [20, 640])
@pytest.mark.parametrize("ranks", [(3,), (16,), (2, 40), (200,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_with_adapters(size: int, ranks: tuple[int, ...], dtype: torch.dtype) -> None:
    network = Gated(ranks, size, dtype, "cuda")
    x = torch.randn(4, 37, 12, device="cuda").to(dtype).requires_grad_()
    compare(network, x, *((1e-5, 1e-4) if dtype == torch.float32 else (2e-2, 2e-2)))
