"""Matrix products with large frozen weights in FP8 (e4m3), for GPUs that support it.

Each row of the activations and each row of the weight has its own scale, so that the largest value
of a row becomes 448, the largest that e4m3 represents; products accumulate in float32. A weight is
quantized once in both directions: by its rows for W x, by its columns for g W. Adapters are not
quantized: they are computed in the layer's own dtype.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.ops.streams import run_concurrently
from lorasmith.ops.triton_kernels import support as triton_support

DTYPE = torch.float8_e4m3fn
E4M3_MAX = 448.0
MIN_WEIGHTS = 3_000_000
"""Weights of all layers that read one input, from which quantizing the input pays off."""
MIN_TOKENS = 4096
"""Rows of an input, from which quantizing it pays off."""
SIZE_MULTIPLE = 16
"""Both sides of a weight must be multiples of this."""


class Fp8Weight(NamedTuple):
    """A weight quantized in both directions."""

    rows: torch.Tensor
    """``[out, in]``, e4m3."""
    row_scales: torch.Tensor
    """``[out]``, float32: the factor that restores a row."""
    columns: torch.Tensor
    """``[in, out]``, e4m3."""
    column_scales: torch.Tensor
    """``[in]``, float32."""


def is_available(device: torch.device) -> bool:
    """Return whether FP8 products work on a device (capability 8.9 or more), after trying one."""
    if not triton_support.is_available(device):
        return False
    if torch.cuda.get_device_capability(device) < (8, 9):
        return False
    x = torch.ones(16, 16, device=device, dtype=torch.bfloat16)
    try:
        with torch.cuda.device(device):
            y = _scaled_matmul(*quantize_rows(x), *quantize_rows_reference(x), None, x.dtype)
    except RuntimeError:
        return False
    return bool((y == 16.0).all())


def is_supported_shape(weight: torch.Tensor) -> bool:
    """Return whether GPUs can multiply with a weight of this shape in FP8."""
    return all(size % SIZE_MULTIPLE == 0 for size in weight.shape)


# --- quantization -------------------------------------------------------------------------------


def quantize_weight(weight: torch.Tensor) -> Fp8Weight:
    """Quantize a weight ``[out, in]``."""
    return Fp8Weight(*quantize_rows_reference(weight), *quantize_rows_reference(weight.t()))


def quantize_rows_reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows ``[T, n]`` in e4m3 and each row's scale ``[T]``, with torch's own operations.

    A row of zeros stays a row of zeros.
    """
    x = x.float()
    scales = x.abs().amax(1).clamp(min=1e-12) / E4M3_MAX
    return (x / scales[:, None]).to(DTYPE).contiguous(), scales


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same for activations, on a GPU with one kernel."""
    if not x.is_cuda:
        return quantize_rows_reference(x)
    from lorasmith.ops.triton_kernels import fp8 as fp8_triton

    x = x.contiguous()
    out, scales = torch.empty_like(x, dtype=DTYPE), x.new_empty(len(x), dtype=torch.float32)
    width = x.shape[1]
    block = 1 << (width - 1).bit_length()
    rows_per_program = max(1, 4096 // block)
    fp8_triton.quantize_rows[(-(-len(x) // rows_per_program),)](
        x,
        out,
        scales,
        len(x),
        width,
        rows_per_program,
        block,
        num_warps=max(4, min(16, block // 512)),
    )
    return out, scales


# --- quantized weights of layers, as the flat lists that custom operations take -----------------


def fp8_weight_of(layer: nn.Module) -> Fp8Weight | None:
    """Return a layer's quantized weight; it has one only while a patch has put it there."""
    weight: Fp8Weight | None = getattr(layer, "fp8_weight", None)
    return weight


def flatten_fp8_weights(weights: Sequence[Fp8Weight | None]) -> list[torch.Tensor]:
    """Return the tensors of quantized weights in one list; empty if any weight is None."""
    tensors: list[torch.Tensor] = []
    for weight in weights:
        if weight is None:
            return []
        tensors += weight
    return tensors


def _unflatten_fp8_weights(tensors: Sequence[torch.Tensor]) -> list[Fp8Weight]:
    size = len(Fp8Weight._fields)
    return [Fp8Weight(*tensors[i : i + size]) for i in range(0, len(tensors), size)]


# --- products -----------------------------------------------------------------------------------


def linear_products(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    fp8_weights: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Return W x + b, ``[T, out]``, of each layer for one input ``[T, in]``.

    Args:
        x: the input.
        weights: of each layer, ``[out, in]``.
        biases: of each layer, ``[out]``.
        fp8_weights: flattened quantized weights; used if given and the product is large enough.
    """
    is_small = len(x) < MIN_TOKENS or sum(weight.numel() for weight in weights) < MIN_WEIGHTS
    if not fp8_weights or is_small:
        layers = zip(weights, biases, strict=True)
        return run_concurrently([partial(F.linear, x, *layer) for layer in layers], x)
    rows, scales = quantize_rows(x)
    return [
        _scaled_matmul(rows, scales, weight.rows, weight.row_scales, bias, x.dtype)
        for bias, weight in zip(biases, _unflatten_fp8_weights(fp8_weights), strict=True)
    ]


def input_gradient(
    grads: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    fp8_weights: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Return the sum of g W, ``[T, in]``, over the layers' output gradients g ``[T, out]``.

    Only a single layer uses FP8: q, k and v are each too small to quantize a gradient for.
    """
    grad, weight = grads[0], weights[0]
    is_large = len(grad) >= MIN_TOKENS and weight.numel() >= MIN_WEIGHTS
    if len(grads) == 1 and fp8_weights and is_large:
        (fp8_weight,) = _unflatten_fp8_weights(fp8_weights)
        columns, scales = fp8_weight.columns, fp8_weight.column_scales
        return _scaled_matmul(*quantize_rows(grad), columns, scales, None, grad.dtype)
    total = grad @ weight
    for grad, weight in zip(grads[1:], weights[1:], strict=True):
        total.addmm_(grad, weight)
    return total


def _scaled_matmul(
    rows: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the product of quantized rows with a quantized weight's transpose, scaled back."""
    if not rows.is_cuda:
        exact = (rows.float() * scales[:, None]) @ (weight.float() * weight_scales[:, None]).t()
        return (exact if bias is None else exact + bias.float()).to(dtype)
    return torch._scaled_mm(
        rows,
        weight.t(),
        scales[:, None],
        weight_scales[None],
        bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )


# --- one linear layer with gradients ------------------------------------------------------------


def fp8_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, fp8_weight: Fp8Weight
) -> torch.Tensor:
    """Return W x + b, ``[..., out]``, of a frozen layer; only ``x`` gets a gradient."""
    y: torch.Tensor = _linear(x, weight, bias, [*fp8_weight])
    return y


@torch.library.custom_op("lorasmith::fp8_linear", mutates_args=())
def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    fp8_weights: Sequence[torch.Tensor],
) -> torch.Tensor:
    (y,) = linear_products(x.flatten(0, -2), [weight], [bias], fp8_weights)
    return y.view(*x.shape[:-1], -1)


@_linear.register_fake
def _linear_shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    fp8_weights: Sequence[torch.Tensor],
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("lorasmith::fp8_linear_backward", mutates_args=())
def _linear_backward(
    grad: torch.Tensor, weight: torch.Tensor, fp8_weights: Sequence[torch.Tensor]
) -> torch.Tensor:
    grad_x = input_gradient([grad.flatten(0, -2)], [weight], fp8_weights)
    return grad_x.view(*grad.shape[:-1], -1)


@_linear_backward.register_fake
def _linear_backward_shape(
    grad: torch.Tensor, weight: torch.Tensor, fp8_weights: Sequence[torch.Tensor]
) -> torch.Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


def _setup_context(ctx: Any, inputs: Sequence[Any], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[1], *inputs[3])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    weight, *fp8_weights = ctx.saved_tensors
    return _linear_backward(grad, weight, fp8_weights), None, None, [None] * len(fp8_weights)


_linear.register_autograd(_backward, setup_context=_setup_context)
