"""Which models a LoRA file is for: their family and what they predict."""

import re

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.models.family import FAMILIES, Family

_XL = ("lora_te2_", "lora_unet_input_blocks_", "lora_unet_output_blocks_",
       "lora_unet_middle_block_")  # fmt: skip
_DEEP = re.compile(r"lora_unet_\w+_transformer_blocks_[1-9]")
"""A second transformer behind the first, which only SDXL has."""
_TEXT_WIDTHS: dict[int, Family] = {
    facts.unet.cross_attention_dim: family for family, facts in FAMILIES.items()
}
"""Width of the text that cross-attention of published models reads."""


def detect_lora_family(file: LoraFile) -> tuple[Family | None, str]:
    """Return the family of models that a file is for, and what tells it."""
    version = file.metadata.get("ss_base_model_version", "")
    for family, facts in FAMILIES.items():
        if version in facts.kohya_versions:
            return family, "metadata"
    if version.startswith("sdxl_"):
        return "sdxl", "metadata"
    widths = {la.sides[1] for name, la in file.layers.items() if name.endswith("attn2_to_k")}
    known = {_TEXT_WIDTHS[width] for width in widths if width in _TEXT_WIDTHS}
    if len(known) == 1:
        return known.pop(), "shapes"
    if any(name.startswith(_XL) or _DEEP.match(name) for name in file.layers):
        return "sdxl", "names"
    return None, ""


def detect_prediction_type(file: LoraFile) -> str | None:
    """Return what a file's base predicts, ``epsilon`` or ``v_prediction``, if the file says so.

    ``ss_base_model_version`` tells it of SD 2.x only; others' are alike for both.
    """
    told = file.metadata.get("modelspec.prediction_type")
    if told in ("epsilon", "v"):
        return "v_prediction" if told == "v" else "epsilon"
    version = file.metadata.get("ss_base_model_version")
    kinds = dict(zip(FAMILIES["sd2"].kohya_versions, ("epsilon", "v_prediction"), strict=True))
    return kinds.get(version) if version else None
