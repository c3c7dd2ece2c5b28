"""Where a U-Net layer stands: its block's name in block vectors, and its name in sgm's numbering.

Stability AI's own code (sgm) counts the U-Net's pieces from the first convolution on:
``input_blocks_0`` to ``_11``, ``middle_block`` and ``output_blocks_0`` to ``_11`` in SD 1.x, to 8
in SDXL. Block weight vectors (LBW) use the same numbers as IN00-11, MID, OUT00-11, and LoRA files
for SDXL name their layers that way. diffusers groups the pieces by resolution instead.
"""

import re
from collections.abc import Sequence
from typing import Any, Self

_INNER = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
"""Layers of a resnet, diffusers' name to sgm's."""

_OUTER = {
    "conv_in": "input_blocks_0_0",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "conv_out": "out_2",
}
"""Layers outside of the blocks."""


_PUBLISHED_RESNETS = 2
"""Resnets of each level on the way down in every published model; one more on the way up."""

_NUMBERED = re.compile(r"(?P<side>input|output)_blocks_(?P<number>\d+)_(?P<inner>\d)_(?P<rest>\w+)")
_MIDDLE = re.compile(r"middle_block_(?P<inner>\d)_(?P<rest>\w+)")


class BlockMap:
    """Translates diffusers' module paths of one U-Net."""

    def __init__(
        self, resnets_down: Sequence[int], resnets_up: Sequence[int], attended_up: Sequence[bool]
    ) -> None:
        """Count the pieces of each block.

        Args:
            resnets_down: resnets of each level on the way down.
            resnets_up: on the way up, the deepest level first.
            attended_up: whether there is attention too, likewise.
        """
        self._down, self._up = [], []
        place = 1  # 0 is the first convolution
        for count in resnets_down:
            self._down.append(place)
            place += count + 1
        place = 0
        for count in resnets_up:
            self._up.append(place)
            place += count
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

    def lbw_name(self, path: str) -> str:
        """Return IN00 to IN11, MID or OUT00 to OUT11 for a module path, or nothing outside."""
        side, number, _ = self._position(path)
        if side == "middle":
            return "MID"
        if path.startswith("conv_in"):
            return "IN00"
        return f"{'IN' if side == 'input' else 'OUT'}{number:02d}" if side else ""

    def sgm_name(self, path: str) -> str:
        """Return the name that sgm has for a layer, with underscores for dots."""
        side, number, inner = self._position(path)
        if not side:
            return _OUTER.get(path, path.replace(".", "_"))
        block = "middle_block" if side == "middle" else f"{side}_blocks_{number}"
        return f"{block}_{inner}"

    def _position(self, path: str) -> tuple[str, int, str]:
        """Return a path's side (input, middle, output or nothing), piece and name inside it."""
        parts = path.split(".")
        if parts[0] == "mid_block" and len(parts) > 2:
            step = 2 * int(parts[2]) + (parts[1] == "attentions")
            return "middle", 0, f"{step}_{_inside(parts[1], parts[3:])}"
        if parts[0] not in ("down_blocks", "up_blocks") or len(parts) < 4:
            return "", 0, ""
        level, kind, number, rest = int(parts[1]), parts[2], int(parts[3]), parts[4:]
        if parts[0] == "down_blocks":
            first = self._down[level]
            if kind == "downsamplers":
                return "input", first + self._resnets_down[level], "0_op"
            return "input", first + number, f"{int(kind == 'attentions')}_{_inside(kind, rest)}"
        first = self._up[level]
        if kind == "upsamplers":
            last = first + self._resnets_up[level] - 1
            return "output", last, f"{2 if self._attended_up[level] else 1}_conv"
        return "output", first + number, f"{int(kind == 'attentions')}_{_inside(kind, rest)}"


def diffusers_path(name: str) -> str:
    """Return diffusers' name, still with underscores, for a layer of a published U-Net in sgm's.

    A name that is not sgm's comes back as it is.
    """
    outer = {sgm: path.replace(".", "_") for path, sgm in _OUTER.items()}
    if name in outer:
        return outer[name]
    if middle := _MIDDLE.fullmatch(name):
        inner = int(middle["inner"])
        kind = "attentions" if inner == 1 else "resnets"
        return f"mid_block_{kind}_{inner // 2}_{_outside(kind, middle['rest'])}"
    numbered = _NUMBERED.fullmatch(name)
    if numbered is None:
        return name
    down = numbered["side"] == "input"
    # On the way down, piece 0 is the first convolution and each level ends with a downsampler.
    level, number = divmod(int(numbered["number"]) - down, _PUBLISHED_RESNETS + 1)
    side, rest = "down" if down else "up", numbered["rest"]
    if rest == ("op" if down else "conv"):
        return f"{side}_blocks_{level}_{side}samplers_0_conv"
    kind = "attentions" if numbered["inner"] == "1" else "resnets"
    return f"{side}_blocks_{level}_{kind}_{number}_{_outside(kind, rest)}"


def _outside(kind: str, rest: str) -> str:
    """Return diffusers' name for what `_inside` named."""
    names = {sgm: path for path, sgm in _INNER.items()}
    return names.get(rest, rest) if kind == "resnets" else rest


def _inside(kind: str, rest: list[str]) -> str:
    if kind == "resnets" and rest:
        return "_".join([_INNER.get(rest[0], rest[0]), *rest[1:]])
    return "_".join(rest)


def block_sort_key(block: str) -> tuple[int, str]:
    """Sort block names in the order of the forward pass, the text encoders first.

    Takes names of blocks (``down.1``, ``mid``), of block vectors (``IN04``, ``MID``) and of model
    parts (``text_encoder``); others come last.
    """
    prefixes = ("text", "down", "IN", "mid", "MID", "up", "OUT")
    position = (i for i, prefix in enumerate(prefixes) if block.startswith(prefix))
    return next(position, len(prefixes)), block
