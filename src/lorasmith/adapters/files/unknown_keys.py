"""What the keys of a file are that belong to no LoRA layer."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from lorasmith.core.text.terminal import escape_control_characters

_EXAMPLES = 3
_EXAMPLE_LENGTH = 100
_LONGEST_ENDING = 100
_OTHER = "other tensors"
_UNSUPPORTED_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        r"\.(lora_B|lora_up|lora\.up)(\.[^.]+)?\.bias$|\.diff_b$",
        "biases",
        "LoRAs that train biases",
    ),
    (r"\.[wb]_norm$", "norms", "LoRAs that train norms"),
    (r"\.(oft_|boft|diag)", "OFT", "OFT"),
    (r"\.(on_input|ia3)", "IA3", "IA3"),
    (r"\.[abc][12]?\.weight$", "GLoRA", "GLoRA"),
)
"""Key endings of adapters that are not supported, and what they are in a list and in a sentence."""
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
    (r"(control_model|controlnet|lora_controlnet)", "a ControlNet"),
    (r"(transformer|lora_transformer|double_blocks|single_blocks)", "for another kind of model"),
)
"""Starts of keys of files that are no LoRA for Stable Diffusion."""


def example_keys(keys: Sequence[str]) -> str:
    """Return ``, first A, B, C`` for printing; empty without keys."""
    return f", first {list_examples(keys)}" if keys else ""


def list_examples(keys: Sequence[str]) -> str:
    """Return the first keys for printing: ``A, B, C``."""
    return ", ".join(_clean(key) for key in keys[:_EXAMPLES])


def count_unknown_keys(keys: Iterable[str]) -> dict[str, int]:
    """Return the numbers of unknown keys by what they are: biases, norms, ..., other tensors."""
    counts = Counter(
        next((kind for pattern, kind, _ in _UNSUPPORTED_KINDS if _ends_like(pattern, key)), _OTHER)
        for key in keys
    )
    return dict(counts.most_common())


def explain_unknown_keys(keys: Sequence[str], has_lora_keys: bool = False) -> str:
    """Return what a file or an adapter may be, by its unknown keys.

    Args:
        keys: the unknown keys.
        has_lora_keys: whether the file has LoRA keys too.
    """
    for pattern, _, kind in _UNSUPPORTED_KINDS:
        if _ends_like(pattern, keys[0]):
            return f"{kind} are not supported"
    for pattern, file_type in _OTHER_FILES:
        if re.match(pattern, keys[0]):
            if file_type == _FULL_MODEL and not _has_all_model_parts(keys):
                return "it looks like a part of a model"
            return f"it looks like {file_type}"
    return "they belong to no known kind of adapter" if has_lora_keys else "it is no LoRA file"


def _ends_like(pattern: str, key: str) -> bool:
    return re.search(pattern, key[-_LONGEST_ENDING:]) is not None


def _clean(key: str) -> str:
    shown = key if len(key) <= _EXAMPLE_LENGTH else f"{key[:_EXAMPLE_LENGTH]}..."
    return escape_control_characters(shown)


def _has_all_model_parts(keys: Sequence[str]) -> bool:
    return all(any(re.match(part, key) for key in keys) for part in _MODEL_PARTS)


def is_for_later_family(name: str) -> bool:
    """Return whether only models of later families (Flux, SD 3) have a layer of this name."""
    return _LATER_FAMILIES.match(name) is not None
