"""Keys of LoRA files in every spelling: which layer they belong to, and what they hold of it.

What is known of the spellings:

- kohya (sd-scripts): ``NAME.lora_down.weight``, ``.lora_up.weight``, ``.alpha``; LyCORIS adds
  ``.lora_mid.weight``, ``.hada_w1_a``, ``.lokr_w1``, ``.dora_scale``, ``.diff`` and the like;
- PEFT, and diffusers through it: ``PATH.lora_A.weight``, ``.lora_B.weight``,
  ``.lora_magnitude_vector.weight``, with an adapter's name before ``weight`` in some;
- early diffusers: ``PATH.lora.down.weight``, ``PATH.lora_linear_layer.down.weight`` in text
  encoders, and ``PATH.processor.to_q_lora.down.weight`` from ``save_attn_procs``;
- ``PATH.magnitude`` for DoRA in some trainers.

One file may mix them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from lorasmith.adapters.naming.module_names import parse_dotted_name

DOWN, UP, MID, ALPHA = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha"
DORA_SCALE, MAGNITUDE = "dora_scale", "magnitude"
"""DoRA's lengths: along the axis that their shape tells, and always along the output."""

_LYCORIS = r"hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t[12]|diff"
_SUFFIXES: tuple[tuple[str, str, str], ...] = (
    (r"\.lora_down\.weight", DOWN, "kohya"),
    (r"\.lora_up\.weight", UP, "kohya"),
    (r"\.lora_mid\.weight", MID, "kohya"),
    (r"\.alpha", ALPHA, ""),
    (r"\.dora_scale", DORA_SCALE, ""),
    (rf"\.({_LYCORIS})", "", ""),
    (r"\.lora_A(?:\.[^.]+)?\.weight", DOWN, "diffusers"),
    (r"\.lora_B(?:\.[^.]+)?\.weight", UP, "diffusers"),
    (r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", MAGNITUDE, "diffusers"),
    (r"\.magnitude", MAGNITUDE, ""),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight", DOWN, "early diffusers"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight", UP, "early diffusers"),
)
"""Ends of keys, what they hold, and the spelling that they tell; first fit counts."""

_KEYS = [(re.compile(f"(.+?){end}"), role, spelling) for end, role, spelling in _SUFFIXES]

_STRANGERS: tuple[tuple[str, str], ...] = (
    (r"\.(lora_B|lora_up|lora\.up)(\..+)?\.bias$|\.diff_b$", "LoRAs that train biases"),
    (r"\.[wb]_norm$", "LoRAs that train norms"),
    (r"\.(oft_|boft|diag)", "OFT"),
    (r"\.(on_input|ia3)", "IA3"),
    (r"\.[abc][12]?\.weight$", "GLoRA"),
)
"""Ends of keys of adapters that are not supported."""


_MODEL = "a whole model; open it with -m"
_PARTS = (r"model\.diffusion_model\.", r"first_stage_model\.", r"cond_stage_model\.|conditioner\.")
_LATER = re.compile(
    r"(lora_transformer|transformer\.(?!text_model)|lora_te3_|(lora_unet_|lora_te\d?_|"
    r"diffusion_model\.)?(double|single|joint)_blocks)"
)
_OTHER_FILES: tuple[tuple[str, str], ...] = (
    (r"(model\.diffusion_model|cond_stage_model|conditioner)\.", _MODEL),
    (r"(down_blocks|up_blocks|mid_block|conv_in|time_embedding|add_embedding)\.", "a U-Net"),
    (r"(input_blocks|middle_block|output_blocks|time_embed)\.", "a U-Net"),
    (r"(first_stage_model|encoder\.(down|mid|conv)|decoder|quant_conv|post_quant)", "a VAE"),
    (r"(text_model|transformer\.text_model)\.", "a text encoder"),
    (r"(emb_params|string_to_param|clip_[lg]$|\*$)", "a textual inversion embedding"),
    (r"bundle_emb\.", "a LoRA bundled with an embedding, which is not supported"),
    (r"(control_model|controlnet|lora_controlnet)", "a ControlNet"),
    (r"(transformer|lora_transformer|double_blocks|single_blocks)", "for another kind of model"),
)
"""Starts of keys of files that are no LoRA for Stable Diffusion."""


class ParsedKey(NamedTuple):
    """One key of a LoRA file."""

    layer: str
    """The layer's name in kohya's underscores, where it is known; as in the file otherwise."""
    suffix: str
    """What it holds: its suffix in kohya's spelling, or `MAGNITUDE`."""
    key_format: str
    """``kohya``, ``diffusers`` or ``early diffusers``; empty where the key does not tell."""
    raw_name: str
    """The layer's name as in the file."""


def parse_key(key: str) -> ParsedKey | None:
    """Take a key of a LoRA file apart; None if it is not one."""
    for pattern, role, spelling in _KEYS:
        if match := pattern.fullmatch(key):
            text = match[1]
            return ParsedKey(to_kohya_name(text), role or match[2], spelling, text)
    return None


def to_kohya_name(text: str) -> str:
    """Return a layer's name in kohya's underscores for a name in any spelling.

    SDXL's stay in diffusers' order of blocks here, because the name does not tell the family. What
    is no layer of a U-Net or a text encoder comes back as it is.
    """
    if "." not in text:
        return re.sub("^lycoris_(?=down_|mid_|up_|input_|middle_|output_)", "lora_unet_", text)
    module = parse_dotted_name(text)
    return module.kohya_name(None) if module else text


def explain_unknown_keys(keys: Sequence[str], more: bool = False) -> str:
    """Say what a file may be, or what kind of adapter, by its keys that are not understood.

    Args:
        keys: these keys.
        more: whether the file has LoRA keys besides.
    """
    key = keys[0]
    for pattern, kind in _STRANGERS:
        if re.search(pattern, key):
            return f"{kind} are not supported"
    for pattern, kind in _OTHER_FILES:
        if re.match(pattern, key):
            whole = all(any(re.match(part, one) for one in keys) for part in _PARTS)
            return f"it looks like {'a part of a model' if kind == _MODEL and not whole else kind}"
    return "they belong to no known kind of adapter" if more else "it is no LoRA file"


def is_for_later_family(name: str) -> bool:
    """Tell the name of a layer that only models of later families have (Flux, SD 3)."""
    return _LATER.match(name) is not None
