"""Patched transformer blocks give what diffusers' own code gives."""

import pytest
import torch
from torch import nn

from lorasmith.training.acceleration.module_patch import patched
from lorasmith.training.acceleration.transformer_block import transformer_block_patch


def make_block(**options: object) -> nn.Module:
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(1)
    block = BasicTransformerBlock(16, 2, 8, cross_attention_dim=12, **options)
    return block.double().requires_grad_(False)


def is_patched(block: nn.Module) -> bool:
    original = type(block)
    with patched(block, [transformer_block_patch()]):
        return type(block) is not original


@pytest.mark.parametrize("only_cross", [False, True])
def test_output_and_gradients_are_those_of_diffusers(only_cross: bool) -> None:
    block = make_block(only_cross_attention=only_cross)
    original = type(block)
    x = torch.randn(2, 5, 16, dtype=torch.double, requires_grad=True)
    text = torch.randn(2, 7, 12, dtype=torch.double, requires_grad=True)
    expected = block(x, encoder_hidden_states=text)
    expected_grads = torch.autograd.grad(expected.square().sum(), [x, text])
    with patched(block, [transformer_block_patch()]):
        assert type(block) is not original
        actual = block(
            x, None, text, None, None, None, None
        )  # as activation checkpointing calls it
        grads = torch.autograd.grad(actual.square().sum(), [x, text])
    assert type(block) is original
    for result, reference in zip([actual, *grads], [expected, *expected_grads], strict=True):
        torch.testing.assert_close(result, reference, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "options",
    [{"norm_elementwise_affine": False}, {"norm_type": "ada_norm", "num_embeds_ada_norm": 4}],
)
def test_blocks_with_other_norms_are_not_patched(options: dict[str, object]) -> None:
    assert not is_patched(make_block(**options))


def test_blocks_with_trained_norms_are_not_patched() -> None:
    block = make_block()
    assert is_patched(block)
    block.norm2.requires_grad_()
    assert not is_patched(block)
