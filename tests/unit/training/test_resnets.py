"""A U-Net whose blocks use the kernels gives what it gives as it is written."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lorasmith.adapters.nn.lora import Factors, make_adapter
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops import group_norm
from lorasmith.training.acceleration import resnets
from lorasmith.training.acceleration.compile import iter_blocks

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KINDS = {"convolutions": False, "products": True}
"""How transformers project: SD 1.x and SDXL."""


def make(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8,
        norm_num_groups=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=4,
        layers_per_block=1,
        use_linear_projection=KINDS[kind],
    )
    for norm in network.modules():
        if isinstance(norm, nn.GroupNorm):  # others than ones and zeros
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return network.requires_grad_(False).to(dtype)


def adapt(network: nn.Module, names: tuple[str, ...]) -> list[nn.Parameter]:
    """Put adapters on the layers with these names."""
    chosen = [
        (parent, name, layer)
        for parent in network.modules()
        for name, layer in parent.named_children()
        if name in names
    ]
    factors = []
    for parent, name, layer in chosen:
        out, width, *kernel = layer.weight.shape
        down = torch.randn(2, width, *kernel, dtype=layer.weight.dtype) / width
        up = torch.randn(out, 2, *[1] * len(kernel), dtype=layer.weight.dtype)
        stand_in = LoraWrapper(layer)
        stand_in.adapters.append(make_adapter(layer, Factors(down, up), alpha=2.0))
        setattr(parent, name, stand_in)
        factors += list(stand_in.adapters.parameters())
    return factors


def both_ways(network: Any, wanted: list[nn.Parameter]) -> list[torch.Tensor]:
    """Return the output, and the gradients of the input and of these."""
    torch.manual_seed(1)
    dtype = next(network.parameters()).dtype
    device = next(network.parameters()).device
    x = torch.randn(2, 4, 8, 12, dtype=dtype).to(device).requires_grad_()
    words = torch.randn(2, 3, 6, dtype=dtype).to(device)
    y = network(x, torch.tensor([7, 500], device=device), words).sample
    weight = torch.randn(y.shape, dtype=dtype).to(device)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *wanted])]


def is_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Let the operations be torch's own; what they are given is collected."""
    given: list[torch.Tensor] = []

    def collecting(way: Callable[..., torch.Tensor], pictures: int) -> Callable[..., torch.Tensor]:
        def work(*arguments: Any) -> torch.Tensor:
            given.extend(arguments[:pictures])
            return way(*arguments)

        return work

    monkeypatch.setattr(group_norm, "group_norm", collecting(group_norm.group_norm_reference, 1))
    monkeypatch.setattr(
        group_norm, "add_with_bias", collecting(group_norm.add_with_bias_reference, 2)
    )
    return given


def agree(network: Any, wanted: list[nn.Parameter], bound: float = 1e-10) -> None:
    before = both_ways(network, wanted)
    resnets.channels_last(network)
    resnets.use_kernels(network)
    for ours, own in zip(both_ways(network, wanted), before, strict=True):
        scale = float(own.abs().max())
        torch.testing.assert_close(ours, own, atol=bound * scale, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names",
    [
        (),
        ("to_q", "conv"),
        ("proj_in", "proj_out", "to_q"),
        ("conv1", "conv_shortcut"),
        ("conv2", "time_emb_proj", "conv_in", "conv_out"),
        ("linear_1",),
    ],
)
def test_output_and_gradients_are_the_network_s_own(
    kind: str, names: tuple[str, ...], calls: list[torch.Tensor]
) -> None:
    network = make(kind)
    agree(network, adapt(network, names))
    assert len(calls) == 8 * 4 + 4 + 1  # for each resnet, for each transformer, for the end


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_has_to_be_copied(kind: str, calls: list[torch.Tensor]) -> None:
    network = make(kind).train()
    resnets.channels_last(network)
    resnets.use_kernels(network)
    y, *_ = both_ways(network, [])
    assert len(calls) > 20
    assert all(is_last(one) for one in calls)
    assert is_last(y)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_come_with_channels_last(
    kind: str, calls: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make(kind).train()
    resnets.channels_last(network)
    resnets.use_kernels(network)
    came: list[torch.Tensor] = []
    way = group_norm.group_norm

    def listening(*arguments: Any) -> torch.Tensor:
        y = way(*arguments)
        y.register_hook(came.append)
        return y

    monkeypatch.setattr(group_norm, "group_norm", listening)
    both_ways(network, [])
    assert len(came) > 10
    assert all(is_last(one) for one in came)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_put_back(kind: str, calls: list[torch.Tensor]) -> None:
    network = make(kind)
    before, classes = both_ways(network, []), [type(one) for one in network.modules()]
    blocks = list(iter_blocks(network))
    resnets.use_kernels(network)
    assert list(iter_blocks(network)) == blocks
    resnets.use_kernels(network)
    both_ways(network, [])
    assert calls
    resnets.use_own(network)
    assert [type(one) for one in network.modules()] == classes
    assert not list(resnets.fast_layers(network))
    for ours, own in zip(both_ways(network, []), before, strict=True):
        assert torch.equal(ours, own)


def trained_norm(block: Any) -> None:
    block.norm1.weight.requires_grad_()


def dropout(block: Any) -> None:
    block.dropout.p = 0.1


def other_activation(block: Any) -> None:
    block.nonlinearity = nn.Mish()


def other_time(block: Any) -> None:
    block.time_embedding_norm = "scale_shift"


def sampling(block: Any) -> None:
    block.upsample = nn.Identity()


@pytest.mark.parametrize("change", [trained_norm, dropout, other_activation, other_time, sampling])
def test_other_blocks_stay_as_they_are(change: Callable[[Any], None]) -> None:
    network = make("products").train()
    block = network.mid_block.resnets[0]
    change(block)
    own = type(block)
    resnets.use_kernels(network)
    assert type(block) is own
    assert type(network.mid_block.resnets[1]) is not own


def test_dropout_that_is_off_does_not_matter() -> None:
    network = make("products").eval()
    block = network.mid_block.resnets[0]
    dropout(block)
    resnets.use_kernels(network)
    assert block in list(resnets.fast_layers(network))


def test_the_sum_is_divided_where_it_has_to_be(calls: list[torch.Tensor]) -> None:
    network = make("convolutions")
    network.mid_block.resnets[1].output_scale_factor = 1.5
    agree(network, [])


def test_listeners_are_heard(calls: list[torch.Tensor]) -> None:
    network = make("convolutions")
    resnets.use_kernels(network)
    heard = []
    for name in ("conv1", "conv2"):
        layer = getattr(network.mid_block.resnets[0], name)
        layer.register_forward_hook(lambda *given: heard.append(given[2]))
    both_ways(network, [])
    assert len(heard) == 2


def test_kernels_of_convolutions_are_turned_but_not_those_in_training() -> None:
    network = make("convolutions")
    network.conv_out.weight.requires_grad_()
    weight = network.conv_in.weight
    before = weight.clone()
    resnets.channels_last(network)
    assert network.conv_in.weight is weight
    assert torch.equal(weight, before)
    assert is_last(weight)
    assert not is_last(network.conv_out.weight)


@pytest.fixture
def exact() -> Iterator[None]:
    """Let convolutions not round to TensorFloat-32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.gpu
@GPU
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("to_q",), ("conv1", "time_emb_proj", "proj_in")])
def test_kernels_give_the_network_s_own(kind: str, names: tuple[str, ...]) -> None:
    network = make(kind, torch.float32)
    wanted = adapt(network, names)
    agree(network.cuda(), wanted, bound=1e-4)
