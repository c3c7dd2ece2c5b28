"""Group normalisation, and SiLU behind it, of pictures whose channels lie side by side in memory.

torch normalises such pictures at a fraction of what memory allows, and convolutions on a GPU want
no others. The parameters are taken to be frozen: gradients flow to the pictures only. What is to be
added to each channel beforehand, a convolution's bias or an embedded time, costs no pass of its
own here. The kernels are written in Triton; ``lorasmith.ops.triton_support`` tells
where there are any.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F


def group_norm(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Normalise x + shift + bias in groups of channels, on a GPU.

    Everything is computed in float32 and rounded once.

    Args:
        x: ``[N, C, H, W]``; in another memory format than channels-last it is copied.
        gamma: factor for each channel, ``[C]``.
        beta: summand for each channel, ``[C]``.
        groups: how many; they divide the channels.
        eps: what is added to the variance.
        silu: whether z sigmoid(z) of the result z is returned instead of it.
        shift: what is added to each channel of each picture, ``[N, C]``.
        bias: what is added to each channel, ``[C]``.

    Returns:
        ``[N, C, H, W]``, channels-last. Only ``x`` gets a gradient.
    """
    y: torch.Tensor = _normalised(x, gamma, beta, groups, eps, silu, shift, bias)[0]
    return y


def group_norm_reference(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the same as ``normalised`` by torch's own operations, anywhere."""
    wide = torch.promote_types(x.dtype, torch.float32)
    z = x.to(wide)
    if shift is not None:
        z = z + shift.to(wide)[:, :, None, None]
    if bias is not None:
        z = z + bias.to(wide)[:, None, None]
    z = F.group_norm(z, groups, gamma.to(wide), beta.to(wide), eps)
    z = F.silu(z) if silu else z
    return z.to(x.dtype).contiguous(memory_format=torch.channels_last)


def add_with_bias(
    a: torch.Tensor,
    b: torch.Tensor,
    first: torch.Tensor | None = None,
    second: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return a + b + first[c] + second[c] on a GPU.

    Args:
        a: ``[N, C, H, W]``; in another memory format than channels-last it is copied, as is ``b``.
        b: like ``a``, in its dtype.
        first: a frozen bias ``[C]``.
        second: another.

    Returns:
        ``[N, C, H, W]``, channels-last, rounded once.
    """
    y: torch.Tensor = _add_biased(a, b, first, second)
    return y


def add_with_bias_reference(
    a: torch.Tensor,
    b: torch.Tensor,
    first: torch.Tensor | None = None,
    second: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the same as ``add_biased`` by torch's own operations, anywhere."""
    wide = torch.promote_types(a.dtype, torch.float32)
    y = a.to(wide) + b.to(wide)
    for bias in (first, second):
        if bias is not None:
            y = y + bias.to(wide)[:, None, None]
    return y.to(a.dtype).contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("lorasmith::group_norm", mutates_args=())
def _normalised(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, shift = _channels_last(x), None if shift is None else shift.contiguous()
    pictures, channels, positions = _sizes(x)
    each = channels // groups
    y, stats = _outputs(x, groups)
    kernels = _kernels()
    added, across = (shift, bias), (groups, pictures)
    held = _held(positions, each)
    if held:
        kernels.hold[across](
            x, gamma, beta, *added, y, stats, positions, channels, eps, each, silu, **held
        )
        return y, stats
    tile = _group_tile(each)
    grid, share = _division(x, tile["rows"])
    parts = x.new_empty((pictures, grid[1], 2, channels), dtype=torch.float32)
    kernels.moments[grid](x, parts, positions, channels, share, **_TILE)
    kernels.statistics[across](
        parts, *added, stats, positions, share, grid[1], channels, each, eps, **tile
    )
    grid, share = _division(x)
    kernels.normalise[grid](
        x, stats, gamma, beta, *added, y, positions, channels, each, share, silu, **_TILE
    )
    return y, stats


@_normalised.register_fake
def _normalised_shape(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _outputs(x, groups)


def _outputs(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return room for the result and for the mean and the factor of each group, ``[N, G, 2]``."""
    stats = x.new_empty((x.shape[0], groups, 2), dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), stats


@torch.library.custom_op("lorasmith::group_norm_backward", mutates_args=())
def _normalised_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    stats: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    silu: bool,
    shift: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    grad, x = _channels_last(grad), _channels_last(x)
    pictures, channels, positions = _sizes(x)
    groups = stats.shape[1]
    each = channels // groups
    given = (grad, x, stats)
    fixed = (gamma, beta, None if shift is None else shift.contiguous(), bias)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    kernels = _kernels()
    held = _held(positions, each)
    if held:
        kernels.hold_backward[groups, pictures](
            *given, *fixed, out, positions, channels, each, silu, **held
        )
        return out
    tile = _group_tile(each)
    grid, share = _division(x, tile["rows"])
    parts = x.new_empty((pictures, grid[1], 2, channels), dtype=torch.float32)
    kernels.slopes[grid](*given, *fixed, parts, positions, channels, each, share, silu, **_TILE)
    means = torch.empty_like(stats)
    kernels.means[groups, pictures](parts, gamma, means, positions, grid[1], channels, each, **tile)
    grid, share = _division(x)
    kernels.differentiate[grid](
        *given, means, *fixed, out, positions, channels, each, share, silu, **_TILE
    )
    return out


@_normalised_backward.register_fake
def _normalised_backward_shape(
    grad: torch.Tensor,
    x: torch.Tensor,
    stats: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    silu: bool,
    shift: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, gamma, beta, _, _, ctx.silu, shift, bias = inputs
    ctx.set_materialize_grads(False)  # the statistics have none
    ctx.save_for_backward(x, output[1], gamma, beta, shift, bias)


def _differentiate(ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None) -> Any:
    if grad is None:
        return (None,) * 8
    x, stats, gamma, beta, shift, bias = ctx.saved_tensors
    found = _normalised_backward(grad, x, stats, gamma, beta, ctx.silu, shift, bias)
    return found, *(None,) * 7


_normalised.register_autograd(_differentiate, setup_context=_keep)


@torch.library.custom_op("lorasmith::add_biased", mutates_args=())
def _add_biased(
    a: torch.Tensor,
    b: torch.Tensor,
    first: torch.Tensor | None,
    second: torch.Tensor | None,
) -> torch.Tensor:
    a, b = _channels_last(a), _channels_last(b)
    _, channels, positions = _sizes(a)
    y = torch.empty_like(a, memory_format=torch.channels_last)
    grid, share = _division(a)
    _kernels().add[grid](a, b, first, second, y, positions, channels, share, **_TILE)
    return y


@_add_biased.register_fake
def _add_biased_shape(
    a: torch.Tensor,
    b: torch.Tensor,
    first: torch.Tensor | None,
    second: torch.Tensor | None,
) -> torch.Tensor:
    return torch.empty_like(a, memory_format=torch.channels_last)


def _hand_on(ctx: Any, grad: torch.Tensor) -> Any:
    # A part of a concatenation's gradient is copied once here, not by all who go on with it.
    grad = _channels_last(grad)
    return grad, grad, None, None


_add_biased.register_autograd(_hand_on)

_ROWS, _COLUMNS = 32, 64
"""Positions and channels that a program takes at a time: 16 values for each of its threads, in
pieces of 16 bytes. The channels of the U-Nets are multiples of these."""
_TILE = {"rows": _ROWS, "columns": _COLUMNS, "num_warps": 4}
_PROGRAMS = 4096
"""As many are wanted, to keep the largest GPUs busy to the end."""
_PARTS, _WIDEST = 8192, 128
"""How many parts of a group's channels a program of the second stage takes, and for how many
channels that is the same program."""
_HELD = 16384
"""How much of a group, filled up to powers of two, one program holds: 32 values a thread."""


def _division(x: torch.Tensor, most: int = 1 << 15) -> tuple[tuple[int, int, int], int]:
    """Divide pictures among programs.

    Returns:
        The grid (blocks of channels, at most ``most`` shares of the positions, pictures) and how
        many positions a share has.
    """
    pictures, channels, positions = _sizes(x)
    across = -(-channels // _COLUMNS)
    shares = min(most, -(-_PROGRAMS // (across * pictures)))
    share = -(-positions // shares)
    share = -(-share // _ROWS) * _ROWS
    return (across, -(-positions // share), pictures), share


def _group_tile(each: int) -> dict[str, int]:
    """Return how many shares of how many channels the second stage takes at once."""
    columns = max(_WIDEST, _power(each))
    return {"rows": max(1, _PARTS // columns), "columns": columns, "num_warps": 8}


def _held(positions: int, each: int) -> dict[str, int] | None:
    """Return the tile that holds a whole group, which saves two calls; None for a large one."""
    rows, columns = _power(positions), _power(each)
    if rows * columns > _HELD:
        return None
    warps = min(max(rows * columns // 1024, 1), 16)
    return {"rows": rows, "columns": columns, "num_warps": warps}


def _power(least: int) -> int:
    """Return the smallest power of two that is not less."""
    return 1 << (least - 1).bit_length()


def _sizes(x: torch.Tensor) -> tuple[int, int, int]:
    """Return how many pictures, channels and positions there are."""
    pictures, channels, height, width = x.shape
    return pictures, channels, height * width


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@cache
def _kernels() -> Any:
    """Import the kernels, which need Triton already to be defined."""
    from lorasmith.ops import group_norm_triton

    return group_norm_triton
