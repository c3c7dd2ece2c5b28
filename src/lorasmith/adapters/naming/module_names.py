"""Translation of layer names in LoRA files, without a model.

A layer is identified by its part of the model and its module path in diffusers. Two key formats
name it:

- kohya: ``lora_unet_down_blocks_0_..._to_q``; of SDXL, sgm's ``lora_unet_input_blocks_4_1_...``;
- diffusers: ``unet.down_blocks.0....to_q``, ``text_encoder.text_model.encoder.layers.0....fc1``.

Kohya's names have underscores where the path has dots. Module names contain underscores too, so
parsing relies on the list of their words.
"""

import re
from typing import NamedTuple

from lorasmith.adapters.naming.layer_names import (
    TEXT_ENCODERS,
    UNET,
    UNET_PREFIX,
    kohya_text_name,
    kohya_unet_name,
)
from lorasmith.adapters.naming.unet_blocks import BlockMap, diffusers_path
from lorasmith.models.families.family import DEFAULT_FAMILY, get_family

_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers", "upsamplers",
    "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj",
    "proj_in", "proj_out", "conv", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv_in",
    "conv_out", "time_embedding", "add_embedding", "linear_1", "linear_2",
    "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "mlp", "fc1", "fc2", "text_projection",
)  # fmt: skip
"""The words of module paths of U-Nets and CLIP text encoders, besides numbers."""

_WORD = re.compile("|".join([*sorted(_WORDS, key=len, reverse=True), r"\d+"]))
_PREFIXES = {
    UNET_PREFIX: UNET,
    "lora_te1_": TEXT_ENCODERS[0],
    "lora_te2_": TEXT_ENCODERS[1],
    "lora_te_": TEXT_ENCODERS[0],
}
_UNET_PREFIXES = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out",
                  "time_embedding.", "add_embedding.")  # fmt: skip
_TEXT_PREFIXES = ("text_model.", "encoder.layers.", "text_projection")
_SGM_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_PEFT_PREFIX = "base_model.model."
_TEXT_MODEL = "text_model."
_TEXT_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Today's names of a text encoder's attention layers, by those of early diffusers."""


class LayerPath(NamedTuple):
    """A layer of a model."""

    part: str
    """``unet``, ``text_encoder`` or ``text_encoder_2``."""
    path: str
    """Its module path in diffusers, without the level ``text_model`` of text encoders."""

    @property
    def diffusers_name(self) -> str:
        """Its name in diffusers' LoRA files, with the level ``text_model`` of text encoders."""
        level = _TEXT_MODEL if self.part != UNET and "encoder.layers" in self.path else ""
        return f"{self.part}.{level}{self.path}"

    def kohya_name(self, family: str | None) -> str:
        """Return its name in kohya's LoRA files for models of a family; None is SD 1.x or 2.x.

        Raises:
            IndexError: the family has no such text encoder.
        """
        facts = get_family(family or DEFAULT_FAMILY)
        if self.part == UNET:
            if not facts.uses_sgm_names:
                return kohya_unet_name(self.path)
            blocks = BlockMap.from_depths(facts.unet.transformer_layers)
            return UNET_PREFIX + blocks.sgm_name(self.path)
        index, prefixes = TEXT_ENCODERS.index(self.part), facts.lora_text_prefixes
        if index >= len(prefixes):
            # A file of an unknown family may have two text encoders, like SDXL.
            prefixes = tuple(_PREFIXES)[1:]
        return kohya_text_name(self.path, prefixes[index])


def parse_kohya_name(name: str) -> LayerPath | None:
    """Return the layer of a name with underscores; None if there is none.

    SDXL's may be sgm's names or diffusers'.
    """
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            layer = name.removeprefix(prefix)
            path = _to_dotted(diffusers_path(layer) if part == UNET else layer)
            return LayerPath(part, path.removeprefix(_TEXT_MODEL)) if path else None
    return None


def parse_dotted_name(name: str) -> LayerPath | None:
    """Return the layer of a name with dots; None if there is none.

    The name may start with ``unet.`` or PEFT's ``base_model.model.``, have the attention processors
    and layer names of early diffusers, or be sgm's name after ``diffusion_model.``.
    """
    for prefix in _SGM_PREFIXES:
        if name.startswith(prefix):
            return parse_kohya_name(UNET_PREFIX + name.removeprefix(prefix).replace(".", "_"))
    part, _, path = name.partition(".")
    has_part = part in (UNET, *TEXT_ENCODERS)
    path = path if has_part else name
    path = path.removeprefix(_PEFT_PREFIX).replace(".processor.", ".")
    if not has_part:
        part = UNET if path.startswith(_UNET_PREFIXES) else TEXT_ENCODERS[0]
        if part != UNET and not path.startswith(_TEXT_PREFIXES):
            return None
    return _to_layer_path(part, path)


def _to_layer_path(part: str, path: str) -> LayerPath | None:
    """Return the layer with today's names; None if a word of the path is unknown."""
    parent, _, name = path.removeprefix(_TEXT_MODEL).rpartition(".")
    if part == UNET:
        name = "to_out.0" if name == "to_out" else name
    elif parent.endswith("self_attn"):
        name = _TEXT_ATTENTION.get(name, name)
    path = f"{parent}.{name}" if parent else name
    return LayerPath(part, path) if _to_dotted(path.replace(".", "_")) == path else None


def _to_dotted(name: str) -> str:
    """Return the module path of a name with underscores; empty if a word is unknown."""
    words, position = [], 0
    while position < len(name):
        word = _WORD.match(name, position)
        if word is None or name[word.end() : word.end() + 1] not in ("", "_"):
            return ""
        words.append(word[0])
        position = word.end() + 1
    return ".".join(words)
