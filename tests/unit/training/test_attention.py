"""Attention in a step gives what diffusers' own processor gives."""

import pytest
import torch
from torch import nn

from lorasmith.adapters.nn.lora import Factors, LoraLinear
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.training.acceleration import attention
from lorasmith.training.acceleration.factor_cache import FactorCastCache


def make(cross: int | None = None, adapted: bool = True, **more: object) -> nn.Module:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    made = Attention(16, cross, heads=2, dim_head=8, **more).double().requires_grad_(False)
    if adapted:
        for name in ("to_q", "to_k", "to_v"):
            layer = LoraWrapper(getattr(made, name))
            inputs = layer.base.in_features
            factors = torch.randn(3, inputs).double(), torch.randn(16, 3).double()
            layer.adapters.append(LoraLinear(Factors(*factors), 3.0))
            setattr(made, name, layer)
    return made


def casts_of(network: nn.Module, cross: int | None) -> FactorCastCache:
    layers = [network.to_q, network.to_k, network.to_v]
    learners = [(one, tuple(one.adapters)) for one in layers]
    families = [learners] if cross is None else [learners[:1], learners[1:]]
    return FactorCastCache(families)


@pytest.mark.parametrize("cross", [None, 12])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_output_and_gradients_are_diffusers_own(cross: int | None, factor: float) -> None:
    network = make(cross, rescale_output_factor=factor)
    x = torch.randn(2, 5, 16, dtype=torch.double, requires_grad=True)
    text = None if cross is None else torch.randn(2, 7, cross).double().requires_grad_()
    of = [one for one in network.parameters() if one.requires_grad]
    of += [x] if text is None else [x, text]
    wanted = network(x, text)
    theirs = torch.autograd.grad(wanted.square().sum(), of)
    casts = casts_of(network, cross)
    attention.use_swift(network)
    assert isinstance(network.processor, attention.FusedQKVAttnProcessor)
    casts.refresh()
    found = network(x, text)
    ours = torch.autograd.grad(found.square().sum(), of)
    casts.clear()
    attention.use_own(network)
    assert not isinstance(network.processor, attention.FusedQKVAttnProcessor)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_masks_are_heeded() -> None:
    network = make(adapted=False)
    x = torch.randn(2, 5, 16, dtype=torch.double)
    mask = torch.zeros(2, 1, 5, dtype=torch.double)
    mask[:, :, 3:] = -1e4
    wanted = network(x, attention_mask=mask)
    attention.use_swift(network)
    torch.testing.assert_close(network(x, attention_mask=mask), wanted)
    assert not torch.allclose(network(x), wanted)


@pytest.mark.parametrize(
    "more", [{"residual_connection": True}, {"qk_norm": "layer_norm"}, {"norm_num_groups": 4}]
)
def test_attentions_that_do_more_are_left_alone(more: dict[str, object]) -> None:
    network = make(adapted=False, **more)
    attention.use_swift(network)
    assert not isinstance(network.processor, attention.FusedQKVAttnProcessor)
