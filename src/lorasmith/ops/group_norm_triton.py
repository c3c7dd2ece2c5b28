"""Triton kernels of ``lorasmith.ops.group_norm``; importing this needs Triton.

Pictures are ``[N, positions, channels]`` in memory. Each program of the kernels that go over them
has a block of channels (axis 0 of the grid), a share of the positions (axis 1) and one picture
(axis 2). Sums over a group of channels are made in two stages and always in the same order.

With u = x + added[n, c], its mean m and variance v in a group (Wu and He 2018, arXiv:1803.08494),
r = 1 / sqrt(v + eps), h = (u - m) r, z = gamma h + beta and y = z or z sigmoid(z), the gradient is

    dx = r (gamma dz - mean(gamma dz) - h mean(gamma dz h)),

the means over the group. The parts' means and squares are merged by the formula of Chan, Golub
and LeVeque (1979). All is computed in float32, each result rounded once.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

_jit = triton.jit(do_not_specialize=["positions", "each", "share", "blocks"])
"""Compiles one variant for all sizes: only the channels matter, as what lies between positions."""
_jit_held = triton.jit(do_not_specialize=["positions"])


@_jit
def moments(x, out, positions, channels, share, rows: tl.constexpr, columns: tl.constexpr):
    """Write the mean of each channel over a share, and the sum of squares about that mean.

    Sums are of differences to the first value, so that a large mean cancels nothing.
    """
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    block = tl.program_id(1)
    picture = tl.program_id(2).to(tl.int64)
    inside = column < channels
    first = block * share
    last = tl.minimum(first + share, positions)
    x += picture * positions * channels
    pivot = tl.load(x + first * channels + column, inside, other=0.0).to(tl.float32)
    total = tl.zeros((rows, columns), tl.float32)
    squares = tl.zeros((rows, columns), tl.float32)
    for start in range(first, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & inside[None, :]
        value = tl.load(x + row[:, None] * channels + column[None, :], mask, other=0.0)
        away = tl.where(mask, value.to(tl.float32) - pivot[None, :], 0.0)
        total += away
        squares += away * away
    count = (last - first).to(tl.float32)
    away = tl.sum(total, 0) / count
    about = tl.sum(squares, 0) - away * away * count
    place = out + (picture * tl.num_programs(1) + block) * 2 * channels + column
    tl.store(place, pivot + away, inside)
    tl.store(place + channels, about, inside)


@_jit
def statistics(
    parts,
    shift,
    bias,
    out,
    positions,
    share,
    blocks,
    channels,
    each,
    eps,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write m and r of one group (axis 0) of one picture (axis 1) from the parts' moments."""
    group, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, inner = tl.arange(0, rows), tl.arange(0, columns)
    column = group * each + inner
    inside = inner < each
    mask = (row < blocks)[:, None] & inside[None, :]
    place = parts + (picture * blocks + row[:, None]) * 2 * channels + column[None, :]
    means = tl.load(place, mask, other=0.0)
    about = tl.load(place + channels, mask, other=0.0)
    means += _added(shift, bias, picture, column, channels, inside)[None, :]
    count = tl.minimum(positions - row * share, share).to(tl.float32)[:, None]
    whole = 1.0 * positions * each
    mean = tl.sum(tl.where(mask, means * (count / whole), 0.0))
    away = means - mean
    variance = tl.sum(tl.where(mask, about + count * away * away, 0.0)) / whole
    place = out + (picture * tl.num_programs(0) + group) * 2
    tl.store(place, mean)
    tl.store(place + 1, 1.0 / tl.sqrt(variance + eps))


@_jit
def normalise(
    x,
    stats,
    gamma,
    beta,
    shift,
    bias,
    out,
    positions,
    channels,
    each,
    share,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write y. Goes through the pictures backwards: their ends were read last and are near."""
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    picture = (tl.num_programs(2) - 1 - tl.program_id(2)).to(tl.int64)
    inside = column < channels
    middle, r = _place(stats, shift, bias, picture, column, channels, each, inside)
    scale = r * tl.load(gamma + column, inside, other=0.0).to(tl.float32)
    start_at = tl.load(beta + column, inside, other=0.0).to(tl.float32)
    x += picture * positions * channels
    out += picture * positions * channels
    last = tl.minimum(block * share + share, positions)
    for start in range(block * share, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & inside[None, :]
        place = row[:, None] * channels + column[None, :]
        value = tl.load(x + place, mask, other=0.0).to(tl.float32)
        z = (value - middle[None, :]) * scale[None, :] + start_at[None, :]
        if silu:
            z = z / (1.0 + tl.exp(-z))
        tl.store(out + place, z.to(out.dtype.element_ty), mask)


@_jit
def slopes(
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
    each,
    share,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write the sums over a share of dz and of dz h for each channel."""
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    block = tl.program_id(1)
    picture = tl.program_id(2).to(tl.int64)
    inside = column < channels
    middle, r = _place(stats, shift, bias, picture, column, channels, each, inside)
    weight = tl.load(gamma + column, inside, other=0.0).to(tl.float32)
    start_at = tl.load(beta + column, inside, other=0.0).to(tl.float32)
    x += picture * positions * channels
    grad += picture * positions * channels
    total = tl.zeros((rows, columns), tl.float32)
    along = tl.zeros((rows, columns), tl.float32)
    last = tl.minimum(block * share + share, positions)
    for start in range(block * share, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & inside[None, :]
        place = row[:, None] * channels + column[None, :]
        value = tl.load(x + place, mask, other=0.0).to(tl.float32)
        slope = tl.load(grad + place, mask, other=0.0).to(tl.float32)
        h = (value - middle[None, :]) * r[None, :]
        if silu:
            slope *= _silu_slope(h * weight[None, :] + start_at[None, :])
        total += slope
        along += slope * h
    place = out + (picture * tl.num_programs(1) + block) * 2 * channels + column
    tl.store(place, tl.sum(total, 0), inside)
    tl.store(place + channels, tl.sum(along, 0), inside)


@_jit
def means(
    parts,
    gamma,
    out,
    positions,
    blocks,
    channels,
    each,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write mean(gamma dz) and mean(gamma dz h) of one group (axis 0) of one picture (axis 1)."""
    group, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, inner = tl.arange(0, rows), tl.arange(0, columns)
    column = group * each + inner
    inside = inner < each
    mask = (row < blocks)[:, None] & inside[None, :]
    place = parts + (picture * blocks + row[:, None]) * 2 * channels + column[None, :]
    weight = tl.load(gamma + column, inside, other=0.0).to(tl.float32)[None, :]
    whole = 1.0 * positions * each
    total = tl.sum(tl.load(place, mask, other=0.0) * weight) / whole
    along = tl.sum(tl.load(place + channels, mask, other=0.0) * weight) / whole
    place = out + (picture * tl.num_programs(0) + group) * 2
    tl.store(place, total)
    tl.store(place + 1, along)


@_jit
def differentiate(
    grad,
    x,
    stats,
    middles,
    gamma,
    beta,
    shift,
    bias,
    out,
    positions,
    channels,
    each,
    share,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write dx, going backwards as ``normalise`` does; ``middles`` are what ``means`` wrote."""
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    picture = (tl.num_programs(2) - 1 - tl.program_id(2)).to(tl.int64)
    inside = column < channels
    middle, r = _place(stats, shift, bias, picture, column, channels, each, inside)
    total, along = _pair(middles, picture, column, channels, each, inside)
    weight = tl.load(gamma + column, inside, other=0.0).to(tl.float32)
    start_at = tl.load(beta + column, inside, other=0.0).to(tl.float32)
    x += picture * positions * channels
    grad += picture * positions * channels
    out += picture * positions * channels
    last = tl.minimum(block * share + share, positions)
    for start in range(block * share, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & inside[None, :]
        place = row[:, None] * channels + column[None, :]
        value = tl.load(x + place, mask, other=0.0).to(tl.float32)
        slope = tl.load(grad + place, mask, other=0.0).to(tl.float32)
        h = (value - middle[None, :]) * r[None, :]
        if silu:
            slope *= _silu_slope(h * weight[None, :] + start_at[None, :])
        slope = slope * weight[None, :] - total[None, :] - h * along[None, :]
        tl.store(out + place, (slope * r[None, :]).to(out.dtype.element_ty), mask)


@_jit
def add(
    a,
    b,
    first,
    second,
    out,
    positions,
    channels,
    share,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write a + b and, for each channel, what ``first`` and ``second`` say."""
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    picture = tl.program_id(2).to(tl.int64)
    inside = column < channels
    bias = _added(None, first, picture, column, channels, inside)
    bias += _added(None, second, picture, column, channels, inside)
    a += picture * positions * channels
    b += picture * positions * channels
    out += picture * positions * channels
    last = tl.minimum(tl.program_id(1) * share + share, positions)
    for start in range(tl.program_id(1) * share, last, rows):
        row = start + tl.arange(0, rows)
        mask = (row < last)[:, None] & inside[None, :]
        place = row[:, None] * channels + column[None, :]
        value = tl.load(a + place, mask, other=0.0).to(tl.float32) + bias[None, :]
        value += tl.load(b + place, mask, other=0.0).to(tl.float32)
        tl.store(out + place, value.to(out.dtype.element_ty), mask)


@_jit_held
def hold(
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
    each: tl.constexpr,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write y, m and r of one group (axis 0) of one picture (axis 1), all of it held at once."""
    group, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, inner = tl.arange(0, rows), tl.arange(0, columns)
    column = group * each + inner
    inside = inner < each
    mask = (row < positions)[:, None] & inside[None, :]
    place = row[:, None] * channels + column[None, :]
    x += picture * positions * channels
    out += picture * positions * channels
    u = tl.load(x + place, mask, other=0.0).to(tl.float32)
    u += _added(shift, bias, picture, column, channels, inside)[None, :]
    whole = 1.0 * positions * each
    mean = tl.sum(tl.where(mask, u, 0.0)) / whole
    away = tl.where(mask, u - mean, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(away * away) / whole + eps)
    pair = stats + (picture * tl.num_programs(0) + group) * 2
    tl.store(pair, mean)
    tl.store(pair + 1, r)
    scale = r * tl.load(gamma + column, inside, other=0.0).to(tl.float32)
    start_at = tl.load(beta + column, inside, other=0.0).to(tl.float32)
    z = away * scale[None, :] + start_at[None, :]
    if silu:
        z = z / (1.0 + tl.exp(-z))
    tl.store(out + place, z.to(out.dtype.element_ty), mask)


@_jit_held
def hold_backward(
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
    each: tl.constexpr,
    silu: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write dx of one group (axis 0) of one picture (axis 1), all of it held at once."""
    group, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, inner = tl.arange(0, rows), tl.arange(0, columns)
    column = group * each + inner
    inside = inner < each
    mask = (row < positions)[:, None] & inside[None, :]
    place = row[:, None] * channels + column[None, :]
    x += picture * positions * channels
    grad += picture * positions * channels
    out += picture * positions * channels
    middle, r = _place(stats, shift, bias, picture, column, channels, each, inside)
    weight = tl.load(gamma + column, inside, other=0.0).to(tl.float32)[None, :]
    start_at = tl.load(beta + column, inside, other=0.0).to(tl.float32)[None, :]
    h = (tl.load(x + place, mask, other=0.0).to(tl.float32) - middle[None, :]) * r[None, :]
    slope = tl.load(grad + place, mask, other=0.0).to(tl.float32)
    if silu:
        slope *= _silu_slope(h * weight + start_at)
    slope *= weight
    whole = 1.0 * positions * each
    total, along = tl.sum(slope) / whole, tl.sum(slope * h) / whole
    slope = (slope - total - h * along) * r[None, :]
    tl.store(out + place, slope.to(out.dtype.element_ty), mask)


@triton.jit
def _added(shift, bias, picture, column, channels, inside):
    """Return what is added to each channel of a picture before it is normalised."""
    added = tl.zeros(column.shape, tl.float32)
    if shift is not None:
        added += tl.load(shift + picture * channels + column, inside, other=0.0).to(tl.float32)
    if bias is not None:
        added += tl.load(bias + column, inside, other=0.0).to(tl.float32)
    return added


@triton.jit
def _pair(pairs, picture, column, channels, each, inside):
    """Return the two numbers of each channel's group."""
    place = pairs + (picture * (channels // each) + column // each) * 2
    return tl.load(place, inside, other=0.0), tl.load(place + 1, inside, other=0.0)


@triton.jit
def _place(stats, shift, bias, picture, column, channels, each, inside):
    """Return what is to be subtracted from x in each channel, m - added, and r."""
    mean, r = _pair(stats, picture, column, channels, each, inside)
    return mean - _added(shift, bias, picture, column, channels, inside), r


@triton.jit
def _silu_slope(z):
    """Return the slope of z sigmoid(z)."""
    share = 1.0 / (1.0 + tl.exp(-z))
    return share * (1.0 + z * (1.0 - share))
