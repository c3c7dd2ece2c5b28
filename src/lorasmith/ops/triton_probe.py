"""A small Triton kernel, to see whether kernels work at all; importing this needs Triton."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def double(x, block: tl.constexpr):
    """Double some values."""
    place = x + tl.arange(0, block)
    tl.store(place, tl.load(place) * 2.0)
