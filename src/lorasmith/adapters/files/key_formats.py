"""Keys of LoRA files in every key format: which layer they belong to, and which tensor they hold.

The formats:

- kohya (sd-scripts): ``NAME.lora_down.weight``, ``.lora_up.weight``, ``.alpha``; LyCORIS adds
  ``.lora_mid.weight``, ``.hada_w1_a``, ``.lokr_w1``, ``.dora_scale``, ``.diff`` and the like;
- PEFT, and diffusers through it: ``PATH.lora_A.weight``, ``.lora_B.weight``,
  ``.lora_magnitude_vector.weight``, sometimes with an adapter's name before ``weight``;
- early diffusers: ``PATH.lora.down.weight``; ``PATH.lora_linear_layer.down.weight`` in text
  encoders; ``PATH.processor.to_q_lora.down.weight`` from ``save_attn_procs``;
- ``PATH.magnitude`` for DoRA in some trainers.

One file may mix them. Suffixes of registered adapter kinds (`lorasmith.registries.ADAPTER_KINDS`)
are read as they are.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from lorasmith.adapters.kinds.dora import MAGNITUDE
from lorasmith.adapters.kinds.locon import MID
from lorasmith.adapters.kinds.lora import DOWN, UP
from lorasmith.adapters.naming.module_names import parse_dotted_name
from lorasmith.registries import ADAPTER_KINDS

ALPHA = "alpha"

_ALIASES: tuple[tuple[str, str, str], ...] = (
    (r"\.lora_down\.weight", DOWN, "kohya"),
    (r"\.lora_up\.weight", UP, "kohya"),
    (r"\.lora_mid\.weight", MID, "kohya"),
    (r"\.alpha", ALPHA, ""),
    (r"\.lora_A(?:\.[^.]+)?\.weight", DOWN, "diffusers"),
    (r"\.lora_B(?:\.[^.]+)?\.weight", UP, "diffusers"),
    (r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", MAGNITUDE, "diffusers"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight", DOWN, "early diffusers"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight", UP, "early diffusers"),
)
"""Key endings, the suffix that they stand for, and the key format that they show. The first match
counts."""

_UNSUPPORTED_KINDS: tuple[tuple[str, str], ...] = (
    (r"\.(lora_B|lora_up|lora\.up)(\..+)?\.bias$|\.diff_b$", "LoRAs that train biases"),
    (r"\.[wb]_norm$", "LoRAs that train norms"),
    (r"\.(oft_|boft|diag)", "OFT"),
    (r"\.(on_input|ia3)", "IA3"),
    (r"\.[abc][12]?\.weight$", "GLoRA"),
)
"""Key endings of adapters that are not supported."""

_FULL_MODEL = "a full model; open it with -m"
_MODEL_PARTS = (
    r"model\.diffusion_model\.",
    r"first_stage_model\.",
    r"cond_stage_model\.|conditioner\.",
)
_LATER_FAMILIES = re.compile(
    r"(lora_transformer|transformer\.(?!text_model)|lora_te3_|(lora_unet_|lora_te\d?_|"
    r"diffusion_model\.)?(double|single|joint)_blocks)"
)
_OTHER_FILES: tuple[tuple[str, str], ...] = (
    (r"(model\.diffusion_model|cond_stage_model|conditioner)\.", _FULL_MODEL),
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
    """The layer's kohya name (with underscores), or the name in the file if it is unknown."""
    suffix: str
    """The tensor: `ALPHA` or a suffix of an adapter kind."""
    key_format: str
    """``kohya``, ``diffusers`` or ``early diffusers``; empty if the key does not show it."""
    raw_name: str
    """The layer's name in the file."""


def parse_key(key: str) -> ParsedKey | None:
    """Split a key of a LoRA file; None if it is not one."""
    for pattern, suffix, key_format in _patterns(ADAPTER_KINDS.names()):
        if match := pattern.fullmatch(key):
            name = match["name"]
            return ParsedKey(to_kohya_name(name), suffix or match["suffix"], key_format, name)
    return None


@lru_cache(maxsize=4)
def _patterns(kinds: tuple[str, ...]) -> list[tuple[re.Pattern[str], str, str]]:
    """Return patterns of all keys with suffix and format, like `_ALIASES`."""
    items = [ADAPTER_KINDS.get(kind) for kind in kinds]
    suffixes = {suffix for kind in items for suffix in kind.required_suffixes}
    suffixes |= {suffix for kind in items for suffix in kind.optional_suffixes}
    known = "|".join(re.escape(suffix) for suffix in sorted(suffixes, key=len, reverse=True))
    endings = [*_ALIASES, (rf"\.(?P<suffix>{known})", "", "")]
    return [
        (re.compile(rf"(?P<name>.+?){ending}"), suffix, key_format)
        for ending, suffix, key_format in endings
    ]


def to_kohya_name(name: str) -> str:
    """Return a layer's kohya name (with underscores) for its name in any format.

    SDXL's keep diffusers' order of blocks here, because the name does not show the family. A name
    that is no layer of a U-Net or a text encoder is returned unchanged.
    """
    if "." not in name:
        return re.sub("^lycoris_(?=down_|mid_|up_|input_|middle_|output_)", "lora_unet_", name)
    layer_path = parse_dotted_name(name)
    return layer_path.kohya_name(None) if layer_path else name


def explain_unknown_keys(keys: Sequence[str], has_lora_keys: bool = False) -> str:
    """Return what a file or an adapter may be, by its unknown keys.

    Args:
        keys: the unknown keys.
        has_lora_keys: whether the file has LoRA keys too.
    """
    for pattern, kind in _UNSUPPORTED_KINDS:
        if re.search(pattern, keys[0]):
            return f"{kind} are not supported"
    for pattern, file_type in _OTHER_FILES:
        if re.match(pattern, keys[0]):
            if file_type == _FULL_MODEL and not _has_all_model_parts(keys):
                return "it looks like a part of a model"
            return f"it looks like {file_type}"
    return "they belong to no known kind of adapter" if has_lora_keys else "it is no LoRA file"


def _has_all_model_parts(keys: Sequence[str]) -> bool:
    return all(any(re.match(part, key) for key in keys) for part in _MODEL_PARTS)


def is_for_later_family(name: str) -> bool:
    """Return whether only models of later families (Flux, SD 3) have a layer of this name."""
    return _LATER_FAMILIES.match(name) is not None
