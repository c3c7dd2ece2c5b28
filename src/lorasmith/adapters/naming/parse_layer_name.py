"""Names of layers in LoRA files of every program, translated without a model.

A layer is identified by its part of the model and its module path in diffusers. Programs name it

- with underscores after a prefix: ``lora_unet_down_blocks_0_..._to_q`` (sd-scripts, "kohya"),
  ``lycoris_down_blocks_0_..._to_q`` (LyCORIS, SimpleTuner);
- with dots after none or several prefixes: ``unet.down_blocks.0....to_q`` (diffusers),
  ``base_model.model.`` (PEFT), ``diffusion_model.`` and ``text_encoders.clip_l.transformer.``
  (ComfyUI), ``clip_l.`` (OneTrainer).

In both, the U-Net's layers may have the names of the original code (LDM, sgm): input_blocks.4.1.
Names with underscores have them where the path has dots. Module names contain underscores too, so
parsing relies on the list of their words; names with dots are read in the same way.
"""

import re
from functools import lru_cache
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

MAX_NAME_LENGTH = 256
"""Longer names are no layer's; the longest of SDXL has 80 characters."""

_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers", "upsamplers",
    "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj",
    "proj_in", "proj_out", "conv", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv_in",
    "conv_out", "time_embedding", "add_embedding", "class_embedding", "encoder_hid_proj",
    "cond_proj", "add_k_proj", "add_v_proj", "linear_1", "linear_2",
    "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "mlp", "fc1", "fc2", "text_projection",
)  # fmt: skip
"""The words of module paths of U-Nets and CLIP text encoders, besides numbers."""

_WORD = re.compile("|".join([*sorted(_WORDS, key=len, reverse=True), "0|[1-9][0-9]{0,2}"]))
_ANY_PART = ""
_FIRST, _SECOND = TEXT_ENCODERS
_KOHYA_PREFIXES = {
    UNET_PREFIX: UNET,
    "lora_te1_": _FIRST,
    "lora_te2_": _SECOND,
    "lora_te_": _FIRST,
}
_UNDERSCORED_PREFIXES = {
    **_KOHYA_PREFIXES,
    "lycoris_unet_": UNET,
    "lycoris_te1_": _FIRST,
    "lycoris_te2_": _SECOND,
    "lycoris_te_": _FIRST,
    "lycoris_": _ANY_PART,
}
"""What names with underscores start with, and the part that it means; the first match counts."""
_DOTTED_PREFIXES = {
    # PEFT's wrapper, around any part
    "base_model.model.": _ANY_PART,
    # diffusers, also twice (`unet.unet.`, its training scripts of 2023)
    "unet.": UNET,
    "text_encoder.": _FIRST,
    "text_encoder_2.": _SECOND,
    # the original code, and ComfyUI
    "model.diffusion_model.": UNET,
    "diffusion_model.": UNET,
    "cond_stage_model.transformer.": _FIRST,
    "conditioner.embedders.0.transformer.": _FIRST,
    "text_encoders.": _ANY_PART,
    # OneTrainer writes them without `transformer.`
    "clip_l.": _FIRST,
    "clip_h.": _FIRST,
    "clip_g.": _SECOND,
    "transformer.": _ANY_PART,
    # OneTrainer's own backups
    "lora_unet.": UNET,
    "lora_te1.": _FIRST,
    "lora_te2.": _SECOND,
    "lora_te.": _FIRST,
}
"""What names with dots start with, one after the other, and the part that each means."""
_UNET_STARTS = (
    "down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "time_embedding.",
    "add_embedding.", "class_embedding.", "encoder_hid_proj",
)  # fmt: skip
_BARE_NAMES = {"conv_in": UNET, "conv_out": UNET, "text_projection": _FIRST}
"""Module paths without dots, which need no prefix."""
_TEXT_STARTS = ("encoder.layers.", "text_projection")
_TEXT_MODEL = "text_model."
_UNDERSCORED_TEXT_STARTS = ("text_model_", "encoder_layers_", "text_projection")
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
            KeyError: the family has no such layer.
        """
        facts = get_family(family or DEFAULT_FAMILY)
        if self.part == UNET:
            blocks = BlockMap.from_depths(facts.unet.transformer_layers)
            if family is not None and not blocks.has_layer(self.path):
                raise KeyError(self.path)
            if not facts.uses_sgm_names:
                return kohya_unet_name(self.path)
            return UNET_PREFIX + blocks.sgm_name(self.path)
        if family is None and self.part == _SECOND:
            return kohya_text_name(self.path, "lora_te2_")  # of an unknown family, like SDXL's
        part = self.part
        if part == _FIRST and tuple(facts.text_encoders) == (_SECOND,):
            part = _SECOND  # the refiner's only encoder, which some programs count from 1
        if part not in facts.text_encoders:
            raise KeyError(self.path)
        return kohya_text_name(self.path, facts.lora_text_prefixes[TEXT_ENCODERS.index(part)])


def parse_layer_name(name: str) -> LayerPath | None:
    """Return the layer that a name in a LoRA file means, in any program's spelling; None if none.

    The name is a key of the file without what names the tensor (``.lora_up.weight``).
    """
    return _parse_short_name(name) if len(name) <= MAX_NAME_LENGTH else None


@lru_cache(maxsize=8192)
def _parse_short_name(name: str) -> LayerPath | None:
    if "." in name:
        part, inner = _strip_dotted_prefixes(name)
    else:
        part, inner = _strip_underscored_prefix(name)
    if part is None:
        return None
    if part == _ANY_PART:
        part = _FIRST if inner.startswith(_UNDERSCORED_TEXT_STARTS) else UNET
    path = _unet_path(inner) if part == UNET else _text_path(inner)
    return LayerPath(part, path) if path else None


def is_kohya_name(name: str) -> bool:
    """Return whether a name is spelled as kohya's files do, with diffusers' or sgm's blocks."""
    layer_path = parse_layer_name(name)
    if layer_path is None:
        return False
    prefix = next((prefix for prefix in _KOHYA_PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        return False
    inner = name.removeprefix(prefix)
    if layer_path.part == UNET:
        return inner == layer_path.path.replace(".", "_") or diffusers_path(inner) != inner
    return inner == kohya_text_name(layer_path.path, "")


def _strip_underscored_prefix(name: str) -> tuple[str | None, str]:
    for prefix, part in _UNDERSCORED_PREFIXES.items():
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    return _BARE_NAMES.get(name), name


def _strip_dotted_prefixes(name: str) -> tuple[str | None, str]:
    """Return the part that a name's prefixes mean (None if they contradict), and the rest of it.

    The rest has underscores for dots.
    """
    part, rest = _ANY_PART, name
    while prefix := next((prefix for prefix in _DOTTED_PREFIXES if rest.startswith(prefix)), None):
        meant = _DOTTED_PREFIXES[prefix]
        if meant and part and meant != part:
            return None, name
        part, rest = part or meant, rest.removeprefix(prefix)
    return part, rest.replace(".processor.", ".").replace(".", "_")


def _unet_path(name: str) -> str:
    path = _to_dotted(diffusers_path(name))
    if path.endswith(".to_out"):  # early diffusers
        path += ".0"
    return path if path.startswith(_UNET_STARTS) else ""


def _text_path(name: str) -> str:
    path = _to_dotted(name.removeprefix("text_model_"))
    parent, _, layer = path.rpartition(".")
    if parent.endswith("self_attn"):
        path = f"{parent}.{_TEXT_ATTENTION.get(layer, layer)}"
    return path if path.startswith(_TEXT_STARTS) else ""


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
