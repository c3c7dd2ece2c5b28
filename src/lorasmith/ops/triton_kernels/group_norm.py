"""Triton kernels of ``lorasmith.ops.group_norm``; importing this needs Triton.

Images are ``[N, positions, channels]`` in memory. Each program of the elementwise kernels has a
block of channels (axis 0 of the grid), a chunk of the positions (axis 1) and one image (axis 2).
Sums over a group of channels are computed in two stages and always in the same order.

With u = x + added[n, c], its mean m and variance v in a group (Wu and He 2018, arXiv:1803.08494),
r = 1 / sqrt(v + eps), h = (u - m) r, z = gamma h + beta and y = z or z sigmoid(z), the gradient is

    dx = r (gamma dz - mean(gamma dz) - h mean(gamma dz h)),

the means over the group. The chunks' means and squares are merged by the formula of Chan, Golub
and LeVeque (1979). Everything is computed in float32, each result rounded once.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

_jit = triton.jit(do_not_specialize=["positions", "group_size", "chunk", "blocks"])
"""Compiles one variant for all image sizes; only the channels, the stride of positions, matter."""
_jit_group = triton.jit(do_not_specialize=["positions"])


@_jit
def partial_moments(x, out, positions, channels, chunk, rows: tl.constexpr, columns: tl.constexpr):
    """Write the mean of each channel over a chunk, and the sum of squares about that mean.

    The differences to the first value are summed, so that a large mean causes no cancellation.
    """
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    block = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    column_mask = column < channels
    first = block * chunk
    last = tl.minimum(first + chunk, positions)
    x += image * positions * channels
    pivot = tl.load(x + first * channels + column, column_mask, other=0.0).to(tl.float32)
    total = tl.zeros((rows, columns), tl.float32)
    squares = tl.zeros((rows, columns), tl.float32)
    for start in range(first, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & column_mask[None, :]
        value = tl.load(x + row[:, None] * channels + column[None, :], mask, other=0.0)
        centered = tl.where(mask, value.to(tl.float32) - pivot[None, :], 0.0)
        total += centered
        squares += centered * centered
    count = (last - first).to(tl.float32)
    centered = tl.sum(total, 0) / count
    squares_about_mean = tl.sum(squares, 0) - centered * centered * count
    offset = out + (image * tl.num_programs(1) + block) * 2 * channels + column
    tl.store(offset, pivot + centered, column_mask)
    tl.store(offset + channels, squares_about_mean, column_mask)


@_jit
def merge_moments(
    partials,
    shift,
    bias,
    out,
    positions,
    chunk,
    blocks,
    channels,
    group_size,
    eps,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write m and r of one group (axis 0) of one image (axis 1) from the chunks' moments."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, index = tl.arange(0, rows), tl.arange(0, columns)
    column = group * group_size + index
    column_mask = index < group_size
    mask = (row < blocks)[:, None] & column_mask[None, :]
    offset = partials + (image * blocks + row[:, None]) * 2 * channels + column[None, :]
    means = tl.load(offset, mask, other=0.0)
    squares_about_mean = tl.load(offset + channels, mask, other=0.0)
    means += _added(shift, bias, image, column, channels, column_mask)[None, :]
    count = tl.minimum(positions - row * chunk, chunk).to(tl.float32)[:, None]
    count_all = 1.0 * positions * group_size
    mean = tl.sum(tl.where(mask, means * (count / count_all), 0.0))
    centered = means - mean
    variance = (
        tl.sum(tl.where(mask, squares_about_mean + count * centered * centered, 0.0)) / count_all
    )
    offset = out + (image * tl.num_programs(0) + group) * 2
    tl.store(offset, mean)
    tl.store(offset + 1, 1.0 / tl.sqrt(variance + eps))


@_jit
def normalize(
    x,
    stats,
    gamma,
    beta,
    shift,
    bias,
    out,
    positions,
    channels,
    group_size,
    chunk,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write y. Goes through the images backwards: their ends were read last and are cached."""
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    image = (tl.num_programs(2) - 1 - tl.program_id(2)).to(tl.int64)
    column_mask = column < channels
    center, r = _center_and_scale(
        stats, shift, bias, image, column, channels, group_size, column_mask
    )
    scale = r * tl.load(gamma + column, column_mask, other=0.0).to(tl.float32)
    shift_z = tl.load(beta + column, column_mask, other=0.0).to(tl.float32)
    x += image * positions * channels
    out += image * positions * channels
    last = tl.minimum(block * chunk + chunk, positions)
    for start in range(block * chunk, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & column_mask[None, :]
        offset = row[:, None] * channels + column[None, :]
        value = tl.load(x + offset, mask, other=0.0).to(tl.float32)
        z = (value - center[None, :]) * scale[None, :] + shift_z[None, :]
        if silu:
            z = z / (1.0 + tl.exp(-z))
        tl.store(out + offset, z.to(out.dtype.element_ty), mask)


@_jit
def partial_grad_sums(
    grad,
    x,
    stats,
    gamma,
    beta,
    shift,
    bias,
    out,
    positions,
    channels,
    group_size,
    chunk,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write the sums over a chunk of dz and of dz h for each channel."""
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    block = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    column_mask = column < channels
    center, r = _center_and_scale(
        stats, shift, bias, image, column, channels, group_size, column_mask
    )
    weight = tl.load(gamma + column, column_mask, other=0.0).to(tl.float32)
    shift_z = tl.load(beta + column, column_mask, other=0.0).to(tl.float32)
    x += image * positions * channels
    grad += image * positions * channels
    total = tl.zeros((rows, columns), tl.float32)
    total_h = tl.zeros((rows, columns), tl.float32)
    last = tl.minimum(block * chunk + chunk, positions)
    for start in range(block * chunk, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & column_mask[None, :]
        offset = row[:, None] * channels + column[None, :]
        value = tl.load(x + offset, mask, other=0.0).to(tl.float32)
        dz = tl.load(grad + offset, mask, other=0.0).to(tl.float32)
        h = (value - center[None, :]) * r[None, :]
        if silu:
            dz *= _silu_derivative(h * weight[None, :] + shift_z[None, :])
        total += dz
        total_h += dz * h
    offset = out + (image * tl.num_programs(1) + block) * 2 * channels + column
    tl.store(offset, tl.sum(total, 0), column_mask)
    tl.store(offset + channels, tl.sum(total_h, 0), column_mask)


@_jit
def merge_grad_sums(
    partials,
    gamma,
    out,
    positions,
    blocks,
    channels,
    group_size,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write mean(gamma dz) and mean(gamma dz h) of one group (axis 0) of one image (axis 1)."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, index = tl.arange(0, rows), tl.arange(0, columns)
    column = group * group_size + index
    column_mask = index < group_size
    mask = (row < blocks)[:, None] & column_mask[None, :]
    offset = partials + (image * blocks + row[:, None]) * 2 * channels + column[None, :]
    weight = tl.load(gamma + column, column_mask, other=0.0).to(tl.float32)[None, :]
    count_all = 1.0 * positions * group_size
    total = tl.sum(tl.load(offset, mask, other=0.0) * weight) / count_all
    total_h = tl.sum(tl.load(offset + channels, mask, other=0.0) * weight) / count_all
    offset = out + (image * tl.num_programs(0) + group) * 2
    tl.store(offset, total)
    tl.store(offset + 1, total_h)


@_jit
def input_gradient(
    grad,
    x,
    stats,
    grad_means,
    gamma,
    beta,
    shift,
    bias,
    out,
    positions,
    channels,
    group_size,
    chunk,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write dx, going backwards like ``normalize``; ``merge_grad_sums`` wrote ``grad_means``."""
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    image = (tl.num_programs(2) - 1 - tl.program_id(2)).to(tl.int64)
    column_mask = column < channels
    center, r = _center_and_scale(
        stats, shift, bias, image, column, channels, group_size, column_mask
    )
    total, total_h = _load_group_values(
        grad_means, image, column, channels, group_size, column_mask
    )
    weight = tl.load(gamma + column, column_mask, other=0.0).to(tl.float32)
    shift_z = tl.load(beta + column, column_mask, other=0.0).to(tl.float32)
    x += image * positions * channels
    grad += image * positions * channels
    out += image * positions * channels
    last = tl.minimum(block * chunk + chunk, positions)
    for start in range(block * chunk, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & column_mask[None, :]
        offset = row[:, None] * channels + column[None, :]
        value = tl.load(x + offset, mask, other=0.0).to(tl.float32)
        dz = tl.load(grad + offset, mask, other=0.0).to(tl.float32)
        h = (value - center[None, :]) * r[None, :]
        if silu:
            dz *= _silu_derivative(h * weight[None, :] + shift_z[None, :])
        dz = dz * weight[None, :] - total[None, :] - h * total_h[None, :]
        tl.store(out + offset, (dz * r[None, :]).to(out.dtype.element_ty), mask)


@_jit
def add_with_bias(
    a,
    b,
    bias_a,
    bias_b,
    out,
    positions,
    channels,
    chunk,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write a + b + bias_a[c] + bias_b[c]."""
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    image = tl.program_id(2).to(tl.int64)
    column_mask = column < channels
    bias = _added(None, bias_a, image, column, channels, column_mask)
    bias += _added(None, bias_b, image, column, channels, column_mask)
    a += image * positions * channels
    b += image * positions * channels
    out += image * positions * channels
    last = tl.minimum(tl.program_id(1) * chunk + chunk, positions)
    for start in range(tl.program_id(1) * chunk, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & column_mask[None, :]
        offset = row[:, None] * channels + column[None, :]
        value = tl.load(a + offset, mask, other=0.0).to(tl.float32) + bias[None, :]
        value += tl.load(b + offset, mask, other=0.0).to(tl.float32)
        tl.store(out + offset, value.to(out.dtype.element_ty), mask)


@_jit_group
def group_forward(
    x,
    gamma,
    beta,
    shift,
    bias,
    out,
    stats,
    positions,
    channels,
    eps,
    group_size: tl.constexpr,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write y, m and r of one group (axis 0) of one image (axis 1), held by one program."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, index = tl.arange(0, rows), tl.arange(0, columns)
    column = group * group_size + index
    column_mask = index < group_size
    mask = (row < positions)[:, None] & column_mask[None, :]
    offset = row[:, None] * channels + column[None, :]
    x += image * positions * channels
    out += image * positions * channels
    u = tl.load(x + offset, mask, other=0.0).to(tl.float32)
    u += _added(shift, bias, image, column, channels, column_mask)[None, :]
    count_all = 1.0 * positions * group_size
    mean = tl.sum(tl.where(mask, u, 0.0)) / count_all
    centered = tl.where(mask, u - mean, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centered * centered) / count_all + eps)
    pair = stats + (image * tl.num_programs(0) + group) * 2
    tl.store(pair, mean)
    tl.store(pair + 1, r)
    scale = r * tl.load(gamma + column, column_mask, other=0.0).to(tl.float32)
    shift_z = tl.load(beta + column, column_mask, other=0.0).to(tl.float32)
    z = centered * scale[None, :] + shift_z[None, :]
    if silu:
        z = z / (1.0 + tl.exp(-z))
    tl.store(out + offset, z.to(out.dtype.element_ty), mask)


@_jit_group
def group_backward(
    grad,
    x,
    stats,
    gamma,
    beta,
    shift,
    bias,
    out,
    positions,
    channels,
    group_size: tl.constexpr,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write dx of one group (axis 0) of one image (axis 1), held by one program."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, index = tl.arange(0, rows), tl.arange(0, columns)
    column = group * group_size + index
    column_mask = index < group_size
    mask = (row < positions)[:, None] & column_mask[None, :]
    offset = row[:, None] * channels + column[None, :]
    x += image * positions * channels
    grad += image * positions * channels
    out += image * positions * channels
    center, r = _center_and_scale(
        stats, shift, bias, image, column, channels, group_size, column_mask
    )
    weight = tl.load(gamma + column, column_mask, other=0.0).to(tl.float32)[None, :]
    shift_z = tl.load(beta + column, column_mask, other=0.0).to(tl.float32)[None, :]
    h = (tl.load(x + offset, mask, other=0.0).to(tl.float32) - center[None, :]) * r[None, :]
    dz = tl.load(grad + offset, mask, other=0.0).to(tl.float32)
    if silu:
        dz *= _silu_derivative(h * weight + shift_z)
    dz *= weight
    count_all = 1.0 * positions * group_size
    total, total_h = tl.sum(dz) / count_all, tl.sum(dz * h) / count_all
    dz = (dz - total - h * total_h) * r[None, :]
    tl.store(out + offset, dz.to(out.dtype.element_ty), mask)


@triton.jit
def _added(shift, bias, image, column, channels, column_mask):
    """Return the sum of shift and bias for each channel of an image."""
    added = tl.zeros(column.shape, tl.float32)
    if shift is not None:
        added += tl.load(shift + image * channels + column, column_mask, other=0.0).to(tl.float32)
    if bias is not None:
        added += tl.load(bias + column, column_mask, other=0.0).to(tl.float32)
    return added


@triton.jit
def _load_group_values(pairs, image, column, channels, group_size, column_mask):
    """Return the two values of each channel's group."""
    offset = pairs + (image * (channels // group_size) + column // group_size) * 2
    return tl.load(offset, column_mask, other=0.0), tl.load(offset + 1, column_mask, other=0.0)


@triton.jit
def _center_and_scale(stats, shift, bias, image, column, channels, group_size, column_mask):
    """Return what is subtracted from x in each channel, m - added, and r."""
    mean, r = _load_group_values(stats, image, column, channels, group_size, column_mask)
    return mean - _added(shift, bias, image, column, channels, column_mask), r


@triton.jit
def _silu_derivative(z):
    """Return the derivative of z sigmoid(z)."""
    sigmoid = 1.0 / (1.0 + tl.exp(-z))
    return sigmoid * (1.0 + z * (1.0 - sigmoid))
