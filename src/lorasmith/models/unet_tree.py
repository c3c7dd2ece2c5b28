"""A U-Net as a printable tree: its blocks in the order of the data, with shapes and sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class UnetNode:
    """A part of a network. The children's parameters add up to the node's."""

    path: str
    """Module path in the U-Net; ``0-9`` in it stands for ten equal layers."""
    kind: str
    """Its type in words."""
    detail: str
    """Shapes."""
    parameters: int
    """Number of parameters, children included."""
    note: str = ""
    """Further inputs, and where they enter."""
    block: str = ""
    """Its name in block weight vectors (BASE, IN00-11, MID, OUT00-11), if any."""
    children: tuple["UnetNode", ...] = ()
    """Its parts in the order of the data."""


def count_parameters(*modules: nn.Module | None) -> int:
    """Return the number of parameters of modules; None counts as 0."""
    return sum(tensor.numel() for module in modules if module for tensor in module.parameters())


def build_unet_tree(unet: Any) -> UnetNode:
    """Return the tree of a diffusers ``UNet2DConditionModel``, which may be on the meta device."""
    config = unet.config
    levels = len(unet.down_blocks)
    sides = [_halve_side(config.sample_size, level) for level in range(levels)]
    children = [
        _convolution_node("conv_in", unet.conv_in, sides[0], "IN00"),
        *_embedding_nodes(unet),
        *(
            _down_block_node(level, block, sides[level])
            for level, block in enumerate(unet.down_blocks)
        ),
        *([_mid_block_node(unet.mid_block, sides[-1])] if unet.mid_block is not None else []),
        *(
            _up_block_node(level, block, sides[-1 - level])
            for level, block in enumerate(unet.up_blocks)
        ),
        _convolution_node("conv_out", unet.conv_out, sides[0], "", unet.conv_norm_out),
    ]
    channels = f"{config.in_channels} channels in, {config.out_channels} out"
    return UnetNode("unet", "U-Net", channels, count_parameters(unet), children=tuple(children))


def _halve_side(side: Any, times: int) -> str:
    """Return ``64x64`` for a latent side after a number of halvings, or ``""`` if unknown."""
    if not isinstance(side, int):
        return ""
    for _ in range(times):
        side = (side + 1) // 2
    return f"{side}x{side}"


def _format_size(side: str) -> str:
    return f" at {side}" if side else ""


def _convolution_node(
    path: str, conv: Any, side: str, block: str, norm: nn.Module | None = None
) -> UnetNode:
    detail = f"{conv.in_channels} -> {conv.out_channels}{_format_size(side)}"
    detail += ", norm first" if norm is not None else ""
    return UnetNode(path, "convolution", detail, count_parameters(conv, norm), "", block)


def _embedding_nodes(unet: Any) -> list[UnetNode]:
    time = unet.time_embedding
    nodes = [
        UnetNode(
            "time_embedding",
            "time embedding",
            f"{time.linear_1.in_features} -> {time.linear_2.out_features}",
            count_parameters(time),
            "the timestep, for every resnet",
        )
    ]
    for name in ("class_embedding", "add_embedding", "encoder_hid_proj"):
        extra = getattr(unet, name, None)
        if extra is not None:
            nodes.append(
                UnetNode(
                    name, "embedding", "", count_parameters(extra), "added to the time embedding"
                )
            )
    return nodes


def _down_block_node(level: int, block: Any, side: str) -> UnetNode:
    path, per_level = f"down_blocks.{level}", len(block.resnets) + 1
    names = [f"IN{level * per_level + n + 1:02d}" for n in range(per_level)]
    children = _layer_nodes(path, block, names)
    for sampler in block.downsamplers or ():
        detail = f"{sampler.conv.in_channels} channels, half the size"
        children.append(
            UnetNode(
                f"{path}.downsamplers.0",
                "downsampler",
                detail,
                count_parameters(sampler),
                "",
                names[-1],
            )
        )
    return UnetNode(
        path, type(block).__name__, side, count_parameters(block), children=tuple(children)
    )


def _mid_block_node(block: Any, side: str) -> UnetNode:
    names = ["MID"] * (len(block.resnets) + 1)
    children = _layer_nodes("mid_block", block, names, resnet_first=True)
    return UnetNode(
        "mid_block", type(block).__name__, side, count_parameters(block), children=tuple(children)
    )


def _up_block_node(level: int, block: Any, side: str) -> UnetNode:
    path, per_level = f"up_blocks.{level}", len(block.resnets)
    names = [f"OUT{level * per_level + n:02d}" for n in range(per_level)]
    children = _layer_nodes(path, block, names)
    for sampler in block.upsamplers or ():
        detail = f"{sampler.conv.in_channels} channels, twice the size"
        children.append(
            UnetNode(
                f"{path}.upsamplers.0",
                "upsampler",
                detail,
                count_parameters(sampler),
                "",
                names[-1],
            )
        )
    note = "skips from the way down"
    return UnetNode(
        path, type(block).__name__, side, count_parameters(block), note, children=tuple(children)
    )


def _layer_nodes(
    path: str, block: Any, names: Sequence[str], resnet_first: bool = False
) -> list[UnetNode]:
    """Return resnets and transformers in the order of the data.

    The middle block starts with one more resnet, which has no transformer.
    """
    attentions = list(getattr(block, "attentions", None) or ())
    if resnet_first:
        attentions = [*attentions, None]
    nodes: list[UnetNode] = []
    for i, resnet in enumerate(block.resnets):
        nodes.append(_resnet_node(f"{path}.resnets.{i}", resnet, names[i]))
        attention = attentions[i] if i < len(attentions) else None
        if attention is not None:
            attention_path = f"{path}.attentions.{i}"
            nodes.append(_transformer_node(attention_path, attention, names[i]))
    return nodes


def _resnet_node(path: str, resnet: Any, block: str) -> UnetNode:
    time = resnet.time_emb_proj
    note = f"time {time.in_features} after conv1" if time is not None else ""
    detail = f"{resnet.in_channels} -> {resnet.out_channels}"
    return UnetNode(path, "resnet", detail, count_parameters(resnet), note, block)


def _transformer_node(path: str, attention: Any, block: str) -> UnetNode:
    blocks = list(attention.transformer_blocks)
    first = blocks[0]
    last = f"-{len(blocks) - 1}" if len(blocks) > 1 else ""
    block_path = f"{path}.transformer_blocks.0{last}"
    repeats = f" x {len(blocks)}" if last else ""
    heads = f"{first.attn1.heads} heads x {first.attn1.inner_dim // first.attn1.heads}"
    num_other = count_parameters(attention) - sum(
        count_parameters(b.attn1, b.attn2, b.ff) for b in blocks
    )
    children = (
        _attention_node(f"{block_path}.attn1", [b.attn1 for b in blocks], repeats),
        *(
            [_attention_node(f"{block_path}.attn2", [b.attn2 for b in blocks], repeats)]
            if first.attn2
            else ()
        ),
        _feed_forward_node(f"{block_path}.ff", [b.ff for b in blocks], repeats),
        UnetNode(f"{path}.proj_in, proj_out, norms", "", _projection_detail(attention), num_other),
    )
    detail = f"{attention.config.in_channels} ch, {heads}"
    return UnetNode(
        path, "spatial transformer", detail, count_parameters(attention), "", block, children
    )


def _projection_detail(attention: Any) -> str:
    kind = "linear" if isinstance(attention.proj_in, nn.Linear) else "1x1 convolutions"
    return f"{attention.config.in_channels} -> {attention.inner_dim} ({kind})"


def _attention_node(path: str, attentions: Sequence[Any], repeats: str) -> UnetNode:
    attention = attentions[0]
    if attention.is_cross_attention:
        title, note = "cross-attention", "text at k, v"
        detail = f"q {attention.query_dim}, k v {attention.cross_attention_dim}"
    else:
        title, note = "self-attention", ""
        detail = f"q k v {attention.query_dim}"
    detail += f" -> {attention.out_dim}{repeats}"
    return UnetNode(path, title, detail, count_parameters(*attentions), note)


def _feed_forward_node(path: str, feed_forwards: Sequence[Any], repeats: str) -> UnetNode:
    proj_in, proj_out = feed_forwards[0].net[0].proj, feed_forwards[0].net[2]
    activation = type(feed_forwards[0].net[0]).__name__
    detail = (
        f"{proj_in.in_features} -> {activation} {proj_in.out_features} -> "
        f"{proj_out.in_features} -> {proj_out.out_features}{repeats}"
    )
    return UnetNode(path, "feed-forward", detail, count_parameters(*feed_forwards))
