"""Describing weights files that are not models, by the names of their tensors."""

import re
from collections.abc import Iterable

EXPECTED = (
    "expected a whole model in one file: a U-Net (model.diffusion_model.*), an autoencoder "
    "(first_stage_model.*) and a text encoder (cond_stage_model.* or conditioner.*)"
)

KINDS: tuple[tuple[str, str], ...] = (
    (r"lora_(unet|te\d?)_|.*\.lora(_[AB]|_up|_down|\.up|\.down)\b", "a LoRA"),
    (r".*\.(hada|lokr)_w\d", "a LoRA of LyCORIS's kinds"),
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet"),
    (r".*motion_modules\.", "an AnimateDiff motion module"),
    (r"image_proj\.|ip_adapter\.", "an IP-Adapter"),
    (r"string_to_param|emb_params$|clip_[lg]$", "a textual-inversion embedding"),
    (r"(model\.diffusion_model\.)?(double_blocks|joint_blocks|single_blocks)\.",
     "a model of a later family (Flux, SD 3)"),
    (r"edm_mean$", "a Playground 2.5 model, which is trained with another kind of noise"),
    (r"(down_blocks|up_blocks|mid_block)\..*(attentions|resnets)",
     "a U-Net alone, in diffusers' naming: a part of a model folder; give the whole folder"),
    (r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.",
     "an autoencoder (VAE) alone, in diffusers' naming: a part of a model folder; give the whole "
     "folder"),
    (r"(encoder|decoder)\.(down|up|mid)\.", "an autoencoder (VAE) alone"),
    (r"(input_blocks|output_blocks|middle_block)\.", "a U-Net alone"),
    (r"(text_model\.)?(encoder\.layers|embeddings)\.|transformer\.resblocks\.",
     "a text encoder alone"),
)  # fmt: skip
"""Patterns of tensor names and what the file is; the first match counts."""


def describe_file(names: Iterable[str]) -> str:
    """Return what a file with these tensors is."""
    known = list(names)
    for pattern, kind in KINDS:
        if any(re.match(pattern, name) for name in known):
            return kind
    first = f", such as {known[0]}" if known else ""
    return f"of no kind that lorasmith knows ({len(known):,} tensors{first})"
