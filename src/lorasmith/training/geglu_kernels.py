"""Triton kernels of ``lorasmith.training.geglu``; importing this needs Triton.

gelu(g) = g Phi(g) with Phi(g) = (1 + erf(g / sqrt 2)) / 2 (Hendrycks and Gimpel 2016,
arXiv:1606.08415), computed in float32, each result rounded once.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

_ROOT_HALF = tl.constexpr(0.7071067811865476)
_DENSITY = tl.constexpr(0.3989422804014327)
"""1 / sqrt(2 pi)."""


@triton.jit
def forward(both, out, width, block: tl.constexpr):
    """Write out[t, c] = both[t, c] * gelu(both[t, width + c]) for one t and a block of c."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    place = 2 * row + column
    hidden = tl.load(both + place, inside).to(tl.float32)
    gate = tl.load(both + place + width, inside).to(tl.float32)
    share = 0.5 * (1.0 + tl.erf(gate * _ROOT_HALF))
    tl.store(out + row + column, (hidden * gate * share).to(out.dtype.element_ty), inside)


@triton.jit
def backward(grad, both, out, width, block: tl.constexpr):
    """Write the gradients of both halves side by side, for one t and a block of c."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    place = 2 * row + column
    g = tl.load(grad + row + column, inside).to(tl.float32)
    hidden = tl.load(both + place, inside).to(tl.float32)
    gate = tl.load(both + place + width, inside).to(tl.float32)
    share = 0.5 * (1.0 + tl.erf(gate * _ROOT_HALF))
    slope = share + gate * _DENSITY * tl.exp(-0.5 * gate * gate)
    kind = out.dtype.element_ty
    tl.store(out + place, (g * gate * share).to(kind), inside)
    tl.store(out + place + width, (g * hidden * slope).to(kind), inside)
