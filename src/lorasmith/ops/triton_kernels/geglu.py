"""Triton kernels of ``lorasmith.ops.geglu``; importing this needs Triton.

gelu(g) = g Phi(g) with Phi(g) = (1 + erf(g / sqrt 2)) / 2 (Hendrycks and Gimpel 2016,
arXiv:1606.08415), computed in float32, each result rounded once.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def _cdf(gate):
    """Return Phi."""
    return 0.5 * (1.0 + tl.erf(gate * _SQRT_HALF))


@triton.jit
def forward(halves, out, width, block: tl.constexpr):
    """Write out[t, c] = halves[t, c] * gelu(halves[t, width + c]) for one t and a block of c."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.program_id(1) * block + tl.arange(0, block)
    mask = column < width
    offset = 2 * row + column
    hidden = tl.load(halves + offset, mask).to(tl.float32)
    gate = tl.load(halves + offset + width, mask).to(tl.float32)
    value = hidden * gate * _cdf(gate)
    tl.store(out + row + column, value.to(out.dtype.element_ty), mask)


@triton.jit
def backward(grad, halves, out, width, block: tl.constexpr):
    """Write the gradients of both halves side by side, for one t and a block of c."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.program_id(1) * block + tl.arange(0, block)
    mask = column < width
    offset = 2 * row + column
    g = tl.load(grad + row + column, mask).to(tl.float32)
    hidden = tl.load(halves + offset, mask).to(tl.float32)
    gate = tl.load(halves + offset + width, mask).to(tl.float32)
    cdf = _cdf(gate)
    slope = cdf + gate * _INV_SQRT_2PI * tl.exp(-0.5 * gate * gate)
    dtype = out.dtype.element_ty
    tl.store(out + offset, (g * gate * cdf).to(dtype), mask)
    tl.store(out + offset + width, (g * hidden * slope).to(dtype), mask)


@triton.jit
def forward_lora(
    halves, inner, up, out, tokens, width, rank,
    rows: tl.constexpr, block: tl.constexpr, padded_rank: tl.constexpr,
):  # fmt: skip
    """Add an adapter's product to both halves, and write h * gelu(g) of the sums.

    Each group of tokens has one adapter: halves ``[G, T, 2 n]``, inner ``[G, T, r]``, up
    ``[G, 2 n, r]``.
    """
    group = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * block + tl.arange(0, block)
    part = tl.arange(0, padded_rank)
    mask = (token < tokens)[:, None] & (column < width)[None, :]
    row = (group * tokens + token)[:, None]
    inner_tile = tl.load(
        inner + row * rank + part[None, :], (token < tokens)[:, None] & (part < rank)[None, :], 0.0
    )
    up_offset = (group * 2 * width + column)[None, :] * rank + part[:, None]
    up_mask = (column < width)[None, :] & (part < rank)[:, None]
    up_hidden = tl.load(up + up_offset, up_mask, 0.0)
    up_gate = tl.load(up + up_offset + width * rank, up_mask, 0.0)
    offset = row * 2 * width + column[None, :]
    dtype = out.dtype.element_ty
    added = tl.dot(inner_tile, up_gate, input_precision="ieee")
    gate = (tl.load(halves + offset + width, mask, 0.0).to(tl.float32) + added).to(dtype)
    tl.store(halves + offset + width, gate, mask)
    added = tl.dot(inner_tile, up_hidden, input_precision="ieee")
    hidden = (tl.load(halves + offset, mask, 0.0).to(tl.float32) + added).to(dtype)
    tl.store(halves + offset, hidden, mask)
    gate_fp32 = gate.to(tl.float32)
    value = hidden.to(tl.float32) * gate_fp32 * _cdf(gate_fp32)
    tl.store(out + row * width + column[None, :], value.to(dtype), mask)


@triton.jit
def backward_lora(
    grad, inner, down, halves, out, tokens, width, rank,
    rows: tl.constexpr, block: tl.constexpr, padded_rank: tl.constexpr,
):  # fmt: skip
    """Add the following layer's adapters' share to the gradient; write that of both halves.

    Each group of tokens has one adapter: grad ``[G, T, n]``, inner ``[G, T, r]``, down
    ``[G, r, n]``, halves and out ``[G, T, 2 n]``.
    """
    group = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * block + tl.arange(0, block)
    part = tl.arange(0, padded_rank)
    mask = (token < tokens)[:, None] & (column < width)[None, :]
    row = (group * tokens + token)[:, None]
    inner_tile = tl.load(
        inner + row * rank + part[None, :], (token < tokens)[:, None] & (part < rank)[None, :], 0.0
    )
    down_offset = (group * rank + part)[:, None] * width + column[None, :]
    down_mask = (part < rank)[:, None] & (column < width)[None, :]
    down_tile = tl.load(down + down_offset, down_mask, 0.0)
    added = tl.dot(inner_tile, down_tile, input_precision="ieee")
    dtype = out.dtype.element_ty
    g = tl.load(grad + row * width + column[None, :], mask, 0.0).to(tl.float32) + added
    g = g.to(dtype).to(tl.float32)
    offset = row * 2 * width + column[None, :]
    hidden = tl.load(halves + offset, mask, 0.0).to(tl.float32)
    gate = tl.load(halves + offset + width, mask, 0.0).to(tl.float32)
    cdf = _cdf(gate)
    slope = cdf + gate * _INV_SQRT_2PI * tl.exp(-0.5 * gate * gate)
    tl.store(out + offset, (g * gate * cdf).to(dtype), mask)
    tl.store(out + offset + width, (g * hidden * slope).to(dtype), mask)
