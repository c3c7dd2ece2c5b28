"""A U-Net as a tree to be read: what data walks through, in order, with shapes and sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class UnetNode:
    """A part of the network. The children's parameters add up to the node's."""

    path: str
    """Dotted name below the U-Net; ``0-9`` in it stands for ten layers that are alike."""
    kind: str
    """What it is, in words."""
    detail: str
    """Shapes."""
    parameters: int
    """Number of parameters, everything below included."""
    note: str = ""
    """What enters here besides the picture, and where."""
    block: str = ""
    """Its name in block weight vectors (BASE, IN00-11, MID, OUT00-11), where it has one."""
    children: tuple["UnetNode", ...] = ()
    """Its parts in the order in which data passes them."""


def count_parameters(*modules: nn.Module | None) -> int:
    """Return the number of parameters of modules; None counts nothing."""
    return sum(tensor.numel() for module in modules if module for tensor in module.parameters())


def build_unet_tree(unet: Any) -> UnetNode:
    """Return the tree of a diffusers ``UNet2DConditionModel``, which may be on the meta device."""
    config = unet.config
    levels = len(unet.down_blocks)
    sides = [_halved(config.sample_size, level) for level in range(levels)]
    children = [
        _conv("conv_in", unet.conv_in, sides[0], "IN00"),
        *_embeddings(unet),
        *(_down(level, block, sides[level]) for level, block in enumerate(unet.down_blocks)),
        *([_mid(unet.mid_block, sides[-1])] if unet.mid_block is not None else []),
        *(_up(level, block, sides[-1 - level]) for level, block in enumerate(unet.up_blocks)),
        _conv("conv_out", unet.conv_out, sides[0], "", unet.conv_norm_out),
    ]
    channels = f"{config.in_channels} channels in, {config.out_channels} out"
    return UnetNode("unet", "U-Net", channels, count_parameters(unet), children=tuple(children))


def _halved(side: Any, times: int) -> str:
    """Return ``64x64`` for a latent side after a number of halvings, or nothing if unknown."""
    if not isinstance(side, int):
        return ""
    for _ in range(times):
        side = (side + 1) // 2
    return f"{side}x{side}"


def _at(side: str) -> str:
    return f" at {side}" if side else ""


def _conv(path: str, conv: Any, side: str, block: str, norm: nn.Module | None = None) -> UnetNode:
    detail = f"{conv.in_channels} -> {conv.out_channels}{_at(side)}"
    detail += ", norm first" if norm is not None else ""
    return UnetNode(path, "convolution", detail, count_parameters(conv, norm), "", block)


def _embeddings(unet: Any) -> list[UnetNode]:
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


def _down(level: int, block: Any, side: str) -> UnetNode:
    path, per_level = f"down_blocks.{level}", len(block.resnets) + 1
    names = [f"IN{level * per_level + n + 1:02d}" for n in range(per_level)]
    children = _layers(path, block, names)
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


def _mid(block: Any, side: str) -> UnetNode:
    names = ["MID"] * (len(block.resnets) + 1)
    children = _layers("mid_block", block, names, resnet_first=True)
    return UnetNode(
        "mid_block", type(block).__name__, side, count_parameters(block), children=tuple(children)
    )


def _up(level: int, block: Any, side: str) -> UnetNode:
    path, per_level = f"up_blocks.{level}", len(block.resnets)
    names = [f"OUT{level * per_level + n:02d}" for n in range(per_level)]
    children = _layers(path, block, names)
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


def _layers(
    path: str, block: Any, names: Sequence[str], resnet_first: bool = False
) -> list[UnetNode]:
    """Return resnets and transformers in the order of the data.

    In the middle block one more resnet comes first, with no transformer of its own.
    """
    attentions = list(getattr(block, "attentions", None) or ())
    if resnet_first:
        attentions = [*attentions, None]
    nodes: list[UnetNode] = []
    for number, resnet in enumerate(block.resnets):
        nodes.append(_resnet(f"{path}.resnets.{number}", resnet, names[number]))
        attention = attentions[number] if number < len(attentions) else None
        if attention is not None:
            place = f"{path}.attentions.{number}"
            nodes.append(_transformer(place, attention, names[number]))
    return nodes


def _resnet(path: str, resnet: Any, block: str) -> UnetNode:
    time = resnet.time_emb_proj
    note = f"time {time.in_features} after conv1" if time is not None else ""
    detail = f"{resnet.in_channels} -> {resnet.out_channels}"
    return UnetNode(path, "resnet", detail, count_parameters(resnet), note, block)


def _transformer(path: str, attention: Any, block: str) -> UnetNode:
    blocks = list(attention.transformer_blocks)
    first = blocks[0]
    last = f"-{len(blocks) - 1}" if len(blocks) > 1 else ""
    inside = f"{path}.transformer_blocks.0{last}"
    alike = f" x {len(blocks)}" if last else ""
    heads = f"{first.attn1.heads} heads x {first.attn1.inner_dim // first.attn1.heads}"
    rest = count_parameters(attention) - sum(
        count_parameters(b.attn1, b.attn2, b.ff) for b in blocks
    )
    children = (
        _attention(f"{inside}.attn1", [b.attn1 for b in blocks], alike),
        *([_attention(f"{inside}.attn2", [b.attn2 for b in blocks], alike)] if first.attn2 else ()),
        _feed_forward(f"{inside}.ff", [b.ff for b in blocks], alike),
        UnetNode(f"{path}.proj_in, proj_out, norms", "", _projection(attention), rest),
    )
    detail = f"{attention.config.in_channels} ch, {heads}"
    return UnetNode(
        path, "spatial transformer", detail, count_parameters(attention), "", block, children
    )


def _projection(attention: Any) -> str:
    kind = "linear" if isinstance(attention.proj_in, nn.Linear) else "1x1 convolutions"
    return f"{attention.config.in_channels} -> {attention.inner_dim} ({kind})"


def _attention(path: str, attentions: Sequence[Any], alike: str) -> UnetNode:
    one = attentions[0]
    if one.is_cross_attention:
        kind, note = "cross-attention", "text at k, v"
        detail = f"q {one.query_dim}, k v {one.cross_attention_dim}"
    else:
        kind, note = "self-attention", ""
        detail = f"q k v {one.query_dim}"
    detail += f" -> {one.out_dim}{alike}"
    return UnetNode(path, kind, detail, count_parameters(*attentions), note)


def _feed_forward(path: str, parts: Sequence[Any], alike: str) -> UnetNode:
    wide, narrow = parts[0].net[0].proj, parts[0].net[2]
    activation = type(parts[0].net[0]).__name__
    detail = (
        f"{wide.in_features} -> {activation} {wide.out_features} -> {narrow.in_features} -> "
        f"{narrow.out_features}{alike}"
    )
    return UnetNode(path, "feed-forward", detail, count_parameters(*parts))
