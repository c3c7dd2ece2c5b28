"""Patched feed-forward layers give what diffusers' own code gives."""

import pytest
import torch
from torch import nn

from lorasmith.adapters.gating.gate import Gate
from lorasmith.adapters.nn.lora import Factors, LoraLinear
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops import geglu
from lorasmith.ops.fused_lora import op_arguments
from lorasmith.training.acceleration.factor_cache import FactorCastCache
from lorasmith.training.acceleration.feed_forward import feed_forward_patch, geglu_patch
from lorasmith.training.acceleration.module_patch import ModulePatch, patched
from lorasmith.training.acceleration.unet_patches import UNetPatcher

TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 2e-2)}


def add_adapters(layer: nn.Linear, ranks: tuple[int, ...], dtype: torch.dtype) -> LoraWrapper:
    wrapper = LoraWrapper(layer)
    factor_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    outputs, inputs = layer.weight.shape
    for rank in ranks:
        down = torch.randn(rank, inputs, dtype=factor_dtype)
        up = torch.randn(outputs, rank, dtype=factor_dtype)
        wrapper.adapters.append(LoraLinear(Factors(down, up), 2.0 * rank))
    return wrapper


class GatedLayer(nn.Module):
    """A gated activation with adapters."""

    patch = staticmethod(geglu_patch)

    def __init__(self, ranks: tuple[int, ...], size: int, dtype: torch.dtype, device: str) -> None:
        from diffusers.models.activations import GEGLU

        super().__init__()
        torch.manual_seed(0)
        self.layer = GEGLU(12, size).to(dtype).requires_grad_(False)
        self.layer.proj = add_adapters(self.layer.proj, ranks, dtype)
        self.to(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def wrappers(self) -> list[LoraWrapper]:
        return [self.layer.proj]


class FeedForwardLayer(nn.Module):
    """A feed-forward layer with adapters on both of its linear layers, of different ranks."""

    patch = staticmethod(feed_forward_patch)

    def __init__(self, ranks: tuple[int, ...], size: int, dtype: torch.dtype, device: str) -> None:
        from diffusers.models.attention import FeedForward

        super().__init__()
        torch.manual_seed(0)
        self.layer = FeedForward(12, inner_dim=size, activation_fn="geglu")
        self.layer.to(dtype).requires_grad_(False)
        self.layer.net[0].proj = add_adapters(self.layer.net[0].proj, ranks, dtype)
        self.layer.net[2] = add_adapters(
            self.layer.net[2], tuple(rank + 1 for rank in ranks), dtype
        )
        self.to(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def wrappers(self) -> list[LoraWrapper]:
        return [self.layer.net[0].proj, self.layer.net[2]]


def divide_rows(layer: LoraWrapper, rows: int) -> None:
    """Give each adapter an equal share of the rows."""
    for index, adapter in enumerate(layer.adapters):
        adapter.gate = Gate()
        active = [row * len(layer.adapters) // rows == index for row in range(rows)]
        adapter.gate.set_rows(active, layer.weight.device)


def compare(
    network: GatedLayer | FeedForwardLayer, x: torch.Tensor, atol: float, rtol: float
) -> None:
    """Compare output and gradients of the fused operation with those of separate layers."""
    for layer in network.wrappers():
        divide_rows(layer, len(x))
    adapters = [adapter for layer in network.wrappers() for adapter in layer.adapters]
    inputs = [x, *(factor for adapter in adapters for factor in (adapter.down, adapter.up))]
    expected = network(x)
    weight = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    cache = FactorCastCache([[(layer, tuple(layer.adapters))] for layer in network.wrappers()])
    with patched(network, [network.patch()]):
        cache.refresh()
        actual = network(x)
        grads = torch.autograd.grad((actual * weight).sum(), inputs)
        cache.clear()
        separate = network(x)  # without cast factors the adapters are separate operations
    if isinstance(network, FeedForwardLayer):
        assert type(actual.grad_fn).__name__ == "_FeedForwardBackward"
    results, references = [actual, separate, *grads], [expected, expected, *expected_grads]
    for result, reference in zip(results, references, strict=True):
        scale = float(reference.detach().abs().max())
        torch.testing.assert_close(
            result.double(), reference.double(), atol=atol * scale, rtol=rtol
        )


LAYERS = pytest.mark.parametrize("kind", [GatedLayer, FeedForwardLayer])


@LAYERS
@pytest.mark.parametrize("ranks", [(3,), (1, 4)])
def test_output_and_gradients_with_adapters_equal_separate_layers(
    kind: type, ranks: tuple[int, ...]
) -> None:
    network = kind(ranks, 20, torch.float64, "cpu")
    compare(network, torch.randn(4, 3, 12).double().requires_grad_(), 1e-12, 1e-10)


@pytest.mark.gpu
@LAYERS
@pytest.mark.parametrize("size", [20, 640])
@pytest.mark.parametrize("ranks", [(3,), (16,), (2, 40), (200,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_with_adapters_equal_separate_layers(
    kind: type, size: int, ranks: tuple[int, ...], dtype: torch.dtype
) -> None:
    network = kind(ranks, size, dtype, "cuda")
    x = torch.randn(4, 37, 12, device="cuda").to(dtype).requires_grad_()
    compare(network, x, *TOLERANCES[dtype])


def test_lora_geglu_is_a_well_formed_operation() -> None:
    """torch's own check of custom operations, for compilers."""
    network = GatedLayer((2,), 8, torch.float32, "cpu")
    (layer,) = network.wrappers()
    FactorCastCache([[(layer, tuple(layer.adapters))]]).refresh()
    x = torch.randn(4, 3, 12, requires_grad=True)
    arguments = op_arguments(x, [layer.fused_args(x)])
    torch.library.opcheck(torch.ops.lorasmith.lora_geglu.default, arguments)


class GatedNetwork(nn.Module):
    def __init__(self) -> None:
        from diffusers.models.activations import GEGLU

        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(GEGLU(12, 20), nn.Linear(20, 12), GEGLU(12, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_network_on_a_cpu_is_not_patched() -> None:
    network = GatedNetwork()
    x = torch.randn(3, 5, 12)
    before = network(x)
    with UNetPatcher(network).patched():
        assert torch.equal(network(x), before)


def test_gated_activations_are_patched_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    network = GatedNetwork()
    x = torch.randn(3, 5, 12)
    before = network(x)
    monkeypatch.setattr(geglu, "geglu", lambda halves: geglu.geglu_reference(halves) * 2.0)
    patches: list[ModulePatch] = [geglu_patch()]
    with patched(network, patches):
        assert not torch.allclose(network(x), before)
    assert torch.equal(network(x), before)


@pytest.mark.parametrize("options", [{"activation_fn": "gelu"}, {"dropout": 0.1}])
def test_other_feed_forward_layers_are_not_patched(options: dict[str, object]) -> None:
    from diffusers.models.attention import FeedForward

    layer = FeedForward(12, **{"activation_fn": "geglu", **options})
    with patched(layer, [feed_forward_patch()]):
        assert type(layer) is FeedForward
