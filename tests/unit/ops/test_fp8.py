"""FP8 products: exact where the values allow it, close otherwise."""

import pytest
import torch

from lorasmith.ops import fp8
from lorasmith.ops.fp8 import quantize_rows_reference, quantize_weight

FP8 = pytest.mark.skipif(
    not (torch.cuda.is_available() and fp8.is_available(torch.device("cuda"))),
    reason="needs a CUDA device that multiplies in FP8",
)


def dequantize(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return rows.double() * scales.double()[:, None]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    error = (actual.detach().float() - expected.float()).norm()
    return float(error / expected.float().norm())


def test_each_row_has_a_scale() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 1e3, 1e6, 0.0])[:, None]
    rows, scales = quantize_rows_reference(x)
    assert rows.dtype == torch.float8_e4m3fn
    assert rows[:4].float().abs().amax(1).tolist() == [448.0] * 4
    # e4m3 has three bits after the leading one: half of the last bit is a sixteenth of the value.
    normal = x.abs() > 2**-6 * scales[:, None]
    error = (dequantize(rows, scales) - x).abs()
    assert (error[normal] <= x.abs()[normal] / 16 * 1.0001).all()
    assert torch.equal(dequantize(rows, scales)[4], torch.zeros(64, dtype=torch.double))


def test_quantized_weights_are_flattened_only_if_all_exist() -> None:
    weight = quantize_weight(torch.randn(16, 32))
    assert len(fp8.flatten_fp8_weights([weight, weight])) == 8
    assert fp8.flatten_fp8_weights([weight, None]) == []


@pytest.mark.gpu
@FP8
@pytest.mark.parametrize("shape", [(5, 640), (4099, 1280), (70, 10240), (9, 100)])
def test_quantization_kernel_agrees_with_the_reference(shape: tuple[int, int]) -> None:
    rng = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(shape, generator=rng, device="cuda").bfloat16()
    x[1] = 0
    rows, scales = fp8.quantize_rows(x)
    expected, expected_scales = quantize_rows_reference(x)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
    different = (rows.float() != expected.float()).float().mean()
    assert different < 1e-4  # values halfway between two
    assert relative_error(dequantize(rows, scales), x) < 0.04


@pytest.mark.gpu
@FP8
def test_fp8_products_on_a_gpu_are_close() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2560, 1280, device="cuda").bfloat16()
    x, bias = torch.randn(4096, 1280, device="cuda").bfloat16(), torch.randn(2560, device="cuda")
    grad = torch.randn(4096, 2560, device="cuda").bfloat16()
    fp8_weights = fp8.flatten_fp8_weights([quantize_weight(weight)])
    (y,) = fp8.linear_products(x, [weight], [bias.bfloat16()], fp8_weights)
    assert 0.01 < relative_error(y, x.float() @ weight.float().T + bias) < 0.05
    grad_x = fp8.input_gradient([grad], [weight], fp8_weights)
    assert 0.01 < relative_error(grad_x, grad.float() @ weight.float()) < 0.05
