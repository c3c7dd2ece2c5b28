"""Products with large frozen weights in 8-bit floating point (e4m3), for GPUs that have it.

Each row of the activations and each row of the weight has its own scale, so that the largest value
of a row becomes 448, the largest that e4m3 holds; products are summed in float32. The weight is
converted once, in both directions: by its rows for W x, by its columns for g W. Adapters are not
touched by this: they are computed with in the layer's own dtype.

A layer has such copies only while a training step is at work with them.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.adapters.targeting.qkv_groups import iter_qkv_groups
from lorasmith.ops import triton_support
from lorasmith.ops.streams import run_concurrently

DTYPE = torch.float8_e4m3fn
E4M3_MAX = 448.0
MIN_WEIGHTS = 3_000_000
"""Weights, of all layers that read an input together, from which converting the input pays."""
_STEP = 16
"""What both sides of a weight are to be multiples of."""
_OF_TEXT = 2
"""Layers of an attention that read a text, which has few tokens: k and v."""
MIN_TOKENS = 4096
"""Rows of an input, likewise."""


class Fp8Weight(NamedTuple):
    """A weight in 8 bits, twice."""

    rows: torch.Tensor
    """``[out, in]``, e4m3."""
    row_scales: torch.Tensor
    """``[out]``, float32: what a row is to be multiplied by."""
    columns: torch.Tensor
    """``[in, out]``, e4m3."""
    column_scales: torch.Tensor
    """``[in]``, float32."""


def is_available(device: torch.device) -> bool:
    """Tell whether a device has these products (compute capability 8.9 and above), by trying."""
    if not triton_support.is_available(device) or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    x = torch.ones(16, 16, device=device, dtype=torch.bfloat16)
    try:
        with torch.cuda.device(device):
            y = _scaled_matmul(*quantize_rows(x), *quantize_rows_reference(x), None, x.dtype)
    except RuntimeError:
        return False
    return bool((y == 16.0).all())


def quantize_weight(weight: torch.Tensor) -> Fp8Weight:
    """Return a weight ``[out, in]`` in 8 bits."""
    return Fp8Weight(*quantize_rows_reference(weight), *quantize_rows_reference(weight.t()))


def quantize_rows_reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows ``[T, n]`` in 8 bits and each row's scale ``[T]``, by torch's own operations.

    A row of zeros stays one.
    """
    wide = x.float()
    scales = wide.abs().amax(1).clamp(min=1e-12) / E4M3_MAX
    return (wide / scales[:, None]).to(DTYPE).contiguous(), scales


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same for activations, by one kernel on a GPU."""
    if not x.is_cuda:
        return quantize_rows_reference(x)
    from lorasmith.ops import fp8_triton

    x = x.contiguous()
    out, scales = torch.empty_like(x, dtype=DTYPE), x.new_empty(len(x), dtype=torch.float32)
    width = x.shape[1]
    block = 1 << (width - 1).bit_length()
    each = max(1, 4096 // block)
    fp8_triton.to_rows[(-(-len(x) // each),)](
        x, out, scales, len(x), width, each, block, num_warps=max(4, min(16, block // 512))
    )
    return out, scales


class Fp8Patcher:
    """The large frozen linear layers of a network, which multiply in 8 bits between ``on`` and
    ``off``.
    """

    def __init__(self, network: nn.Module) -> None:
        """Convert the weights; they take as much memory again."""
        found = {
            layer: None
            for family in [*_alone(network), *_attentions(network)]
            if sum(one.weight.numel() for one in family) >= MIN_WEIGHTS
            for layer in family
            if not layer.weight.requires_grad and _divides(layer)
        }
        self._layers = [(layer, quantize_weight(layer.weight.detach())) for layer in found]

    def __len__(self) -> int:
        return len(self._layers)

    def apply_patch(self) -> None:
        """Use the copies."""
        for layer, eight in self._layers:
            layer.fp8_weight = eight  # type: ignore[assignment]
            layer.__class__ = Fp8Linear

    def revert_patch(self) -> None:
        """Let the layers multiply as they are."""
        for layer, _ in self._layers:
            del layer.fp8_weight
            layer.__class__ = nn.Linear


def _alone(network: nn.Module) -> Iterator[list[nn.Linear]]:
    """Yield each linear layer but embeddings of times and sizes, which read one row a picture."""
    for name, one in network.named_modules():
        if type(one) is nn.Linear and "embedding" not in name:
            yield [one]


def _attentions(network: nn.Module) -> Iterator[list[nn.Linear]]:
    """Yield q, k and v of each attention, which together are large where one is not."""
    for layers in iter_qkv_groups(network):
        bases = [getattr(one, "base", one) for one in layers]
        if len(bases) > _OF_TEXT and all(type(one) is nn.Linear for one in bases):
            yield cast("list[nn.Linear]", bases)


def _divides(layer: nn.Linear) -> bool:
    """Tell whether GPUs can multiply with a layer's weight in 8 bits."""
    return layer.in_features % _STEP == 0 and layer.out_features % _STEP == 0


class Fp8Linear(nn.Linear):
    """A linear layer without adapters that has copies of its weight."""

    fp8_weight: Fp8Weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return W x + b."""
        y: torch.Tensor = _linear(input, self.weight, self.bias, [*self.fp8_weight])
        return y


@torch.library.custom_op("lorasmith::eight_bit_linear", mutates_args=())
def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eights: Sequence[torch.Tensor],
) -> torch.Tensor:
    (y,) = linear_products(x.flatten(0, -2), [weight], [bias], eights)
    return y.view(*x.shape[:-1], -1)


@_linear.register_fake
def _linear_shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eights: Sequence[torch.Tensor],
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("lorasmith::eight_bit_linear_backward", mutates_args=())
def _linear_backward(
    grad: torch.Tensor, weight: torch.Tensor, eights: Sequence[torch.Tensor]
) -> torch.Tensor:
    grad_x = input_gradient([grad.flatten(0, -2)], [weight], eights)
    return grad_x.view(*grad.shape[:-1], -1)


@_linear_backward.register_fake
def _linear_backward_shape(
    grad: torch.Tensor, weight: torch.Tensor, eights: Sequence[torch.Tensor]
) -> torch.Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


def _keep(ctx: Any, inputs: Sequence[Any], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[1], *inputs[3])


def _differentiate(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    weight, *eights = ctx.saved_tensors
    return _linear_backward(grad, weight, eights), None, None, [None] * len(eights)


_linear.register_autograd(_differentiate, setup_context=_keep)


def flatten_fp8_weights(layers: Sequence[nn.Linear]) -> list[torch.Tensor]:
    """Return the copies of some layers one after the other; none where one of them has none."""
    found = [cast("Fp8Weight | None", getattr(layer, "fp8_weight", None)) for layer in layers]
    return [] if None in found else [part for one in found if one is not None for part in one]


def _apart(eights: Sequence[torch.Tensor]) -> list[Fp8Weight]:
    size = len(Fp8Weight._fields)
    return [Fp8Weight(*eights[first : first + size]) for first in range(0, len(eights), size)]


def linear_products(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    eights: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Return W x + b, ``[T, out]``, of each layer for one input ``[T, in]``."""
    if not eights or len(x) < MIN_TOKENS or sum(one.numel() for one in weights) < MIN_WEIGHTS:
        layers = zip(weights, biases, strict=True)
        return run_concurrently([partial(F.linear, x, *layer) for layer in layers], x)
    rows, scales = quantize_rows(x)
    return [
        _scaled_matmul(rows, scales, eight.rows, eight.row_scales, bias, x.dtype)
        for bias, eight in zip(biases, _apart(eights), strict=True)
    ]


def input_gradient(
    grads: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    eights: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Return the sum of g W, ``[T, in]``, for each layer's gradient g ``[T, out]``.

    Only a layer alone does it in 8 bits: q, k and v are each too small to be worth converting a
    gradient for.
    """
    grad, weight = grads[0], weights[0]
    if len(grads) == 1 and eights and len(grad) >= MIN_TOKENS and weight.numel() >= MIN_WEIGHTS:
        (eight,) = _apart(eights)
        return _scaled_matmul(
            *quantize_rows(grad), eight.columns, eight.column_scales, None, grad.dtype
        )
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
    """Return the product with a converted weight's transpose, scaled back."""
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
