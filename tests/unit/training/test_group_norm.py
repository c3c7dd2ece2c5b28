"""Group norms with channels last give what torch's own give."""

import pytest
import torch
import torch.nn.functional as F

from lorasmith.ops import group_norm

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPES = [
    (1, 320, 128, 96, 32),  # as many channels in a group as in Stable Diffusion: 10
    (3, 1920, 9, 7, 32),
    (2, 2560, 8, 8, 32),
    (2, 32, 31, 33, 8),
    (3, 12, 5, 5, 12),  # each channel by itself
    (2, 12, 1, 1, 4),
    (2, 600, 11, 1, 1),  # all channels together
    (1, 600, 17, 5, 1),
    (2, 1280, 16, 16, 32),
    (1, 1280, 24, 24, 32),
]
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def parts(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", mean: float = 0.0
) -> tuple[torch.Tensor, ...]:
    """Return x, gamma, beta, shift and bias."""
    draws = torch.Generator(device).manual_seed(0)
    pictures, channels = shape[:2]
    x = torch.randn(shape, generator=draws, device=device) * 2 + mean
    small = ((channels,), (channels,), (pictures, channels), (channels,))
    others = (torch.randn(size, generator=draws, device=device).to(dtype) for size in small)
    return x.to(dtype), *others


@pytest.mark.parametrize("silu", [False, True])
def test_the_reference_is_torch_s_own(silu: bool) -> None:
    x, gamma, beta, shift, bias = parts((2, 12, 5, 3), torch.float64)
    x.requires_grad_()
    ours = group_norm.group_norm_reference(x, gamma, beta, 4, 1e-5, silu, shift, bias)
    added = x + shift[:, :, None, None] + bias[:, None, None]
    wanted = F.group_norm(added, 4, gamma, beta, 1e-5)
    wanted = F.silu(wanted) if silu else wanted
    torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-12)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    weight = torch.randn_like(x)
    (slope,) = torch.autograd.grad((ours * weight).sum(), x)
    (wanted_slope,) = torch.autograd.grad((wanted * weight).sum(), x)
    torch.testing.assert_close(slope, wanted_slope, atol=1e-12, rtol=1e-12)


def test_the_formula_of_the_gradient_is_the_reference_s() -> None:
    """What the kernels' description says, in float64."""
    x, gamma, beta, *_ = parts((2, 12, 5, 3), torch.float64)
    x.requires_grad_()
    weight = torch.randn_like(x)
    y = group_norm.group_norm_reference(x, gamma, beta, 4, 1e-5, True)
    (wanted,) = torch.autograd.grad((y * weight).sum(), x)
    grouped = x.detach().view(2, 4, -1)
    variance, mean = torch.var_mean(grouped, -1, keepdim=True, correction=0)
    r = (variance + 1e-5).rsqrt()
    h = ((grouped - mean) * r).view_as(x)
    z = h * gamma[:, None, None] + beta[:, None, None]
    share = torch.sigmoid(z)
    slope = weight * share * (1 + z * (1 - share)) * gamma[:, None, None]
    slope, h = slope.view(2, 4, -1), h.view(2, 4, -1)
    found = r * (slope - slope.mean(-1, keepdim=True) - h * (slope * h).mean(-1, keepdim=True))
    torch.testing.assert_close(found.view_as(x), wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("each", [1, 10, 20, 30, 40, 60, 80, 640])
@pytest.mark.parametrize("size", [(1, 64), (1, 4096), (8, 16384), (16, 36864)])
def test_every_position_has_a_program(each: int, size: tuple[int, int]) -> None:
    pictures, positions = size
    x = torch.empty(pictures, 32 * each, positions, 1, device="meta")
    tile = group_norm._group_tile(each)
    for limit in (tile["rows"], 1 << 15):
        (across, shares, rows), share = group_norm._division(x, limit)
        assert rows == pictures
        assert across * group_norm._COLUMNS >= x.shape[1]
        assert shares <= limit
        assert (shares - 1) * share < positions <= shares * share
    assert tile["columns"] >= each
    held = group_norm._held(positions, each)
    if held:
        assert held["rows"] >= positions
        assert held["columns"] >= each


def test_operations_tell_of_what_they_return() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 12, 5, 3, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(12, dtype=torch.bfloat16)
        y = group_norm.group_norm(x, weight, weight, 4, 1e-5, True, bias=weight)
        total = group_norm.add_with_bias(y, x, weight)
        (slope,) = torch.autograd.grad(total.sum(), x)
    for one in (y, total, slope):
        assert one.shape == x.shape
        assert one.dtype == x.dtype
        assert one.is_contiguous(memory_format=torch.channels_last)


def test_the_sum_is_torch_s_own() -> None:
    a, first, second, *_ = parts((2, 12, 5, 3), torch.float64)
    found = group_norm.add_with_bias_reference(a, a.sin(), first, second)
    wanted = a + a.sin() + (first + second)[:, None, None]
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize(
    ("silu", "added"), [(True, (False, False)), (True, (True, True)), (False, (False, True))]
)
def test_kernels_agree_with_float64(
    shape: tuple[int, ...], dtype: torch.dtype, silu: bool, added: tuple[bool, bool]
) -> None:
    *shape, groups = shape
    x, gamma, beta, *more = parts(tuple(shape), dtype, "cuda")
    shift, bias = (one if given else None for one, given in zip(more, added, strict=True))
    agree(x, gamma, beta, groups, silu, shift, bias)


@pytest.mark.gpu
@GPU
def test_a_large_mean_does_no_harm() -> None:
    x, gamma, beta, shift, bias = parts((2, 64, 40, 40), torch.float32, "cuda", mean=100.0)
    agree(x, gamma, beta, 8, True, shift, bias, bound=2e-4)  # x itself is known to 4e-6


def agree(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    groups: int,
    silu: bool,
    shift: torch.Tensor | None,
    bias: torch.Tensor | None,
    bound: float | None = None,
) -> None:
    bound = bound or BOUNDS[x.dtype]
    weight = torch.randn_like(x)
    x.requires_grad_()
    ours = group_norm.group_norm(x, gamma, beta, groups, 1e-5, silu, shift, bias)
    (slope,) = torch.autograd.grad((ours * weight).sum(), x)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    exact = x.detach().double().requires_grad_()
    small = [None if one is None else one.double() for one in (gamma, beta, shift, bias)]
    wanted = group_norm.group_norm_reference(
        exact, small[0], small[1], groups, 1e-5, silu, *small[2:]
    )
    (wanted_slope,) = torch.autograd.grad((wanted * weight.double()).sum(), exact)
    torch.testing.assert_close(ours.double(), wanted, atol=bound, rtol=bound)
    torch.testing.assert_close(slope.double(), wanted_slope, atol=bound, rtol=bound)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("shape", [(3, 40, 9, 7), (2, 320, 64, 64)])
def test_the_kernel_of_the_sum_agrees(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    a, first, second, *_ = parts(shape, dtype, "cuda")
    b = a.flip(0).contiguous(memory_format=torch.channels_last)
    for biases in ((None, None), (first, None), (first, second)):
        left, right = a.clone().requires_grad_(), b.clone().requires_grad_()
        found = group_norm.add_with_bias(left, right, *biases)
        torch.testing.assert_close(found, group_norm.add_with_bias_reference(a, b, *biases))
        weight = torch.randn_like(a)
        for slope in torch.autograd.grad((found * weight).sum(), (left, right)):
            torch.testing.assert_close(slope, weight, atol=0, rtol=0)


@pytest.mark.gpu
@GPU
def test_a_recorded_pass_is_the_same() -> None:
    """What is recorded works with the values that are there when it is played."""
    x, gamma, beta, shift, bias = parts((2, 320, 24, 20), torch.bfloat16, "cuda")
    x.requires_grad_()

    def work() -> tuple[torch.Tensor, torch.Tensor]:
        y = group_norm.group_norm(x, gamma, beta, 32, 1e-5, True, shift, bias)
        y = group_norm.add_with_bias(y, x, bias)
        return y, torch.autograd.grad(y.float().square().sum(), x)[0]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()  # compiles
    torch.cuda.synchronize()
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording):
        played = work()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        shift.copy_(torch.randn_like(shift))
    recording.replay()
    for one, wanted in zip(played, work(), strict=True):
        assert torch.equal(one, wanted)
