"""Triton kernels of ``lorasmith.ops.geglu``; importing this needs Triton.

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
def _share(gate):
    """Return Phi."""
    return 0.5 * (1.0 + tl.erf(gate * _ROOT_HALF))


@triton.jit
def forward(both, out, width, block: tl.constexpr):
    """Write out[t, c] = both[t, c] * gelu(both[t, width + c]) for one t and a block of c."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    place = 2 * row + column
    hidden = tl.load(both + place, inside).to(tl.float32)
    gate = tl.load(both + place + width, inside).to(tl.float32)
    value = hidden * gate * _share(gate)
    tl.store(out + row + column, value.to(out.dtype.element_ty), inside)


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
    share = _share(gate)
    slope = share + gate * _DENSITY * tl.exp(-0.5 * gate * gate)
    kind = out.dtype.element_ty
    tl.store(out + place, (g * gate * share).to(kind), inside)
    tl.store(out + place + width, (g * hidden * slope).to(kind), inside)


@triton.jit
def forward_adapted(
    both, inner, up, out, tokens, width, rank,
    rows: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Add an adapter's product to both halves, and write h * gelu(g) of the sums.

    One group of tokens has one adapter: both ``[G, T, 2 n]``, inner ``[G, T, r]``, up
    ``[G, 2 n, r]``.
    """
    group = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * block + tl.arange(0, block)
    part = tl.arange(0, wide)
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    row = (group * tokens + token)[:, None]
    thin = tl.load(
        inner + row * rank + part[None, :], (token < tokens)[:, None] & (part < rank)[None, :], 0.0
    )
    place_up = (group * 2 * width + column)[None, :] * rank + part[:, None]
    inside_up = (column < width)[None, :] & (part < rank)[:, None]
    up_hidden = tl.load(up + place_up, inside_up, 0.0)
    up_gate = tl.load(up + place_up + width * rank, inside_up, 0.0)
    place = row * 2 * width + column[None, :]
    kind = out.dtype.element_ty
    added = tl.dot(thin, up_gate, input_precision="ieee")
    gate = (tl.load(both + place + width, inside, 0.0).to(tl.float32) + added).to(kind)
    tl.store(both + place + width, gate, inside)
    added = tl.dot(thin, up_hidden, input_precision="ieee")
    hidden = (tl.load(both + place, inside, 0.0).to(tl.float32) + added).to(kind)
    tl.store(both + place, hidden, inside)
    wide_gate = gate.to(tl.float32)
    value = hidden.to(tl.float32) * wide_gate * _share(wide_gate)
    tl.store(out + row * width + column[None, :], value.to(kind), inside)


@triton.jit
def backward_adapted(
    grad, inner, down, both, out, tokens, width, rank,
    rows: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Add what adapters behind the output add to its gradient, and write that of both halves.

    One group of tokens has one adapter: grad ``[G, T, n]``, inner ``[G, T, r]``, down
    ``[G, r, n]``, both and out ``[G, T, 2 n]``.
    """
    group = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * block + tl.arange(0, block)
    part = tl.arange(0, wide)
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    row = (group * tokens + token)[:, None]
    thin = tl.load(
        inner + row * rank + part[None, :], (token < tokens)[:, None] & (part < rank)[None, :], 0.0
    )
    place_down = (group * rank + part)[:, None] * width + column[None, :]
    broad = tl.load(down + place_down, (part < rank)[:, None] & (column < width)[None, :], 0.0)
    added = tl.dot(thin, broad, input_precision="ieee")
    kind = out.dtype.element_ty
    g = tl.load(grad + row * width + column[None, :], inside, 0.0).to(tl.float32) + added
    g = g.to(kind).to(tl.float32)
    place = row * 2 * width + column[None, :]
    hidden = tl.load(both + place, inside, 0.0).to(tl.float32)
    gate = tl.load(both + place + width, inside, 0.0).to(tl.float32)
    share = _share(gate)
    slope = share + gate * _DENSITY * tl.exp(-0.5 * gate * gate)
    tl.store(out + place, (g * gate * share).to(kind), inside)
    tl.store(out + place + width, (g * hidden * slope).to(kind), inside)
