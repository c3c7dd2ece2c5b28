"""A small Triton kernel that shows whether kernels compile and run; importing it needs Triton."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def double(x, block: tl.constexpr):
    pointer = x + tl.arange(0, block)
    tl.store(pointer, tl.load(pointer) * 2.0)
