"""The residual blocks and convolutions of diffusers' U-Nets in channels-last memory format.

cuDNN convolves fastest in this format, and transformers read the same memory as tokens, so nothing
is copied from one layout to the other. Group norms are the kernels of ``lorasmith.ops.group_norm``,
which also add a convolution's bias, the embedded timestep and a block's residual. Layers that an
adapter wraps are called as they are.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.ops import group_norm
from lorasmith.training.acceleration.module_patch import ModulePatch


def convert_to_channels_last(network: nn.Module) -> None:
    """Convert the frozen weights of a network's convolutions to the channels-last memory format.

    Values and parameters stay the same objects. Activations follow: a convolution's output has the
    format of its weight, and other layers keep it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.requires_grad:
            weight = module.weight
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def resnet_patches(unet: nn.Module) -> list[ModulePatch]:
    """Return the patches of a U-Net's residual blocks, of what is around its transformers, and of
    its last norm.

    They leave blocks alone whose norms are trained, that use dropout, or of unusual kinds.
    """
    return [*_class_patches(), *_output_patches(unet)]


@cache
def _class_patches() -> tuple[ModulePatch, ...]:
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    class FusedResnetBlock2D(ResnetBlock2D):  # type: ignore[misc]
        """A residual block that uses the kernels."""

        def forward(self, input_tensor: torch.Tensor, temb: Any, *_: Any, **__: Any) -> Any:
            """Return the block's output, ``[N, C, H, W]``, channels-last."""
            return _resnet_forward(self, input_tensor, temb)

    class ChannelsLastTransformer2DModel(Transformer2DModel):  # type: ignore[misc]
        """A transformer whose tokens are the image's own memory."""

        def _operate_on_continuous_inputs(self, hidden_states: torch.Tensor) -> Any:
            tokens = _project(self.proj_in, _apply_norm(self.norm, hidden_states, silu=False))
            return tokens, tokens.shape[-1]

        def _get_output_for_continuous_inputs(
            self, hidden_states: Any, residual: Any, *_: Any, **__: Any
        ) -> Any:
            height, width = residual.shape[-2:]
            tokens = _project(self.proj_out, _to_image(hidden_states, height, width))
            return _to_image(tokens, height, width) + _channels_last(residual)

    return (
        ModulePatch(ResnetBlock2D, FusedResnetBlock2D, _is_plain_resnet),
        ModulePatch(Transformer2DModel, ChannelsLastTransformer2DModel, _is_plain_transformer),
    )


class _GroupNormSiLU(nn.GroupNorm):
    """The last norm of a U-Net together with the activation after it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _apply_norm(self, input, silu=True)


class _Identity(nn.SiLU):
    """That activation, which the norm has already applied."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input


def _output_patches(unet: nn.Module) -> list[ModulePatch]:
    """Return the patches of the norm and the activation before a U-Net's last convolution."""
    norm, activation = getattr(unet, "conv_norm_out", None), getattr(unet, "conv_act", None)

    def is_plain() -> bool:
        classes = type(norm), type(activation)
        return classes == (nn.GroupNorm, nn.SiLU) and _is_frozen(norm)

    return [
        ModulePatch(nn.GroupNorm, _GroupNormSiLU, lambda module: module is norm and is_plain()),
        ModulePatch(nn.SiLU, _Identity, lambda module: module is activation and is_plain()),
    ]


def _is_plain_resnet(block: Any) -> bool:
    """Return whether ``_resnet_forward`` computes what a block does."""
    norms = (block.norm1, block.norm2)
    return (
        block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and block.upsample is None
        and block.downsample is None
        and type(block.nonlinearity) is nn.SiLU
        and all(type(norm) is nn.GroupNorm and _is_frozen(norm) for norm in norms)
        and (block.dropout.p == 0 or not block.dropout.training)
    )


def _is_plain_transformer(model: Any) -> bool:
    """Return whether a transformer reads images through a norm and a projection."""
    if not model.is_input_continuous:
        return False
    return type(model.norm) is nn.GroupNorm and _is_frozen(model.norm)


def _is_frozen(norm: Any) -> bool:
    return bool(norm.affine) and not norm.weight.requires_grad and not norm.bias.requires_grad


def _resnet_forward(block: Any, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
    """Return the output of a ``ResnetBlock2D``.

    Args:
        block: the block, for its layers.
        x: ``[N, C, H, W]``.
        temb: the embedded timestep, ``[N, D]``.
    """
    x = _channels_last(x)
    hidden, bias = _convolve(block.conv1, _apply_norm(block.norm1, x, silu=True))
    shift: torch.Tensor | None = block.time_emb_proj(
        temb if block.skip_time_act else block.nonlinearity(temb)
    )
    if shift is not None and shift.requires_grad:  # the kernels compute no gradient for it
        hidden, shift = hidden + shift[:, :, None, None], None
    hidden = _apply_norm(block.norm2, hidden, silu=True, shift=shift, bias=bias)
    hidden, bias = _convolve(block.conv2, hidden)
    residual, residual_bias = x, None
    if block.conv_shortcut is not None:
        residual, residual_bias = _convolve(block.conv_shortcut, x)
    y = group_norm.add_with_bias(hidden, residual, bias, residual_bias)
    return y if block.output_scale_factor == 1.0 else y / block.output_scale_factor


def _apply_norm(
    norm: nn.GroupNorm,
    x: torch.Tensor,
    silu: bool,
    shift: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    return group_norm.group_norm(
        x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu, shift, bias
    )


def _convolve(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a convolution's output without its bias, and the bias; None if it is already added."""
    if not _is_plain_conv(layer):
        return layer(x), None
    y = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return y, layer.bias


def _project(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Return tokens ``[N, H * W, D]`` of an image ``[N, C, H, W]``, projected by a layer.

    A 1x1 convolution is computed as a product with the tokens, which copies nothing.
    """
    if type(layer) is nn.Conv2d and _is_plain_conv(layer) and layer.kernel_size == (1, 1):
        return F.linear(_to_tokens(x), layer.weight.flatten(1), layer.bias)
    if layer.weight.ndim == 4:
        return _to_tokens(layer(x))
    tokens: torch.Tensor = layer(_to_tokens(x))
    return tokens


def _is_plain_conv(layer: Any) -> bool:
    """Return whether a layer is a frozen convolution without hooks or wrappers."""
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and (layer.bias is None or not layer.bias.requires_grad)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def _to_tokens(x: torch.Tensor) -> torch.Tensor:
    """Return an image ``[N, C, H, W]`` as tokens ``[N, H * W, C]``, in the same memory."""
    return _channels_last(x).permute(0, 2, 3, 1).flatten(1, 2)


def _to_image(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return tokens ``[N, H * W, C]`` as an image ``[N, C, H, W]``, in the same memory."""
    images, _, channels = tokens.shape
    return tokens.reshape(images, height, width, channels).permute(0, 3, 1, 2)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)
