"""Names of U-Net layers: their block in block weights (LBW), and their name in sgm.

Stability AI's own code (sgm) counts the U-Net's modules from the first convolution on:
``input_blocks_0`` to ``_11``, ``middle_block`` and ``output_blocks_0`` to ``_11`` in SD 1.x, to 8
in SDXL. Block weights (LBW) use the same numbers as IN00-11, MID, OUT00-11, and LoRA files
for SDXL name their layers that way. diffusers groups the modules by resolution instead.
"""

import re
from collections.abc import Sequence
from typing import Any, Self

_RESNET_LAYERS = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
"""sgm's names of the layers of a resnet, by diffusers' names."""

_OTHER_LAYERS = {
    "conv_in": "input_blocks_0_0",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "conv_out": "out_2",
}
"""sgm's names of the layers outside of all blocks, by diffusers' paths."""


_PUBLISHED_RESNETS = 2
"""Resnets of each level of the encoder in every published model; the decoder has one more."""

_NUMBERED = re.compile(
    r"(?P<side>input|output)_blocks_(?P<index>0|[1-9][0-9]?)_(?P<module>[0-2])_(?P<layer>\w+)"
)
_MIDDLE = re.compile(r"middle_block_(?P<module>[0-2])_(?P<layer>\w+)")
_BLOCK_WORDS = ("down_blocks", "up_blocks")
_LAYERS_OUTSIDE = (*_OTHER_LAYERS, "class_embedding", "encoder_hid_proj")


class BlockMap:
    """Translates diffusers' module paths of one U-Net to other names."""

    def __init__(
        self, resnets_down: Sequence[int], resnets_up: Sequence[int], attended_up: Sequence[bool]
    ) -> None:
        """Count the modules of each block.

        Args:
            resnets_down: number of resnets of each level of the encoder.
            resnets_up: number of resnets of each level of the decoder, the deepest first.
            attended_up: whether each level of the decoder has attention, the deepest first.
        """
        self._down, self._up = [], []
        index = 1  # 0 is the first convolution
        for count in resnets_down:
            self._down.append(index)
            index += count + 1
        index = 0
        for count in resnets_up:
            self._up.append(index)
            index += count
        self._resnets_down, self._resnets_up = list(resnets_down), list(resnets_up)
        self._attended_up = list(attended_up)

    @classmethod
    def from_unet(cls, unet: Any) -> Self:
        """Return the map of a diffusers ``UNet2DConditionModel``."""
        return cls(
            [len(block.resnets) for block in unet.down_blocks],
            [len(block.resnets) for block in unet.up_blocks],
            [bool(getattr(block, "attentions", None)) for block in unet.up_blocks],
        )

    @classmethod
    def from_depths(cls, depths: Sequence[int]) -> Self:
        """Return the map of a published U-Net by the depth of each level's attention."""
        levels = len(depths)
        return cls(
            [_PUBLISHED_RESNETS] * levels,
            [_PUBLISHED_RESNETS + 1] * levels,
            [depth > 0 for depth in reversed(depths)],
        )

    def has_layer(self, path: str) -> bool:
        """Return whether the U-Net has the block that a module path names."""
        names = path.split(".")
        if names[0] == "mid_block":
            return len(names) > 3 and names[2].isdecimal()
        if names[0] not in _BLOCK_WORDS:
            return path.startswith(_LAYERS_OUTSIDE)
        counts = self._resnets_down if names[0] == "down_blocks" else self._resnets_up
        if len(names) < 5 or not (names[1].isdecimal() and names[3].isdecimal()):
            return False
        level, index = int(names[1]), int(names[3])
        samplers = names[2] in ("downsamplers", "upsamplers")
        return level < len(counts) and index < (1 if samplers else counts[level])

    def lbw_name(self, path: str) -> str:
        """Return IN00 to IN11, MID or OUT00 to OUT11 for a module path; empty outside of blocks."""
        side, index, _ = self._position(path)
        if side == "middle":
            return "MID"
        if path.startswith("conv_in"):
            return "IN00"
        return f"{'IN' if side == 'input' else 'OUT'}{index:02d}" if side else ""

    def sgm_name(self, path: str) -> str:
        """Return sgm's name of a layer, with underscores for dots."""
        side, index, layer = self._position(path)
        if not side:
            return _OTHER_LAYERS.get(path, path.replace(".", "_"))
        block = "middle_block" if side == "middle" else f"{side}_blocks_{index}"
        return f"{block}_{layer}"

    def _position(self, path: str) -> tuple[str, int, str]:
        """Return a path's side (input, middle, output or empty), index and name inside of it."""
        names = path.split(".")
        if names[0] not in (*_BLOCK_WORDS, "mid_block") or not self.has_layer(path):
            return "", 0, ""
        if names[0] == "mid_block":
            module = 2 * int(names[2]) + (names[1] == "attentions")
            return "middle", 0, f"{module}_{_to_sgm(names[1], names[3:])}"
        level, kind, index, layer = int(names[1]), names[2], int(names[3]), names[4:]
        sgm_layer = f"{int(kind == 'attentions')}_{_to_sgm(kind, layer)}"
        if names[0] == "down_blocks":
            if kind == "downsamplers":
                return "input", self._down[level] + self._resnets_down[level], "0_op"
            return "input", self._down[level] + index, sgm_layer
        if kind == "upsamplers":
            last = self._up[level] + self._resnets_up[level] - 1
            return "output", last, f"{2 if self._attended_up[level] else 1}_conv"
        return "output", self._up[level] + index, sgm_layer


def diffusers_path(name: str) -> str:
    """Return diffusers' name of a layer of a published U-Net for sgm's; both with underscores.

    A name that is not sgm's is returned unchanged.
    """
    other = {sgm: path.replace(".", "_") for path, sgm in _OTHER_LAYERS.items()}
    if name in other:
        return other[name]
    if middle := _MIDDLE.fullmatch(name):
        module = int(middle["module"])
        kind = "attentions" if module == 1 else "resnets"
        return f"mid_block_{kind}_{module // 2}_{_to_diffusers(kind, middle['layer'])}"
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return name
    is_input = match["side"] == "input"
    # In the encoder, index 0 is the first convolution and each level ends with a downsampler.
    level, index = divmod(int(match["index"]) - is_input, _PUBLISHED_RESNETS + 1)
    side, layer = "down" if is_input else "up", match["layer"]
    if layer == ("op" if is_input else "conv"):
        return f"{side}_blocks_{level}_{side}samplers_0_conv"
    kind = "attentions" if match["module"] == "1" else "resnets"
    return f"{side}_blocks_{level}_{kind}_{index}_{_to_diffusers(kind, layer)}"


def _to_diffusers(kind: str, layer: str) -> str:
    """Return diffusers' name of a layer in a resnet or a transformer; the inverse of `_to_sgm`."""
    names = {sgm: path for path, sgm in _RESNET_LAYERS.items()}
    return names.get(layer, layer) if kind == "resnets" else layer


def _to_sgm(kind: str, layer: list[str]) -> str:
    if kind == "resnets" and layer:
        return "_".join([_RESNET_LAYERS.get(layer[0], layer[0]), *layer[1:]])
    return "_".join(layer)


def block_sort_key(block: str) -> tuple[int, str]:
    """Sort block names in the order of the forward pass, the text encoders first.

    Takes names of blocks (``down.1``, ``mid``), of block vectors (``IN04``, ``MID``) and of model
    parts (``text_encoder``); others come last.
    """
    prefixes = ("text", "down", "IN", "mid", "MID", "up", "OUT")
    position = (i for i, prefix in enumerate(prefixes) if block.startswith(prefix))
    return next(position, len(prefixes)), block
