"""diffusers configs of each family's components, made from the family.

They equal those of the published folders, so that a single file is enough to open a model.
"""

from typing import Any

from lorasmith.models.families.family import (
    HEAD_WIDTH,
    INPAINTING_CHANNELS,
    LATENT_CHANNELS,
    TIME_ID_WIDTH,
    ModelVariant,
    TextEncoderLayout,
    UnetLayout,
)

DOWNSCALE = 8
"""Pixels per latent along a side."""
VOCABULARY = 49408
"""Tokens of CLIP's tokenizer."""

CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
"""The class of each network in diffusers or transformers."""
DIFFUSERS_PARTS = ("unet", "vae")
"""Networks of diffusers; the others are of transformers."""
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""The tokenizer of each text encoder."""


def component_config(variant: ModelVariant, part: str) -> dict[str, Any]:
    """Return the config of a network (a key of `CLASSES`) or of the ``scheduler``."""
    if part == "unet":
        return unet_config(variant)
    if part == "vae":
        return vae_config(variant)
    if part == "scheduler":
        return scheduler_config(variant)
    return text_encoder_config(variant.family.text_encoders[part])


def unet_config(variant: ModelVariant) -> dict[str, Any]:
    """Return the U-Net's config."""
    layout = variant.family.unet
    attention_levels = [depth > 0 for depth in layout.transformer_layers]
    config: dict[str, Any] = {
        "_class_name": CLASSES["unet"],
        "sample_size": variant.native_size // DOWNSCALE,
        "in_channels": INPAINTING_CHANNELS if variant.is_inpainting else LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": list(layout.channels),
        "down_block_types": [
            "CrossAttnDownBlock2D" if has_attention else "DownBlock2D"
            for has_attention in attention_levels
        ],
        "up_block_types": [
            "CrossAttnUpBlock2D" if has_attention else "UpBlock2D"
            for has_attention in reversed(attention_levels)
        ],
        "layers_per_block": 2,
        "cross_attention_dim": layout.cross_attention_dim,
        "attention_head_dim": _attention_head_dim(layout),
        "transformer_layers_per_block": _transformer_layers(layout),
        "use_linear_projection": layout.use_linear_projection,
        "upcast_attention": variant.family.upcasts_attention_for_v
        and variant.prediction_type != "epsilon",
    }
    if layout.num_time_ids:
        pooled = next(
            t.projection_dim for t in variant.family.text_encoders.values() if t.feeds_unet
        )
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_ID_WIDTH,
            "projection_class_embeddings_input_dim": pooled + layout.num_time_ids * TIME_ID_WIDTH,
        }
    return config


def _attention_head_dim(layout: UnetLayout) -> int | list[int]:
    """Return diffusers' ``attention_head_dim``, which is the number of heads."""
    return layout.num_heads or [width // HEAD_WIDTH for width in layout.channels]


def _transformer_layers(layout: UnetLayout) -> int | list[int]:
    """Return the transformer layers; the middle block has the last entry's number."""
    depths = {depth for depth in layout.transformer_layers if depth}
    if len(depths) == 1:
        return depths.pop()
    return [max(depth, 1) for depth in layout.transformer_layers]


def vae_config(variant: ModelVariant) -> dict[str, Any]:
    """Return the autoencoder's config, the same network in all families."""
    return {
        "_class_name": CLASSES["vae"],
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": 32,
        "sample_size": variant.native_size,
        "scaling_factor": variant.family.scaling_factor,
        "force_upcast": variant.family.vae_force_upcast,
    }


def text_encoder_config(layout: TextEncoderLayout, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Return a text encoder's config."""
    kind = CLASSES["text_encoder_2"] if layout.feeds_unet else CLASSES["text_encoder"]
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "hidden_size": layout.width,
        "intermediate_size": 4 * layout.width,
        "num_hidden_layers": layout.num_layers,
        "num_attention_heads": layout.num_heads,
        "hidden_act": "gelu" if layout.is_open_clip else "quick_gelu",
        "projection_dim": layout.projection_dim,
        "max_position_embeddings": 77,
        "vocab_size": vocabulary,
        "layer_norm_eps": 1e-05,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0 if layout.is_open_clip else vocabulary - 1,
    }


def pad_token(layout: TextEncoderLayout) -> str:
    """Return what a text encoder's texts are padded with."""
    return "!" if layout.is_open_clip else "<|endoftext|>"


def scheduler_config(variant: ModelVariant) -> dict[str, Any]:
    """Return the noise schedule, the same in all families (arXiv:2112.10752), and the target."""
    euler = variant.family.uses_size_conditioning
    config: dict[str, Any] = {
        "_class_name": "EulerDiscreteScheduler" if euler else "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": variant.prediction_type or variant.family.prediction_types[0],
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    return config if euler else config | {"clip_sample": False, "set_alpha_to_one": False}


def model_index(variant: ModelVariant) -> dict[str, Any]:
    """Return a folder's ``model_index.json``."""
    networks = {part: ["diffusers", CLASSES[part]] for part in DIFFUSERS_PARTS}
    scheduler = scheduler_config(variant)["_class_name"]
    index: dict[str, Any] = {
        "_class_name": variant.family.pipelines[variant.is_inpainting],
        **networks,
        "scheduler": ["diffusers", scheduler],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    is_sdxl = variant.family.uses_size_conditioning
    for part, tokenizer in TOKENIZERS.items():
        if part in variant.family.text_encoders:
            index[part] = ["transformers", CLASSES[part]]
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
        elif is_sdxl:
            index[part] = index[tokenizer] = [None, None]
    if not is_sdxl:
        return index | {"safety_checker": [None, None], "requires_safety_checker": False}
    scored = variant.family.uses_aesthetic_score
    return index | {
        "force_zeros_for_empty_prompt": variant.family.zeroes_empty_prompt,
        **({"requires_aesthetics_score": scored} if scored or variant.is_inpainting else {}),
    }
