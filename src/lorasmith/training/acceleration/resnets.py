"""The convolutions of diffusers' U-Nets, and what lies between them, with channels last in memory.

cuDNN convolves fastest that way, and transformers read the same memory as tokens: nothing is
copied from one order to the other. Group norms are the kernels of
``lorasmith.ops.group_norm``, into which a convolution's bias, the embedded time and a block's
sum go as well. Layers that an adapter stands in for are called as they are.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.ops import group_norm


def channels_last(network: nn.Module) -> None:
    """Put the frozen kernels of a network's convolutions into the order its pictures are to have.

    The values and the module's parameters stay the same ones. Activations follow: what a
    convolution returns is in the order of its kernel, and all else keeps that.
    """
    for one in network.modules():
        if isinstance(one, nn.Conv2d) and not one.weight.requires_grad:
            one.weight.data = one.weight.data.contiguous(memory_format=torch.channels_last)


def use_kernels(network: nn.Module) -> None:
    """Make a network's blocks use the kernels where they can; ``use_own`` takes that back.

    Blocks with parameters to be trained, with dropout at work or of unusual kinds stay as they are.
    """
    pairs = _classes()
    for one in network.modules():
        for pair in pairs:
            if type(one) is pair.own and pair.fits(one):
                one.__class__ = pair.fast
    norm, activation = _end(network)
    if (type(norm), type(activation)) == (nn.GroupNorm, nn.SiLU) and _frozen(norm):
        norm.__class__, activation.__class__ = _NormThenSiLU, _DoneBefore


def use_own(network: nn.Module) -> None:
    """Let a network's blocks run as they are written again."""
    own = {pair.fast: pair.own for pair in _classes()}
    for one in fast_layers(network):
        one.__class__ = own[type(one)]
    norm, activation = _end(network)
    if (type(norm), type(activation)) == (_NormThenSiLU, _DoneBefore):
        norm.__class__, activation.__class__ = nn.GroupNorm, nn.SiLU


def fast_layers(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks that use the kernels."""
    fast = {pair.fast for pair in _classes()}
    return (one for one in network.modules() if type(one) in fast)


class _Pair(NamedTuple):
    """A class of diffusers, and one of the same layers that calls the kernels."""

    own: Any
    fast: Any
    fits: Any
    """Tells of a layer whether it can be exchanged."""


@cache
def _classes() -> tuple[_Pair, ...]:
    """Return the classes, which take long to import."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    class FastResnet(ResnetBlock2D):  # type: ignore[misc]
        """A block with the same parameters."""

        def forward(self, input_tensor: torch.Tensor, temb: Any, *_: Any, **__: Any) -> Any:
            """Return the block's output, ``[N, C, H, W]``, channels-last."""
            return _resnet(self, input_tensor, temb)

    class FastTransformer(Transformer2DModel):  # type: ignore[misc]
        """A transformer with the same parameters, whose tokens are where the pictures are."""

        def _operate_on_continuous_inputs(self, hidden_states: torch.Tensor) -> Any:
            tokens = _projected(self.proj_in, _norm(self.norm, hidden_states, silu=False))
            return tokens, tokens.shape[-1]

        def _get_output_for_continuous_inputs(
            self, hidden_states: Any, residual: Any, *_: Any, **__: Any
        ) -> Any:
            height, width = residual.shape[-2:]
            tokens = _projected(self.proj_out, _picture(hidden_states, height, width))
            return _picture(tokens, height, width) + _channels_last(residual)

    for fast in (FastResnet, FastTransformer):  # found by these names
        fast.__name__ = fast.__base__.__name__
    return (
        _Pair(ResnetBlock2D, FastResnet, _is_plain_resnet),
        _Pair(Transformer2DModel, FastTransformer, _is_plain_transformer),
    )


class _NormThenSiLU(nn.GroupNorm):
    """The last norm of a U-Net together with the activation behind it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _norm(self, input, silu=True)


class _DoneBefore(nn.SiLU):
    """That activation."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input


def _end(network: nn.Module) -> tuple[Any, Any]:
    """Return the norm and the activation before a U-Net's last convolution; None without them."""
    return getattr(network, "conv_norm_out", None), getattr(network, "conv_act", None)


def _is_plain_resnet(block: Any) -> bool:
    """Tell whether ``_resnet`` computes what a block is to compute."""
    norms = (block.norm1, block.norm2)
    return (
        block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and block.upsample is None
        and block.downsample is None
        and type(block.nonlinearity) is nn.SiLU
        and all(type(norm) is nn.GroupNorm and _frozen(norm) for norm in norms)
        and (block.dropout.p == 0 or not block.dropout.training)
    )


def _is_plain_transformer(model: Any) -> bool:
    """Tell whether a transformer reads pictures by a norm and a projection."""
    if not model.is_input_continuous:
        return False
    return type(model.norm) is nn.GroupNorm and _frozen(model.norm)


def _frozen(norm: nn.GroupNorm) -> bool:
    return norm.affine and not norm.weight.requires_grad and not norm.bias.requires_grad


def _resnet(block: Any, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
    """Return what a ``ResnetBlock2D`` computes.

    Args:
        block: gives the layers.
        x: ``[N, C, H, W]``.
        temb: the embedded time, ``[N, D]``.
    """
    x = _channels_last(x)
    hidden, bias = _convolved(block.conv1, _norm(block.norm1, x, silu=True))
    shift: torch.Tensor | None = block.time_emb_proj(
        temb if block.skip_time_act else block.nonlinearity(temb)
    )
    if shift is not None and shift.requires_grad:  # the kernels give it no gradient
        hidden, shift = hidden + shift[:, :, None, None], None
    hidden = _norm(block.norm2, hidden, silu=True, shift=shift, bias=bias)
    hidden, bias = _convolved(block.conv2, hidden)
    beside, second = x, None
    if block.conv_shortcut is not None:
        beside, second = _convolved(block.conv_shortcut, x)
    y = group_norm.add_with_bias(hidden, beside, bias, second)
    return y if block.output_scale_factor == 1.0 else y / block.output_scale_factor


def _norm(
    norm: nn.GroupNorm,
    x: torch.Tensor,
    silu: bool,
    shift: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    return group_norm.group_norm(
        x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu, shift, bias
    )


def _convolved(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a convolution's output without its bias, and the bias; None where it is added."""
    if not _is_plain(layer):
        return layer(x), None
    y = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return y, layer.bias


def _projected(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Return tokens ``[N, H * W, D]`` of a picture ``[N, C, H, W]``, projected by a layer.

    A convolution of single positions is a product with the tokens, which copies nothing.
    """
    if type(layer) is nn.Conv2d and _is_plain(layer) and layer.kernel_size == (1, 1):
        return F.linear(_tokens(x), layer.weight.flatten(1), layer.bias)
    if layer.weight.ndim == 4:
        return _tokens(layer(x))
    tokens: torch.Tensor = layer(_tokens(x))
    return tokens


def _is_plain(layer: Any) -> bool:
    """Tell whether a layer is a frozen convolution, with nobody listening, and no more."""
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and (layer.bias is None or not layer.bias.requires_grad)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """Return a picture ``[N, C, H, W]`` as tokens ``[N, H * W, C]``, in the same memory."""
    return _channels_last(x).permute(0, 2, 3, 1).flatten(1, 2)


def _picture(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return tokens ``[N, H * W, C]`` as a picture ``[N, C, H, W]``, in the same memory."""
    pictures, _, channels = tokens.shape
    return tokens.reshape(pictures, height, width, channels).permute(0, 3, 1, 2)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)
