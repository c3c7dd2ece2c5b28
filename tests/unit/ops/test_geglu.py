"""The gated activation's kernels give what diffusers' own code gives."""

import pytest
import torch

from lorasmith.ops import geglu


def test_reference_is_that_of_diffusers() -> None:
    from diffusers.models.activations import GEGLU

    torch.manual_seed(0)
    layer = GEGLU(12, 20)
    x = torch.randn(3, 5, 12)
    torch.testing.assert_close(geglu.geglu_reference(layer.proj(x)), layer(x), atol=0, rtol=0)


def test_gradients_are_those_of_the_reference() -> None:
    torch.manual_seed(0)
    halves = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(geglu.geglu(halves).square().sum(), halves)
    expected = geglu.geglu_reference(halves)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), halves)
    torch.testing.assert_close(grad, expected_grad, atol=1e-12, rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 10), (2, 7, 2560), (1, 4096, 5120)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_agree_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    rng = torch.Generator("cuda").manual_seed(0)
    halves = torch.randn(shape, generator=rng, device="cuda").to(dtype).requires_grad_()
    weight = torch.randn((*shape[:-1], shape[-1] // 2), generator=rng, device="cuda").to(dtype)
    actual = geglu.geglu(halves)
    (grad,) = torch.autograd.grad((actual * weight).sum(), halves)
    exact = halves.detach().double().requires_grad_()
    expected = geglu.geglu_reference(exact)
    (expected_grad,) = torch.autograd.grad((expected * weight.double()).sum(), exact)
    bound = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(actual.double(), expected, atol=bound, rtol=bound)
    torch.testing.assert_close(grad.double(), expected_grad, atol=bound, rtol=bound)
