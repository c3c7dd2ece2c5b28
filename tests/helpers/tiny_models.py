"""Tiny random models in diffusers' folder layout: the parts of SD 1.x, 2.x and SDXL, very narrow.

Each takes well under a second to build and is the same every time.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.paths import MERGES_FILE

if TYPE_CHECKING:
    from lorasmith.models.model import Model


SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (8, 8, 16, 16),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "layers_per_block": 2,
    },
    "sd2": {
        "block_out_channels": (8, 8, 16, 16),
        "cross_attention_dim": 16,
        "attention_head_dim": (1, 1, 2, 2),
        "use_linear_projection": True,
        "layers_per_block": 2,
    },
    "sdxl": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16 + 24,
        "attention_head_dim": (1, 2, 2),
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 20,
        "layers_per_block": 2,
    },
    "sdxl-refiner": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": (1, 1, 2, 2),
        "transformer_layers_per_block": 2,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 5 * 8 + 24,
        "layers_per_block": 2,
    },
}
INPAINTING = "-inpainting"


def make_tiny(folder: Path, family: str = "sd1") -> Path:
    """Write a model of a family and return its folder.

    Families are ``sd1``, ``sd2``, ``sdxl``, ``sdxl-refiner``, and the first three with
    ``-inpainting`` behind. Images are 64 x 64, latents 8 x 8; SD 2.x predicts v unless it
    inpaints.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    inpainting = family.endswith(INPAINTING)
    family = family.removesuffix(INPAINTING)
    tokenizer = _tokenizer()
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(
            sample_size=8, norm_num_groups=4, in_channels=9 if inpainting else 4, **UNETS[family]
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=64,
        ),
        "text_encoder": _text_encoder(tokenizer, 3 if family == "sdxl" else 2),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(
            prediction_type="v_prediction" if family == "sd2" and not inpainting else "epsilon",
            **SCHEDULE,
        ),
        "feature_extractor": None,
    }
    _pipeline(family, inpainting, parts).save_pretrained(folder)
    return folder


def _pipeline(family: str, inpainting: bool, parts: dict[str, Any]) -> Any:
    """Put the parts, and what SDXL has besides, into diffusers' pipeline."""
    import diffusers

    if family not in ("sdxl", "sdxl-refiner"):
        kind = "StableDiffusionInpaintPipeline" if inpainting else "StableDiffusionPipeline"
        return getattr(diffusers, kind)(**parts, safety_checker=None, requires_safety_checker=False)
    second = _tokenizer(pad_token="!")
    refiner = family == "sdxl-refiner"
    encoder = _second_text_encoder(second, 24 if refiner else 20)
    parts |= {"text_encoder_2": encoder, "tokenizer_2": second, "add_watermarker": False}
    if refiner:
        parts |= {"text_encoder": None, "tokenizer": None, "requires_aesthetics_score": True}
        del parts["feature_extractor"]
        return diffusers.StableDiffusionXLImg2ImgPipeline(**parts)
    if inpainting:
        del parts["feature_extractor"]
        return diffusers.StableDiffusionXLInpaintPipeline(**parts)
    return diffusers.StableDiffusionXLPipeline(**parts)


def _tokenizer(**changes: Any) -> Any:
    from lorasmith.models.text.tokenizer import create_bpe_tokenizer, read_merges

    tokenizer = create_bpe_tokenizer(read_merges(MERGES_FILE, 500))
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def _text_config(tokenizer: Any, width: int, layers: int, **more: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
        **more,
    )


def _text_encoder(tokenizer: Any, layers: int) -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel(_text_config(tokenizer, 16, layers))


def _second_text_encoder(tokenizer: Any, projection: int = 20) -> Any:
    from transformers import CLIPTextModelWithProjection

    config = _text_config(tokenizer, 24, 3, projection_dim=projection, hidden_act="gelu")
    return CLIPTextModelWithProjection(config)


def open_model(folder: Path) -> "Model":
    """Load a model on the CPU in float32."""
    import torch

    from lorasmith.models.load import load_model

    return load_model(folder).to(torch.device("cpu"), torch.float32)
