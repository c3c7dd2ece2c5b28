"""Triton kernels of ``lorasmith.ops.layer_norm``; importing this needs Triton.

Each program handles some full rows; all arithmetic is in float32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _indices(rows, width, rows_per_program: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0) * rows_per_program + tl.arange(0, rows_per_program)
    column = tl.arange(0, block)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    return row, column, row.to(tl.int64)[:, None] * width + column[None, :], mask


@triton.jit
def forward(
    x, added, total, out, means, rstds, weight, bias, rows, width, eps,
    has_added: tl.constexpr, rows_per_program: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write total = x + added (if ``has_added``), its norm, each row's mean and 1 / deviation."""
    row, column, offset, mask = _indices(rows, width, rows_per_program, block)
    value = tl.load(x + offset, mask, 0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    if has_added:
        rounded = (value + tl.load(added + offset, mask, 0.0).to(tl.float32)).to(dtype)
        tl.store(total + offset, rounded, mask)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, 1) / width
    centered = tl.where(mask, value - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, 1) / width + eps)
    tl.store(means + row, mean, row < rows)
    tl.store(rstds + row, rstd, row < rows)
    w = tl.load(weight + column, column < width, 0.0).to(tl.float32)
    b = tl.load(bias + column, column < width, 0.0).to(tl.float32)
    y = centered * rstd[:, None] * w[None, :] + b[None, :]
    tl.store(out + offset, y.to(dtype), mask)


@triton.jit
def backward(
    grad, grad_total, total, out, means, rstds, weight, rows, width,
    has_grad_total: tl.constexpr, rows_per_program: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the sum: the norm's, plus ``grad_total`` (if ``has_grad_total``).

    With y = w z + b, z = s (x - mean) and g = w dy: dx = s (g - mean(g) - z mean(g z)).
    """
    row, column, offset, mask = _indices(rows, width, rows_per_program, block)
    mean = tl.load(means + row, row < rows, 0.0)[:, None]
    rstd = tl.load(rstds + row, row < rows, 0.0)[:, None]
    w = tl.load(weight + column, column < width, 0.0).to(tl.float32)
    z = (tl.load(total + offset, mask, 0.0).to(tl.float32) - mean) * rstd
    z = tl.where(mask, z, 0.0)
    g = tl.load(grad + offset, mask, 0.0).to(tl.float32) * w[None, :]
    mean_gz = tl.sum(g * z, 1) / width
    dx = rstd * (g - (tl.sum(g, 1) / width)[:, None] - z * mean_gz[:, None])
    if has_grad_total:
        dx += tl.load(grad_total + offset, mask, 0.0).to(tl.float32)
    tl.store(out + offset, dx.to(out.dtype.element_ty), mask)
