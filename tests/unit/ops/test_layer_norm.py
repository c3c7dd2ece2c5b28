"""Residual sums and norms in one pass give what torch's own operations give."""

import pytest
import torch
from torch import nn

from lorasmith.ops import layer_norm


def make_norm(width: int, dtype: torch.dtype, device: str = "cpu") -> nn.LayerNorm:
    torch.manual_seed(0)
    norm = nn.LayerNorm(width, eps=1e-5, dtype=dtype, device=device).requires_grad_(False)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(width))
        norm.bias.copy_(torch.randn(width))
    return norm


def compare(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, tolerance: float, used: str = "both"
) -> None:
    """Compare both functions and their gradients with torch's own in float64."""
    norm = make_norm(shape[-1], dtype, device)
    exact = make_norm(shape[-1], dtype, device).double()
    summands = [torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2)]
    weights = [torch.randn(shape, device=device).to(dtype) for _ in range(2)]
    for function, inputs in (
        (layer_norm.add_layer_norm, summands),
        (layer_norm.layer_norm, summands[:1]),
    ):
        actual = function(*inputs, norm)
        total = sum(x.double() for x in inputs)
        if len(inputs) == 2 and dtype != torch.float64:
            total = total + (actual[0].detach().double() - total.detach())  # rounded once
        expected = (total, exact(total))
        indices = {"both": (0, 1), "sum": (0,), "norm": (1,)}[used]
        loss = sum((actual[i] * weights[i]).sum() for i in indices)
        expected_loss = sum((expected[i] * weights[i].double()).sum() for i in indices)
        grads = torch.autograd.grad(loss, inputs)
        expected_grads = torch.autograd.grad(expected_loss, inputs)
        for result, reference in zip([*actual, *grads], [*expected, *expected_grads], strict=True):
            torch.testing.assert_close(
                result.double(), reference.double(), atol=tolerance, rtol=tolerance
            )


@pytest.mark.parametrize("used", ["both", "sum", "norm"])
def test_output_and_gradients_equal_torch(used: str) -> None:
    compare((3, 4, 10), torch.float64, "cpu", 1e-12, used)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 7, 320), (2, 5, 1280), (5, 33), (3, 2050), (1, 4097, 640)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
)
def test_kernels_agree_with_float64(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    for used in ("both", "sum", "norm"):
        compare(shape, dtype, "cuda", tolerance, used)
