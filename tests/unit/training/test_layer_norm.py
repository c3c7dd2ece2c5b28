"""Sums and norms in one pass give what torch's own operations give."""

import pytest
import torch
from torch import nn

from lorasmith.ops import layer_norm
from lorasmith.training.acceleration import transformer_block

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def norm_of(width: int, dtype: torch.dtype, device: str = "cpu") -> nn.LayerNorm:
    torch.manual_seed(0)
    norm = nn.LayerNorm(width, eps=1e-5, dtype=dtype, device=device).requires_grad_(False)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(width))
        norm.bias.copy_(torch.randn(width))
    return norm


def compare(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, tolerance: float, used: str = "both"
) -> None:
    """Both functions and their gradients beside torch's own in float64."""
    norm = norm_of(shape[-1], dtype, device)
    exact = norm_of(shape[-1], dtype, device).double()
    given = [torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2)]
    weights = [torch.randn(shape, device=device).to(dtype) for _ in range(2)]
    for adds in (True, False):
        own = given if adds else given[:1]
        found = layer_norm.add_layer_norm(*own, norm) if adds else layer_norm.layer_norm(*own, norm)
        total = sum(one.double() for one in own)
        if adds and dtype != torch.float64:
            total = total + (found[0].detach().double() - total.detach())  # rounded once
        wanted = (total, exact(total))
        of = {"both": (0, 1), "sum": (0,), "norm": (1,)}[used]
        loss = sum((found[one] * weights[one]).sum() for one in of)
        true = sum((wanted[one] * weights[one].double()).sum() for one in of)
        ours = torch.autograd.grad(loss, own)
        theirs = torch.autograd.grad(true, own)
        for one, other in zip([*found, *ours], [*wanted, *theirs], strict=True):
            torch.testing.assert_close(one.double(), other.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("used", ["both", "sum", "norm"])
def test_output_and_gradients(used: str) -> None:
    compare((3, 4, 10), torch.float64, "cpu", 1e-12, used)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("shape", [(3, 7, 320), (2, 5, 1280), (5, 33), (3, 2050), (1, 4097, 640)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
)
def test_kernels(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    for used in ("both", "sum", "norm"):
        compare(shape, dtype, "cuda", tolerance, used)


def block_of(**more: object) -> nn.Module:
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(1)
    made = BasicTransformerBlock(16, 2, 8, cross_attention_dim=12, **more)
    return made.double().requires_grad_(False)


@pytest.mark.parametrize("only_cross", [False, True])
def test_blocks_are_exchanged_and_put_back(only_cross: bool) -> None:
    block = block_of(only_cross_attention=only_cross)
    own = type(block)
    x = torch.randn(2, 5, 16, dtype=torch.double, requires_grad=True)
    text = torch.randn(2, 7, 12, dtype=torch.double, requires_grad=True)
    wanted = block(x, encoder_hidden_states=text)
    theirs = torch.autograd.grad(wanted.square().sum(), [x, text])
    transformer_block.use_kernels(block)
    assert type(block) is not own
    assert type(block).__name__ == own.__name__
    found = block(x, None, text, None, None, None, None)  # as with checkpoints
    ours = torch.autograd.grad(found.square().sum(), [x, text])
    for one, other in zip([found, *ours], [wanted, *theirs], strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
    transformer_block.use_own(block)
    assert type(block) is own


@pytest.mark.parametrize("more", [{"norm_elementwise_affine": False}, {"norm_type": "ada_norm"}])
def test_blocks_of_other_kinds_stay(more: dict[str, object]) -> None:
    if "norm_type" in more:
        more = more | {"num_embeds_ada_norm": 4}
    block = block_of(**more)
    own = type(block)
    transformer_block.use_kernels(block)
    assert type(block) is own


def test_norms_that_learn_stay() -> None:
    block = block_of()
    block.norm2.requires_grad_()
    own = type(block)
    transformer_block.use_kernels(block)
    assert type(block) is own
