"""Triton kernels of ``lorasmith.ops.fp8``; importing this needs Triton."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

_LARGEST = tl.constexpr(448.0)


@triton.jit
def to_rows(x, out, scales, rows, width, each: tl.constexpr, block: tl.constexpr):
    """Write some rows of x in e4m3, and what each was divided by."""
    row = tl.program_id(0) * each + tl.arange(0, each)
    column = tl.arange(0, block)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(x + place, inside, 0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 1), 1e-12) / _LARGEST
    tl.store(scales + row, scale, row < rows)
    tl.store(out + place, (value / scale[:, None]).to(out.dtype.element_ty), inside)
