"""Triton kernels of ``lorasmith.ops.layer_norm``; importing this needs Triton.

Each program has some whole rows; all arithmetic is in float32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _place(rows, width, each: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0) * each + tl.arange(0, each)
    column = tl.arange(0, block)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    return row, column, row.to(tl.int64)[:, None] * width + column[None, :], inside


@triton.jit
def normalise(
    x, added, total, out, means, scales, weight, bias, rows, width, eps,
    adds: tl.constexpr, each: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write total = x + added (if ``adds``), its norm, and each row's mean and 1 / deviation."""
    row, column, place, inside = _place(rows, width, each, block)
    value = tl.load(x + place, inside, 0.0).to(tl.float32)
    kind = out.dtype.element_ty
    if adds:
        rounded = (value + tl.load(added + place, inside, 0.0).to(tl.float32)).to(kind)
        tl.store(total + place, rounded, inside)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, 1) / width
    centred = tl.where(inside, value - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    tl.store(means + row, mean, row < rows)
    tl.store(scales + row, scale, row < rows)
    w = tl.load(weight + column, column < width, 0.0).to(tl.float32)
    b = tl.load(bias + column, column < width, 0.0).to(tl.float32)
    y = centred * scale[:, None] * w[None, :] + b[None, :]
    tl.store(out + place, y.to(kind), inside)


@triton.jit
def differentiate(
    grad, beside, total, out, means, scales, weight, rows, width,
    adds: tl.constexpr, each: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the sum: the norm's, and what comes beside it (if ``adds``).

    With y = w z + b, z = s (x - mean) and g = w dy: dx = s (g - mean(g) - z mean(g z)).
    """
    row, column, place, inside = _place(rows, width, each, block)
    mean = tl.load(means + row, row < rows, 0.0)[:, None]
    scale = tl.load(scales + row, row < rows, 0.0)[:, None]
    w = tl.load(weight + column, column < width, 0.0).to(tl.float32)
    z = (tl.load(total + place, inside, 0.0).to(tl.float32) - mean) * scale
    z = tl.where(inside, z, 0.0)
    g = tl.load(grad + place, inside, 0.0).to(tl.float32) * w[None, :]
    along = tl.sum(g * z, 1) / width
    dx = scale * (g - (tl.sum(g, 1) / width)[:, None] - z * along[:, None])
    if adds:
        dx += tl.load(beside + place, inside, 0.0).to(tl.float32)
    tl.store(out + place, dx.to(out.dtype.element_ty), inside)
