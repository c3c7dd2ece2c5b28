"""A U-Net with patched blocks gives what it gives with diffusers' own code."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lorasmith.adapters.nn.lora import Factors, make_adapter
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops import group_norm
from lorasmith.training.acceleration.compile import iter_blocks
from lorasmith.training.acceleration.module_patch import patched
from lorasmith.training.acceleration.resnets import convert_to_channels_last, resnet_patches

PROJECTIONS = {"conv": False, "linear": True}
"""How transformers project: SD 1.x and SDXL."""


def make_unet(projection: str, dtype: torch.dtype = torch.float64) -> Any:
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
        use_linear_projection=PROJECTIONS[projection],
    )
    for norm in network.modules():
        if isinstance(norm, nn.GroupNorm):  # not ones and zeros
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return network.requires_grad_(False).to(dtype)


def add_adapters(network: nn.Module, names: tuple[str, ...]) -> list[nn.Parameter]:
    """Put adapters on the layers with these names; return their factors."""
    matches = [
        (parent, name, layer)
        for parent in network.modules()
        for name, layer in parent.named_children()
        if name in names
    ]
    factors = []
    for parent, name, layer in matches:
        out, width, *kernel = layer.weight.shape
        down = torch.randn(2, width, *kernel, dtype=layer.weight.dtype) / width
        up = torch.randn(out, 2, *[1] * len(kernel), dtype=layer.weight.dtype)
        wrapper = LoraWrapper(layer)
        wrapper.adapters.append(make_adapter(layer, Factors(down, up), alpha=2.0))
        setattr(parent, name, wrapper)
        factors += list(wrapper.adapters.parameters())
    return factors


def output_and_grads(network: Any, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """Return the output, and the gradients of the input and of these parameters."""
    torch.manual_seed(1)
    dtype = next(network.parameters()).dtype
    device = next(network.parameters()).device
    x = torch.randn(2, 4, 8, 12, dtype=dtype).to(device).requires_grad_()
    text = torch.randn(2, 3, 6, dtype=dtype).to(device)
    y = network(x, torch.tensor([7, 500], device=device), text).sample
    weight = torch.randn(y.shape, dtype=dtype).to(device)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *parameters])]


def is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Use torch's own operations in place of the kernels; collect the images they are given."""
    images: list[torch.Tensor] = []

    def collecting(
        function: Callable[..., torch.Tensor], count: int
    ) -> Callable[..., torch.Tensor]:
        def work(*arguments: Any) -> torch.Tensor:
            images.extend(arguments[:count])
            return function(*arguments)

        return work

    monkeypatch.setattr(group_norm, "group_norm", collecting(group_norm.group_norm_reference, 1))
    monkeypatch.setattr(
        group_norm, "add_with_bias", collecting(group_norm.add_with_bias_reference, 2)
    )
    return images


def compare(network: Any, parameters: list[nn.Parameter], bound: float = 1e-10) -> None:
    expected = output_and_grads(network, parameters)
    convert_to_channels_last(network)
    with patched(network, resnet_patches(network)):
        actual = output_and_grads(network, parameters)
    for result, reference in zip(actual, expected, strict=True):
        scale = float(reference.abs().max())
        torch.testing.assert_close(result, reference, atol=bound * scale, rtol=0)


@pytest.mark.parametrize("projection", PROJECTIONS)
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
def test_output_and_gradients_are_those_of_diffusers(
    projection: str, names: tuple[str, ...], calls: list[torch.Tensor]
) -> None:
    network = make_unet(projection)
    compare(network, add_adapters(network, names))
    assert len(calls) == 8 * 4 + 4 + 1  # resnets, transformers, the last norm


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_no_image_has_to_be_copied(projection: str, calls: list[torch.Tensor]) -> None:
    network = make_unet(projection).train()
    convert_to_channels_last(network)
    with patched(network, resnet_patches(network)):
        y, *_ = output_and_grads(network, [])
    assert len(calls) > 20
    assert all(is_channels_last(image) for image in calls)
    assert is_channels_last(y)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_gradients_are_channels_last(
    projection: str, calls: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_unet(projection).train()
    convert_to_channels_last(network)
    grads: list[torch.Tensor] = []
    function = group_norm.group_norm

    def with_hook(*arguments: Any) -> torch.Tensor:
        y = function(*arguments)
        y.register_hook(grads.append)
        return y

    monkeypatch.setattr(group_norm, "group_norm", with_hook)
    with patched(network, resnet_patches(network)):
        output_and_grads(network, [])
    assert len(grads) > 10
    assert all(is_channels_last(grad) for grad in grads)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_blocks_are_restored(projection: str, calls: list[torch.Tensor]) -> None:
    network = make_unet(projection)
    expected = output_and_grads(network, [])
    classes = [type(module) for module in network.modules()]
    blocks = list(iter_blocks(network))
    with patched(network, resnet_patches(network)):
        assert list(iter_blocks(network)) == blocks
        output_and_grads(network, [])
        assert calls
    assert [type(module) for module in network.modules()] == classes
    for result, reference in zip(output_and_grads(network, []), expected, strict=True):
        assert torch.equal(result, reference)


def train_norm(block: Any) -> None:
    block.norm1.weight.requires_grad_()


def use_dropout(block: Any) -> None:
    block.dropout.p = 0.1


def change_activation(block: Any) -> None:
    block.nonlinearity = nn.Mish()


def change_time_shift(block: Any) -> None:
    block.time_embedding_norm = "scale_shift"


def add_upsampling(block: Any) -> None:
    block.upsample = nn.Identity()


@pytest.mark.parametrize(
    "change", [train_norm, use_dropout, change_activation, change_time_shift, add_upsampling]
)
def test_blocks_of_other_kinds_are_not_patched(change: Callable[[Any], None]) -> None:
    network = make_unet("linear").train()
    block = network.mid_block.resnets[0]
    change(block)
    original = type(block)
    with patched(network, resnet_patches(network)):
        assert type(block) is original
        assert type(network.mid_block.resnets[1]) is not original


def test_blocks_with_inactive_dropout_are_patched() -> None:
    network = make_unet("linear").eval()
    block = network.mid_block.resnets[0]
    use_dropout(block)
    original = type(block)
    with patched(network, resnet_patches(network)):
        assert type(block) is not original


def test_output_scale_factor_is_applied(calls: list[torch.Tensor]) -> None:
    network = make_unet("conv")
    network.mid_block.resnets[1].output_scale_factor = 1.5
    compare(network, [])


def test_hooks_of_convolutions_run(calls: list[torch.Tensor]) -> None:
    network = make_unet("conv")
    outputs = []
    for name in ("conv1", "conv2"):
        layer = getattr(network.mid_block.resnets[0], name)
        layer.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    with patched(network, resnet_patches(network)):
        output_and_grads(network, [])
    assert len(outputs) == 2


def test_only_frozen_convolutions_become_channels_last() -> None:
    network = make_unet("conv")
    network.conv_out.weight.requires_grad_()
    weight = network.conv_in.weight
    before = weight.clone()
    convert_to_channels_last(network)
    assert network.conv_in.weight is weight
    assert torch.equal(weight, before)
    assert is_channels_last(weight)
    assert not is_channels_last(network.conv_out.weight)


@pytest.fixture
def exact() -> Iterator[None]:
    """Compute convolutions in float32, not TensorFloat-32."""
    previous = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = previous


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("names", [("to_q",), ("conv1", "time_emb_proj", "proj_in")])
def test_kernels_agree_with_diffusers(projection: str, names: tuple[str, ...]) -> None:
    network = make_unet(projection, torch.float32)
    parameters = add_adapters(network, names)
    compare(network.cuda(), parameters, bound=1e-4)
