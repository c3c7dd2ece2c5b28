"""Group normalization, optionally followed by SiLU, of images in channels-last memory format.

torch normalizes such images at a fraction of the memory bandwidth, and convolutions on a GPU are
fastest with this format. The parameters are frozen: only the images get gradients. A summand for
each channel, such as a convolution's bias or an embedded timestep, needs no extra pass. The kernels
are written in Triton; ``lorasmith.ops.triton_kernels.support`` says whether they work.
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
    """Normalize x + shift + bias in groups of channels, on a GPU.

    Everything is computed in float32 and rounded once.

    Args:
        x: ``[N, C, H, W]``; copied unless its memory format is channels-last.
        gamma: factor for each channel, ``[C]``.
        beta: summand for each channel, ``[C]``.
        groups: number of groups; it divides the number of channels.
        eps: summand of the variance.
        silu: whether to return z sigmoid(z) instead of the normalized z.
        shift: summand for each channel of each image, ``[N, C]``.
        bias: summand for each channel, ``[C]``.

    Returns:
        ``[N, C, H, W]``, channels-last. Only ``x`` gets a gradient.
    """
    y: torch.Tensor = _group_norm(x, gamma, beta, groups, eps, silu, shift, bias)[0]
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
    """Return the same as ``group_norm`` with torch's own operations."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    z = x.to(dtype)
    if shift is not None:
        z = z + shift.to(dtype)[:, :, None, None]
    if bias is not None:
        z = z + bias.to(dtype)[:, None, None]
    z = F.group_norm(z, groups, gamma.to(dtype), beta.to(dtype), eps)
    z = F.silu(z) if silu else z
    return z.to(x.dtype).contiguous(memory_format=torch.channels_last)


def add_with_bias(
    a: torch.Tensor,
    b: torch.Tensor,
    bias_a: torch.Tensor | None = None,
    bias_b: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return a + b + bias_a[c] + bias_b[c] on a GPU.

    Args:
        a: ``[N, C, H, W]``; copied unless its memory format is channels-last, like ``b``.
        b: of the shape and dtype of ``a``.
        bias_a: a frozen bias ``[C]``.
        bias_b: another one.

    Returns:
        ``[N, C, H, W]``, channels-last, rounded once.
    """
    y: torch.Tensor = _add_with_bias(a, b, bias_a, bias_b)
    return y


def add_with_bias_reference(
    a: torch.Tensor,
    b: torch.Tensor,
    bias_a: torch.Tensor | None = None,
    bias_b: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the same as ``add_with_bias`` with torch's own operations."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    y = a.to(dtype) + b.to(dtype)
    for bias in (bias_a, bias_b):
        if bias is not None:
            y = y + bias.to(dtype)[:, None, None]
    return y.to(a.dtype).contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("lorasmith::group_norm", mutates_args=())
def _group_norm(
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
    images, channels, positions = _sizes(x)
    group_size = channels // groups
    y, stats = _outputs(x, groups)
    kernels = _kernels()
    summands, group_grid = (shift, bias), (groups, images)
    group_tile = _full_group_tile(positions, group_size)
    if group_tile:
        kernels.group_forward[group_grid](
            x, gamma, beta, *summands, y, stats,
            positions, channels, eps, group_size, silu, **group_tile,
        )  # fmt: skip
        return y, stats
    tile = _merge_tile(group_size)
    grid, chunk = _split_positions(x, tile["rows"])
    partials = x.new_empty((images, grid[1], 2, channels), dtype=torch.float32)
    kernels.partial_moments[grid](x, partials, positions, channels, chunk, **_TILE)
    kernels.merge_moments[group_grid](
        partials, *summands, stats, positions, chunk, grid[1], channels, group_size, eps, **tile
    )
    grid, chunk = _split_positions(x)
    kernels.normalize[grid](
        x, stats, gamma, beta, *summands, y, positions, channels, group_size, chunk, silu, **_TILE
    )
    return y, stats


@_group_norm.register_fake
def _group_norm_shape(
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
    """Return empty tensors for the result and each group's mean and 1 / deviation ``[N, G, 2]``."""
    stats = x.new_empty((x.shape[0], groups, 2), dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), stats


@torch.library.custom_op("lorasmith::group_norm_backward", mutates_args=())
def _group_norm_backward(
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
    images, channels, positions = _sizes(x)
    groups = stats.shape[1]
    group_size = channels // groups
    tensors = (grad, x, stats)
    parameters = (gamma, beta, None if shift is None else shift.contiguous(), bias)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    kernels = _kernels()
    group_tile = _full_group_tile(positions, group_size)
    if group_tile:
        kernels.group_backward[groups, images](
            *tensors, *parameters, out, positions, channels, group_size, silu, **group_tile
        )
        return out
    tile = _merge_tile(group_size)
    grid, chunk = _split_positions(x, tile["rows"])
    partials = x.new_empty((images, grid[1], 2, channels), dtype=torch.float32)
    kernels.partial_grad_sums[grid](
        *tensors, *parameters, partials, positions, channels, group_size, chunk, silu, **_TILE
    )
    grad_means = torch.empty_like(stats)
    kernels.merge_grad_sums[groups, images](
        partials, gamma, grad_means, positions, grid[1], channels, group_size, **tile
    )
    grid, chunk = _split_positions(x)
    kernels.input_gradient[grid](
        *tensors, grad_means, *parameters, out,
        positions, channels, group_size, chunk, silu, **_TILE,
    )  # fmt: skip
    return out


@_group_norm_backward.register_fake
def _group_norm_backward_shape(
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


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, gamma, beta, _, _, ctx.silu, shift, bias = inputs
    ctx.set_materialize_grads(False)  # the statistics get no gradient
    ctx.save_for_backward(x, output[1], gamma, beta, shift, bias)


def _differentiate(ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None) -> Any:
    if grad is None:
        return (None,) * 8
    x, stats, gamma, beta, shift, bias = ctx.saved_tensors
    grad_x = _group_norm_backward(grad, x, stats, gamma, beta, ctx.silu, shift, bias)
    return grad_x, *(None,) * 7


_group_norm.register_autograd(_differentiate, setup_context=_setup_context)


@torch.library.custom_op("lorasmith::add_with_bias", mutates_args=())
def _add_with_bias(
    a: torch.Tensor,
    b: torch.Tensor,
    bias_a: torch.Tensor | None,
    bias_b: torch.Tensor | None,
) -> torch.Tensor:
    a, b = _channels_last(a), _channels_last(b)
    _, channels, positions = _sizes(a)
    y = torch.empty_like(a, memory_format=torch.channels_last)
    grid, chunk = _split_positions(a)
    _kernels().add_with_bias[grid](a, b, bias_a, bias_b, y, positions, channels, chunk, **_TILE)
    return y


@_add_with_bias.register_fake
def _add_with_bias_shape(
    a: torch.Tensor,
    b: torch.Tensor,
    bias_a: torch.Tensor | None,
    bias_b: torch.Tensor | None,
) -> torch.Tensor:
    return torch.empty_like(a, memory_format=torch.channels_last)


def _add_with_bias_backward(ctx: Any, grad: torch.Tensor) -> Any:
    # A slice of a concatenation's gradient is copied once here, not by each of its users.
    grad = _channels_last(grad)
    return grad, grad, None, None


_add_with_bias.register_autograd(_add_with_bias_backward)

_ROWS, _COLUMNS = 32, 64
"""Positions and channels that a program handles at a time: 16 values for each of its threads, in
pieces of 16 bytes. The channels of the U-Nets are multiples of these."""
_TILE = {"rows": _ROWS, "columns": _COLUMNS, "num_warps": 4}
_PROGRAMS = 4096
"""Number of programs to aim for, enough to keep the largest GPUs busy."""
_MERGE_VALUES, _MIN_MERGE_COLUMNS = 8192, 128
"""Values (chunks x channels) that a program of the second stage loads, and the least width of its
tile in channels; wider groups compile another variant."""
_MAX_GROUP = 16384
"""Size of a group, padded to powers of two, that one program can hold: 32 values a thread."""


def _split_positions(
    x: torch.Tensor, max_chunks: int = 1 << 15
) -> tuple[tuple[int, int, int], int]:
    """Divide images among programs.

    Returns:
        the grid (blocks of channels, up to ``max_chunks`` chunks of the positions, images), and the
        number of positions in a chunk.
    """
    images, channels, positions = _sizes(x)
    channel_blocks = -(-channels // _COLUMNS)
    chunks = min(max_chunks, -(-_PROGRAMS // (channel_blocks * images)))
    chunk = -(-positions // chunks)
    chunk = -(-chunk // _ROWS) * _ROWS
    return (channel_blocks, -(-positions // chunk), images), chunk


def _merge_tile(group_size: int) -> dict[str, int]:
    """Return the tile of the second stage: rows are chunks, columns are a group's channels."""
    columns = max(_MIN_MERGE_COLUMNS, _next_power_of_two(group_size))
    return {"rows": max(1, _MERGE_VALUES // columns), "columns": columns, "num_warps": 8}


def _full_group_tile(positions: int, group_size: int) -> dict[str, int] | None:
    """Return the tile of a program that holds a full group, which saves two launches; None if the
    group is too large.
    """
    rows, columns = _next_power_of_two(positions), _next_power_of_two(group_size)
    if rows * columns > _MAX_GROUP:
        return None
    warps = min(max(rows * columns // 1024, 1), 16)
    return {"rows": rows, "columns": columns, "num_warps": warps}


def _next_power_of_two(minimum: int) -> int:
    """Return the smallest power of two that is at least ``minimum``."""
    return 1 << (minimum - 1).bit_length()


def _sizes(x: torch.Tensor) -> tuple[int, int, int]:
    """Return the numbers of images, channels and positions."""
    images, channels, height, width = x.shape
    return images, channels, height * width


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@cache
def _kernels() -> Any:
    """Import the kernels on first use: they can be defined only where Triton is installed."""
    from lorasmith.ops.triton_kernels import group_norm as group_norm_triton

    return group_norm_triton
