"""The gated activation's kernels give what diffusers' own code gives."""

import pytest
import torch

from lorasmith.training import geglu
from lorasmith.training.swift import Swift

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
    with Swift(network, compiled=False)():
        assert torch.equal(network(x), before)


def test_layers_are_exchanged_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    assert len(list(geglu.gated_layers(network))) == 2
    x = torch.randn(3, 5, 12)
    before = network(x)
    monkeypatch.setattr(geglu, "gated", lambda both: geglu.reference(both) * 2.0)
    geglu.use_kernels(network)
    assert not torch.allclose(network(x), before)
    geglu.use_own(network)
    assert torch.equal(network(x), before)


def test_the_reference_is_diffusers_own() -> None:
    network = Network()
    x = torch.randn(3, 5, 12)
    first = network.layers[0]
    torch.testing.assert_close(geglu.reference(first.proj(x)), first(x), atol=0, rtol=0)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("shape", [(3, 10), (2, 7, 2560), (1, 4096, 5120)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_agree_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    both = torch.randn(shape, generator=draws, device="cuda").to(dtype).requires_grad_()
    weight = torch.randn((*shape[:-1], shape[-1] // 2), generator=draws, device="cuda").to(dtype)
    ours = geglu.gated(both)
    (slope,) = torch.autograd.grad((ours * weight).sum(), both)
    exact = both.detach().double().requires_grad_()
    wanted = geglu.reference(exact)
    (wanted_slope,) = torch.autograd.grad((wanted * weight.double()).sum(), exact)
    bound = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(ours.double(), wanted, atol=bound, rtol=bound)
    torch.testing.assert_close(slope.double(), wanted_slope, atol=bound, rtol=bound)
