"""Encoding images to latents and decoding them."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@torch.no_grad()
def encode_images(vae: "AutoencoderKL", images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of images' latents, scaled for the U-Net, float32.

    Args:
        vae: on the device to use.
        images: float32 ``[B, 3, H, W]`` in -1..1.
    """
    posterior = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
    scale = float(vae.config.scaling_factor)
    return posterior.mean.float() * scale, posterior.std.float() * scale


def decode_latents(vae: "AutoencoderKL", latents: torch.Tensor) -> torch.Tensor:
    """Return images, float32 ``[B, 3, H, W]`` in 0..1.

    Args:
        vae: on the latents' device.
        latents: multiplied by the VAE's scaling factor, ``[B, C, h, w]``.
    """
    # Some later models also shift their latents; Stable Diffusion's have no shift.
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    unscaled = latents / vae.config.scaling_factor + shift
    images: torch.Tensor = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0]
    return (images.float() / 2 + 0.5).clamp(0, 1)
