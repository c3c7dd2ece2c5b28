"""Group norms in channels-last memory format give what torch's own give."""

import pytest
import torch
import torch.nn.functional as F

from lorasmith.ops import group_norm

SHAPES = [
    (1, 320, 128, 96, 32),  # 10 channels in a group, as in Stable Diffusion
    (3, 1920, 9, 7, 32),
    (2, 2560, 8, 8, 32),
    (2, 32, 31, 33, 8),
    (3, 12, 5, 5, 12),  # one channel in a group
    (2, 12, 1, 1, 4),
    (2, 600, 11, 1, 1),  # a single group
    (1, 600, 17, 5, 1),
    (2, 1280, 16, 16, 32),
    (1, 1280, 24, 24, 32),
]
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", mean: float = 0.0
) -> tuple[torch.Tensor, ...]:
    """Return x, gamma, beta, shift and bias."""
    rng = torch.Generator(device).manual_seed(0)
    images, channels = shape[:2]
    x = torch.randn(shape, generator=rng, device=device) * 2 + mean
    sizes = ((channels,), (channels,), (images, channels), (channels,))
    small = (torch.randn(size, generator=rng, device=device).to(dtype) for size in sizes)
    return x.to(dtype), *small


@pytest.mark.parametrize("silu", [False, True])
def test_reference_is_that_of_torch(silu: bool) -> None:
    x, gamma, beta, shift, bias = make_inputs((2, 12, 5, 3), torch.float64)
    x.requires_grad_()
    actual = group_norm.group_norm_reference(x, gamma, beta, 4, 1e-5, silu, shift, bias)
    total = x + shift[:, :, None, None] + bias[:, None, None]
    expected = F.group_norm(total, 4, gamma, beta, 1e-5)
    expected = F.silu(expected) if silu else expected
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    weight = torch.randn_like(x)
    (grad,) = torch.autograd.grad((actual * weight).sum(), x)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), x)
    torch.testing.assert_close(grad, expected_grad, atol=1e-12, rtol=1e-12)


def test_gradient_formula_of_the_kernels_is_that_of_the_reference() -> None:
    """The formula in the kernels' docstring, in float64."""
    x, gamma, beta, *_ = make_inputs((2, 12, 5, 3), torch.float64)
    x.requires_grad_()
    weight = torch.randn_like(x)
    y = group_norm.group_norm_reference(x, gamma, beta, 4, 1e-5, True)
    (expected,) = torch.autograd.grad((y * weight).sum(), x)
    grouped = x.detach().view(2, 4, -1)
    variance, mean = torch.var_mean(grouped, -1, keepdim=True, correction=0)
    r = (variance + 1e-5).rsqrt()
    h = ((grouped - mean) * r).view_as(x)
    z = h * gamma[:, None, None] + beta[:, None, None]
    sigmoid = torch.sigmoid(z)
    dz = weight * sigmoid * (1 + z * (1 - sigmoid)) * gamma[:, None, None]
    dz, h = dz.view(2, 4, -1), h.view(2, 4, -1)
    actual = r * (dz - dz.mean(-1, keepdim=True) - h * (dz * h).mean(-1, keepdim=True))
    torch.testing.assert_close(actual.view_as(x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("group_size", [1, 10, 20, 30, 40, 60, 80, 640])
@pytest.mark.parametrize("size", [(1, 64), (1, 4096), (8, 16384), (16, 36864)])
def test_every_position_has_a_program(group_size: int, size: tuple[int, int]) -> None:
    images, positions = size
    x = torch.empty(images, 32 * group_size, positions, 1, device="meta")
    tile = group_norm._merge_tile(group_size)
    for limit in (tile["rows"], 1 << 15):
        (channel_blocks, chunks, grid_images), chunk = group_norm._split_positions(x, limit)
        assert grid_images == images
        assert channel_blocks * group_norm._COLUMNS >= x.shape[1]
        assert chunks <= limit
        assert (chunks - 1) * chunk < positions <= chunks * chunk
    assert tile["columns"] >= group_size
    group_tile = group_norm._full_group_tile(positions, group_size)
    if group_tile:
        assert group_tile["rows"] >= positions
        assert group_tile["columns"] >= group_size


def test_fake_tensors_have_the_shape_and_format_of_results() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 12, 5, 3, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(12, dtype=torch.bfloat16)
        y = group_norm.group_norm(x, weight, weight, 4, 1e-5, True, bias=weight)
        total = group_norm.add_with_bias(y, x, weight)
        (grad,) = torch.autograd.grad(total.sum(), x)
    for result in (y, total, grad):
        assert result.shape == x.shape
        assert result.dtype == x.dtype
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_sum_with_biases_is_that_of_torch() -> None:
    a, bias_a, bias_b, *_ = make_inputs((2, 12, 5, 3), torch.float64)
    actual = group_norm.add_with_bias_reference(a, a.sin(), bias_a, bias_b)
    expected = a + a.sin() + (bias_a + bias_b)[:, None, None]
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize(
    ("silu", "has_shift_and_bias"),
    [(True, (False, False)), (True, (True, True)), (False, (False, True))],
)
def test_kernels_agree_with_float64(
    shape: tuple[int, ...], dtype: torch.dtype, silu: bool, has_shift_and_bias: tuple[bool, bool]
) -> None:
    *shape, groups = shape
    x, gamma, beta, *summands = make_inputs(tuple(shape), dtype, "cuda")
    used = zip(summands, has_shift_and_bias, strict=True)
    shift, bias = (summand if is_used else None for summand, is_used in used)
    compare(x, gamma, beta, groups, silu, shift, bias)


@pytest.mark.gpu
def test_large_mean_keeps_the_precision() -> None:
    x, gamma, beta, shift, bias = make_inputs((2, 64, 40, 40), torch.float32, "cuda", mean=100.0)
    compare(x, gamma, beta, 8, True, shift, bias, bound=2e-4)  # x itself has a precision of 4e-6


def compare(
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
    actual = group_norm.group_norm(x, gamma, beta, groups, 1e-5, silu, shift, bias)
    (grad,) = torch.autograd.grad((actual * weight).sum(), x)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    exact = x.detach().double().requires_grad_()
    small = [None if t is None else t.double() for t in (gamma, beta, shift, bias)]
    expected = group_norm.group_norm_reference(
        exact, small[0], small[1], groups, 1e-5, silu, *small[2:]
    )
    (expected_grad,) = torch.autograd.grad((expected * weight.double()).sum(), exact)
    torch.testing.assert_close(actual.double(), expected, atol=bound, rtol=bound)
    torch.testing.assert_close(grad.double(), expected_grad, atol=bound, rtol=bound)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("shape", [(3, 40, 9, 7), (2, 320, 64, 64)])
def test_kernel_of_the_sum_agrees_with_the_reference(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    a, bias_a, bias_b, *_ = make_inputs(shape, dtype, "cuda")
    b = a.flip(0).contiguous(memory_format=torch.channels_last)
    for biases in ((None, None), (bias_a, None), (bias_a, bias_b)):
        left, right = a.clone().requires_grad_(), b.clone().requires_grad_()
        actual = group_norm.add_with_bias(left, right, *biases)
        torch.testing.assert_close(actual, group_norm.add_with_bias_reference(a, b, *biases))
        weight = torch.randn_like(a)
        for grad in torch.autograd.grad((actual * weight).sum(), (left, right)):
            torch.testing.assert_close(grad, weight, atol=0, rtol=0)


@pytest.mark.gpu
def test_replayed_graph_reads_the_current_values() -> None:
    x, gamma, beta, shift, bias = make_inputs((2, 320, 24, 20), torch.bfloat16, "cuda")
    x.requires_grad_()

    def work() -> tuple[torch.Tensor, torch.Tensor]:
        y = group_norm.group_norm(x, gamma, beta, 32, 1e-5, True, shift, bias)
        y = group_norm.add_with_bias(y, x, bias)
        return y, torch.autograd.grad(y.float().square().sum(), x)[0]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()  # this call compiles the kernel
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        shift.copy_(torch.randn_like(shift))
    graph.replay()
    for result, expected in zip(results, work(), strict=True):
        assert torch.equal(result, expected)
