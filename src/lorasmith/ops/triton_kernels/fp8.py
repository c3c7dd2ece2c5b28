"""Triton kernels of ``lorasmith.ops.fp8``; importing this needs Triton."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

_E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def quantize_rows(x, out, scales, rows, width, rows_per_program: tl.constexpr, block: tl.constexpr):
    """Write rows of x in e4m3, and the scale by which each row was divided."""
    row = tl.program_id(0) * rows_per_program + tl.arange(0, rows_per_program)
    column = tl.arange(0, block)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    offset = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(x + offset, mask, 0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 1), 1e-12) / _E4M3_MAX
    tl.store(scales + row, scale, row < rows)
    tl.store(out + offset, (value / scale[:, None]).to(out.dtype.element_ty), mask)
