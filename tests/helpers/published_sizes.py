"""Networks of published models in their true sizes, on the meta device: shapes without memory."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "refiner": {
        "sample_size": 128,
        "cross_attention_dim": 1280,
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        "attention_head_dim": (6, 12, 24, 24),
        "transformer_layers_per_block": 4,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP_L |= {"num_attention_heads": 12, "projection_dim": 768}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
CLIP_H |= {"num_attention_heads": 16, "projection_dim": 512}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
CLIP_G |= {"num_attention_heads": 20, "projection_dim": 1280}


@cache
def networks(name: str) -> Any:
    """Return the U-Net and the text encoders of ``sd15``, ``sd21``, ``sdxl`` or ``refiner``."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first = {"sd15": CLIP_L, "sd21": CLIP_H, "sdxl": CLIP_L}.get(name)
    has_second = name in ("sdxl", "refiner")
    with torch.device("meta"):
        second = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G)) if has_second else None
        return SimpleNamespace(
            path=Path(name),
            unet=UNet2DConditionModel(**UNETS[name]),
            text_encoder=CLIPTextModel(CLIPTextConfig(**first)) if first else None,
            text_encoder_2=second,
        )
