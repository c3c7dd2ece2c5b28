"""Which layer a name in a LoRA file means, without a model at hand, and what others call it.

A layer is told by its part of the model and its module path in diffusers, from which both ways of
naming follow:

- kohya: ``lora_unet_down_blocks_0_..._to_q``; of SDXL, sgm's ``lora_unet_input_blocks_4_1_...``;
- diffusers: ``unet.down_blocks.0....to_q``, ``text_encoder.text_model.encoder.layers.0....fc1``.

Kohya's have underscores where the path has dots. Module names contain underscores themselves, so
the way back knows the words that they are made of.
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
from lorasmith.models.family import DEFAULT_FAMILY
from lorasmith.registries import MODEL_FAMILIES

_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers", "upsamplers",
    "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj",
    "proj_in", "proj_out", "conv", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv_in",
    "conv_out", "time_embedding", "add_embedding", "linear_1", "linear_2",
    "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "mlp", "fc1", "fc2", "text_projection",
)  # fmt: skip
"""What module paths of U-Nets and CLIP text encoders are made of, beside numbers."""

_WORD = re.compile("|".join([*sorted(_WORDS, key=len, reverse=True), r"\d+"]))
_PREFIXES = {
    UNET_PREFIX: UNET,
    "lora_te1_": TEXT_ENCODERS[0],
    "lora_te2_": TEXT_ENCODERS[1],
    "lora_te_": TEXT_ENCODERS[0],
}
_UNET_STARTS = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out",
                "time_embedding.", "add_embedding.")  # fmt: skip
_TEXT_STARTS = ("text_model.", "encoder.layers.", "text_projection")
_SGM_STARTS = ("model.diffusion_model.", "diffusion_model.")
_PEFT_START = "base_model.model."
_TEXT_LEVEL = "text_model."
_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""What early diffusers called the layers of a text encoder's attention."""


class LayerPath(NamedTuple):
    """A layer of a model."""

    part: str
    """``unet``, ``text_encoder`` or ``text_encoder_2``."""
    path: str
    """Its module path in diffusers; of a text encoder without the level ``text_model``."""

    @property
    def diffusers_name(self) -> str:
        """Its name in diffusers' LoRA files, where text encoders have the level ``text_model``."""
        level = _TEXT_LEVEL if self.part != UNET and "encoder.layers" in self.path else ""
        return f"{self.part}.{level}{self.path}"

    def kohya_name(self, family: str | None) -> str:
        """Return its name in kohya's LoRA files for models of a family; None is SD 1.x or 2.x."""
        facts = MODEL_FAMILIES.get(family or DEFAULT_FAMILY)
        if self.part == UNET:
            if facts.uses_sgm_names:
                return UNET_PREFIX + BlockMap.from_depths(facts.unet.transformer_layers).sgm_name(
                    self.path
                )
            return kohya_unet_name(self.path)
        number = TEXT_ENCODERS.index(self.part)
        # A file for SDXL of which nobody knows that it is one still tells its encoders apart.
        prefixes = (
            facts.lora_text_prefixes
            if number < len(facts.lora_text_prefixes)
            else tuple(_PREFIXES)[1:]
        )
        return kohya_text_name(self.path, prefixes[number])


def parse_kohya_name(name: str) -> LayerPath | None:
    """Return the layer that a name with underscores means; None where it means none.

    SDXL's may be sgm's names or diffusers'.
    """
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            inner = name.removeprefix(prefix)
            path = _with_dots(diffusers_path(inner) if part == UNET else inner)
            return LayerPath(part, path.removeprefix(_TEXT_LEVEL)) if path else None
    return None


def parse_dotted_name(name: str) -> LayerPath | None:
    """Return the layer that a name with dots means; None where it means none.

    With or without ``unet.`` and PEFT's ``base_model.model.``; with the attention processors and
    layer names of early diffusers; and with sgm's names behind ``diffusion_model.``.
    """
    for start in _SGM_STARTS:
        if name.startswith(start):
            return parse_kohya_name(UNET_PREFIX + name.removeprefix(start).replace(".", "_"))
    part, _, path = name.partition(".")
    plain = path if part in (UNET, *TEXT_ENCODERS) else name
    plain = plain.removeprefix(_PEFT_START).replace(".processor.", ".")
    if part not in (UNET, *TEXT_ENCODERS):
        part = UNET if plain.startswith(_UNET_STARTS) else TEXT_ENCODERS[0]
        if part != UNET and not plain.startswith(_TEXT_STARTS):
            return None
    return _checked(part, plain)


def _checked(part: str, path: str) -> LayerPath | None:
    above, _, leaf = path.removeprefix(_TEXT_LEVEL).rpartition(".")
    if part == UNET:
        leaf = "to_out.0" if leaf == "to_out" else leaf
    elif above.endswith("self_attn"):
        leaf = _ATTENTION.get(leaf, leaf)
    whole = f"{above}.{leaf}" if above else leaf
    # What is made of other words is no layer of a U-Net or a text encoder.
    return LayerPath(part, whole) if _with_dots(whole.replace(".", "_")) == whole else None


def _with_dots(name: str) -> str:
    """Return the module path of a name with underscores, or nothing if a word is unknown."""
    words, place = [], 0
    while place < len(name):
        word = _WORD.match(name, place)
        if word is None or name[word.end() : word.end() + 1] not in ("", "_"):
            return ""
        words.append(word[0])
        place = word.end() + 1
    return ".".join(words)
