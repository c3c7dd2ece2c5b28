"""A loaded Stable Diffusion model: its networks, tokenizers and scheduler config."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.core.errors import WeightsError
from lorasmith.models.families.family import INPAINTING_CHANNELS
from lorasmith.models.suppress_logs import suppress_logs

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@dataclass
class Model:
    """The components of a Stable Diffusion model."""

    path: Path
    """The folder or the single file that it was read from."""
    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text_encoder: "CLIPTextModel | None"
    """The text encoder, or the first of two. The SDXL refiner has only the second: None."""
    tokenizer: "CLIPTokenizer | None"
    """Its tokenizer, or None likewise."""
    scheduler_config: dict[str, Any]
    text_encoder_2: "CLIPTextModelWithProjection | None" = None
    """SDXL's second text encoder."""
    tokenizer_2: "CLIPTokenizer | None" = None
    """Its tokenizer."""

    @property
    def text_encoders(self) -> "list[CLIPTextModel | CLIPTextModelWithProjection]":
        """The text encoder, or both."""
        return [
            encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None
        ]

    @property
    def main_tokenizer(self) -> "CLIPTokenizer":
        """The tokenizer of the first text encoder. Two tokenizers differ in padding only."""
        tokenizer = self.tokenizer or self.tokenizer_2
        if tokenizer is None:
            raise WeightsError(f"model {self.path}: has no tokenizer")
        return tokenizer

    @property
    def is_inpainting(self) -> bool:
        """Whether the U-Net also reads a mask and the latents of the masked image."""
        return int(self.unet.config.in_channels) == INPAINTING_CHANNELS

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along one side; 8 for published models."""
        return downscale_factor(len(self.vae.config.block_out_channels))

    @property
    def default_size(self) -> int:
        """The image size that the U-Net was trained at, in pixels."""
        return int(self.unet.config.sample_size) * self.vae_scale_factor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Model":
        """Move the networks, frozen and in evaluation mode."""
        # diffusers warns about parts to be kept in float32 even where there are none.
        with suppress_logs():
            for part in (self.unet, *self.text_encoders):
                part.to(device=device, dtype=dtype).requires_grad_(False).eval()
            vae_dtype = vae_dtype_for(self.vae, self.text_encoder_2 is not None, dtype)
            self.vae.to(device=device, dtype=vae_dtype).requires_grad_(False).eval()
        return self


def downscale_factor(levels: int) -> int:
    """Return the downscaling of a network: each level but the last halves the sides."""
    return int(2 ** (levels - 1))


def vae_dtype_for(vae: Any, two_encoders: bool, dtype: torch.dtype) -> torch.dtype:
    """Return float32 for an SDXL autoencoder that was not fine-tuned for float16."""
    overflows = two_encoders and vae.config.force_upcast and dtype == torch.float16
    return torch.float32 if overflows else dtype
