"""The built-in model families: SD 1.x, SD 2.x, SDXL and its refiner."""

from dataclasses import replace
from typing import Any

from lorasmith.models.families.family import ModelFamily, TextEncoderLayout, UnetLayout
from lorasmith.models.families.ldm_keys import SingleFileKeys

VIT_L = TextEncoderLayout("CLIP ViT-L/14", False, 768, 12, 12, 768)
VIT_H = TextEncoderLayout("OpenCLIP ViT-H/14", True, 1024, 23, 16, 512)
BIG_G = TextEncoderLayout("OpenCLIP ViT-bigG/14", True, 1280, 32, 20, 1280, feeds_unet=True)


def _is_unconditioned(unet_config: Any) -> bool:
    return unet_config.addition_embed_type is None


def _is_sd1(unet_config: Any) -> bool:
    return _is_unconditioned(unet_config) and not unet_config.use_linear_projection


def _is_sd2(unet_config: Any) -> bool:
    return _is_unconditioned(unet_config) and bool(unet_config.use_linear_projection)


def _is_sdxl(unet_config: Any) -> bool:
    return bool(unet_config.addition_embed_type == "text_time")


def _is_refiner(unet_config: Any) -> bool:
    """The refiner reads five time ids, and text as wide as the pooled one."""
    if not _is_sdxl(unet_config):
        return False
    ids = SDXL_REFINER.unet.num_time_ids * unet_config.addition_time_embed_dim
    added = unet_config.projection_class_embeddings_input_dim
    return bool(added == ids + unet_config.cross_attention_dim)


SD1 = ModelFamily(
    name="sd1",
    title="SD 1.x",
    unet=UnetLayout(
        (320, 640, 1280, 1280), (1, 1, 1, 0), 768, num_heads=8, use_linear_projection=False
    ),
    text_encoders={"text_encoder": VIT_L},
    prediction_types=("epsilon",),
    native_sizes=(512, 512),
    scaling_factor=0.18215,
    pipelines=("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
    single_file=SingleFileKeys(  # as the LDM code of CompVis and Runway saves it
        mark="cond_stage_model.transformer.",
        clip={"text_encoder": "cond_stage_model.transformer.text_model."},
        ignored=(
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
            "cond_stage_model.transformer.text_projection.",
            "cond_stage_model.transformer.vision_model.",
            "cond_stage_model.transformer.visual_projection.",
            "cond_stage_model.transformer.logit_scale",
            "cond_stage_model.logit_scale",
            "cond_stage_model.text_projection",
        ),
    ),
    lora_text_prefixes=("lora_te_",),
    kohya_versions=("sd_v1", "sd_v1"),
    modelspec_architectures=("stable-diffusion-v1", "stable-diffusion-v1"),
    matches_unet=_is_sd1,
)

SD2 = ModelFamily(
    name="sd2",
    title="SD 2.x",
    unet=UnetLayout(
        (320, 640, 1280, 1280), (1, 1, 1, 0), 1024, num_heads=None, use_linear_projection=True
    ),
    text_encoders={"text_encoder": VIT_H},
    prediction_types=("epsilon", "v_prediction"),
    native_sizes=(512, 768),
    scaling_factor=0.18215,
    pipelines=("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
    single_file=SingleFileKeys(  # as Stability AI's LDM code saves it
        mark="cond_stage_model.model.",
        open_clip={"text_encoder": "cond_stage_model.model."},
        ignored=(
            # The last layer: the hidden states before it are used.
            "cond_stage_model.model.transformer.resblocks.23.",
            "cond_stage_model.model.text_projection",
            "cond_stage_model.model.logit_scale",
            "cond_stage_model.model.attn_mask",
        ),
    ),
    lora_text_prefixes=("lora_te_",),
    kohya_versions=("sd_v2", "sd_v2_v"),
    modelspec_architectures=("stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
    is_kohya_v2=True,
    upcasts_attention_for_v=True,
    matches_unet=_is_sd2,
)

SDXL = ModelFamily(
    name="sdxl",
    title="SDXL",
    unet=UnetLayout(
        (320, 640, 1280),
        (0, 2, 10),
        2048,
        num_heads=None,
        use_linear_projection=True,
        num_time_ids=6,
    ),
    text_encoders={"text_encoder": VIT_L, "text_encoder_2": BIG_G},
    prediction_types=("epsilon",),
    native_sizes=(1024, 1024),
    scaling_factor=0.13025,
    pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"),
    single_file=SingleFileKeys(  # as Stability AI's sgm code saves it
        mark="conditioner.embedders.1.",
        clip={"text_encoder": "conditioner.embedders.0.transformer.text_model."},
        open_clip={"text_encoder_2": "conditioner.embedders.1.model."},
        ignored=(
            "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
            "conditioner.embedders.0.logit_scale",
            "conditioner.embedders.0.text_projection",
            "conditioner.embedders.1.model.logit_scale",
            "conditioner.embedders.1.model.attn_mask",
            "conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids",
            "denoiser.",
        ),
    ),
    lora_text_prefixes=("lora_te1_", "lora_te2_"),
    kohya_versions=("sdxl_base_v1-0", "sdxl_base_v1-0"),
    modelspec_architectures=("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base"),
    kohya_version_prefix="sdxl_",
    # A second text encoder, sgm's block names, or a second transformer behind the first.
    lora_name_pattern=(
        r"lora_te2_|lora_unet_(input|output)_blocks_|lora_unet_middle_block_"
        r"|lora_unet_\w+_transformer_blocks_[1-9]"
    ),
    # Blocks that SD 1.x and 2.x have in these names: SDXL has nine, and no attention at its edges.
    lora_name_exclusion=(
        r"lora_unet_(input_blocks_([12]_1_|9_|1\d_)|output_blocks_([678]_1_|9_|1\d_))"
    ),
    uses_sgm_names=True,
    vae_force_upcast=True,
    zeroes_empty_prompt=True,
    matches_unet=_is_sdxl,
)

SDXL_REFINER = ModelFamily(
    name="sdxl-refiner",
    title="SDXL refiner",
    unet=UnetLayout(
        (384, 768, 1536, 1536),
        (0, 4, 4, 0),
        1280,
        num_heads=None,
        use_linear_projection=True,
        num_time_ids=5,
    ),
    text_encoders={"text_encoder_2": BIG_G},
    prediction_types=("epsilon",),
    native_sizes=(1024, 1024),
    scaling_factor=0.13025,
    pipelines=("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    single_file=SingleFileKeys(
        mark="conditioner.embedders.0.model.",
        open_clip={"text_encoder_2": "conditioner.embedders.0.model."},
        ignored=(
            "conditioner.embedders.0.model.logit_scale",
            "conditioner.embedders.0.model.attn_mask",
            "denoiser.",
        ),
    ),
    lora_text_prefixes=("lora_te1_", "lora_te2_"),
    kohya_versions=("sdxl_refiner_v1-0", "sdxl_refiner_v1-0"),
    modelspec_architectures=("stable-diffusion-xl-v1-refiner", "stable-diffusion-xl-v1-refiner"),
    uses_sgm_names=True,
    vae_force_upcast=True,
    num_timesteps=200,  # arXiv:2307.01952, section 2.5
    uses_aesthetic_score=True,
    requires_init_image=True,
    matches_unet=_is_refiner,
)

MINIATURE = replace(
    SD1,
    title="miniature SD 1.x",
    unet=UnetLayout(
        (64, 96, 128, 160), (1, 1, 1, 0), 256, num_heads=8, use_linear_projection=False
    ),
    text_encoders={"text_encoder": TextEncoderLayout("miniature CLIP", False, 256, 4, 4, 256)},
    native_sizes=(128, 128),
    scaling_factor=0.86028,
)
"""The model that ships with the package: of the family SD 1.x, and like it in all but its sizes."""
