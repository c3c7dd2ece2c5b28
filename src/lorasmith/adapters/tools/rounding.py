"""Whether two weights differ by no more than rounding from one number format to another.

A model that is saved in bfloat16 differs from itself in float32 in every weight, by up to half a
step of bfloat16. That difference is noise, and no training.
"""

from collections import Counter
from collections.abc import Iterable

import torch

FORMATS = (torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16, torch.float16)
"""Number formats with fewer digits than float32, from the coarsest."""
_SLACK = 1 + 1e-5


def common_format(weights: Iterable[torch.Tensor]) -> torch.dtype:
    """Return the number format that most float32 weights were saved in, by their values."""
    formats = Counter(
        next((dtype for dtype in FORMATS if _is_representable(weight, dtype)), torch.float32)
        for weight in weights
        if bool(weight.any())
    )
    return formats.most_common(1)[0][0] if formats else torch.float32


def is_only_rounding(
    first: torch.Tensor,
    second: torch.Tensor,
    first_format: torch.dtype,
    second_format: torch.dtype,
) -> bool:
    """Return whether two float32 weights may be the same, saved in two number formats.

    Weights in the same format of fewer digits than float32 are the same only if they are equal.

    Args:
        first: a weight.
        second: another, of the same shape.
        first_format: the format that the first one's network was saved in (`common_format`).
        second_format: that of the second one's network.
    """
    formats = {
        dtype if _is_representable(weight, dtype) else torch.float32
        for weight, dtype in ((first, first_format), (second, second_format))
    }
    if len(formats) == 1 and formats != {torch.float32}:
        return torch.equal(first, second)
    largest = torch.maximum(first.abs(), second.abs()).double()
    allowed = torch.stack([_half_step(largest, dtype) for dtype in formats]).sum(dim=0)
    if len(formats) == 1:
        allowed *= 2  # each may be rounded
    return bool(((first.double() - second.double()).abs() <= _SLACK * allowed).all())


def _is_representable(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(weight.to(dtype).float(), weight)


def _half_step(size: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return half the distance to the next number of a format, for sizes in float64."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(size.clamp_min(limits.smallest_normal))
    return torch.ldexp(torch.full_like(size, limits.eps / 4), exponent)
